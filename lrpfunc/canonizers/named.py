"""Only the folds that are named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lrpfunc.canonizers.chains import Pass
from lrpfunc.canonizers.draft import Draft, Parameters
from lrpfunc.canonizers.folds import Fold, Subject
from lrpfunc.canonizers.passes import PASSES
from lrpfunc.errors import CanonizeError, near_misses
from lrpfunc.operations import Facts, Immovable, active_equations, channel_axis, positions, takes_scale
from lrpfunc.program import Equation, Program


def merge_named(
    pairs: Iterable[tuple[str | Sequence[str], str]] | Mapping[str, str],
) -> Pass:
    """Fold only the batch norms that are named, each with the layer (or layers) that must take it up.

    The layers may come before the batch norm or behind it. Nothing is taken on trust: the function stays the same.

    Args:
        pairs: `[("conv1", "bn1"), (("branch1.fc", "branch2.fc"), "bn2")]`, or a mapping, by the names that
            `print(fmodel)` lists.

    Errors: `CanonizeError` for what is no pair, and, when the pass is called, for unknown names, widths that do not
    fit, and where the data flow allows no such fold.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).eval()
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 2))
    >>> print(lrpfunc.canonize(fmodel, params, lrpfunc.canonizers.merge_named([("1", "2")])).report)
    batch norm  became  where
    0           left    no pass was told to fold it
    2           merged  1
    """
    named = [_checked_pair(pair) for pair in (pairs.items() if isinstance(pairs, Mapping) else pairs)]

    def merge(program: Program, params: Parameters) -> tuple[Program, Parameters]:
        for layers, name in named:
            program, params = _merge_one(program, params, layers, name)
        return program, params

    return merge


def _checked_pair(pair) -> tuple[tuple[str, ...], str]:
    match pair:
        case str(layer), str(name):
            return (layer,), name
        case [*layers], str(name) if layers and all(isinstance(layer, str) for layer in layers):
            return tuple(layers), name
    raise CanonizeError(
        f'merge_named needs pairs of names, [("conv1", "bn1"), (("fc1", "fc2"), "bn2")], but got {pair!r}.'
    )


def _merge_one(program: Program, params: Parameters, layers: tuple[str, ...], name: str):
    draft = Draft(program, params)
    equation = _equation(program, name)
    passes = _passes_for(program, equation)
    about = passes[0].about
    for layer in layers:
        _check_width(draft.facts, _equation(program, layer), equation, about)
    obstacles = {}  # by side: of several passes on one side the last one's counts
    for one in passes:
        try:
            found = one.find(draft.facts, equation)
        except Immovable as obstacle:
            obstacles[one.side] = str(obstacle)
            continue
        taking = [touched.name for touched in one.touched(found) if takes_scale(draft.facts, touched)]
        if sorted(taking) == sorted(layers):
            one.merge(draft, equation, found)
            return draft.finish()
        obstacles[one.side] = "it would go into " + " and ".join(map(repr, taking))
    why = "; ".join(f"{side}: {obstacle}" for side, obstacle in obstacles.items())
    raise CanonizeError(
        f"{about.name} '{name}' cannot be merged into {' and '.join(map(repr, layers))}. {why[:1].upper()}{why[1:]}."
    )


def _equation(program: Program, name: str) -> Equation:
    names = {equation.name: equation for equation in active_equations(program)}
    if name not in names:
        raise CanonizeError(f"no layer is called '{name}'.{near_misses(name, names)} `print(fmodel)` lists all names.")
    return names[name]


def _passes_for(program: Program, equation: Equation) -> list[Fold]:
    """The passes that an equation is a candidate of."""
    passes = [one for one in PASSES if equation in one.about.candidates(program)]
    if not passes:
        subjects = dict.fromkeys(one.about for one in PASSES)
        names, shorts = (" or ".join(words) for words in zip(*((s.name, s.short) for s in subjects), strict=True))
        raise CanonizeError(
            f"'{equation.name}' is no {names} but {equation.operator}: name the layer first, then the {shorts}."
        )
    return passes


def _check_width(known: Facts, layer: Equation, equation: Equation, about: Subject) -> None:
    if not takes_scale(known, layer):
        raise CanonizeError(f"'{layer.name}' is no linear layer but {layer.operator}: nothing can be merged into it.")
    width, source = about.width(known, equation), layer.arguments[positions(layer).input]
    widths = [variable.shape[channel_axis(layer)] for variable in (source, layer.outputs[0])]
    if not any(isinstance(n, int) and isinstance(width, int) and n % width == 0 for n in widths):
        raise CanonizeError(
            f"{about.name} '{equation.name}' has {width} channels, but layer '{layer.name}' has "
            f"{widths[0]} inputs and {widths[1]} outputs."
        )
