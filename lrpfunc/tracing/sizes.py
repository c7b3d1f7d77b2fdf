"""For which sizes an exported graph holds: its guards, read off as ranges, equalities and conditions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from lrpfunc.program import function_of, sizes_in, spelled
from lrpfunc.tracing.axes import Axes
from lrpfunc.tracing.graphs import is_symbolic
from lrpfunc.tracing.source_lines import TORCH

Ranges = dict[str, tuple[int, int | None]]  # by symbolic size


class Sizes(NamedTuple):
    """The sizes for which a trace holds, by symbol.

    `ranges`: the lowest and highest of each; `same`: those that must agree, by the other's name; `conditions`: what
    else must hold of them.
    """

    ranges: Ranges
    same: Mapping[str, str]
    conditions: tuple[str, ...]

    def hold(self, sizes: Mapping[str, int]) -> bool:
        """Whether these sizes, by symbol, are among them."""
        bounds = [(sizes[name], *self.ranges[name]) for name in sizes if name in self.ranges]
        within = all(low <= n and (high is None or n <= high) for n, low, high in bounds)
        return within and all(function_of(condition)(sizes) for condition in self.conditions)


def shapes_of_inputs(exported, inputs: int) -> list[torch.Size]:
    return [node.meta["val"].shape for node in exported.graph.find_nodes(op="placeholder")[-inputs:]]


def sizes_of(exported, shapes: Sequence[torch.Size], conditioned: Sequence[Axes]) -> Sizes | None:
    """The sizes for which a trace holds; None where the model asks for more than can be said.

    What is asked of sizes along the `conditioned` axes of inputs may be a condition. Other sizes are those of batches
    and sequences: they have ranges and are told apart by nothing but these, or agree.
    """
    hints = {n.node.expr: n.node.hint for n in open_sizes(shapes)}
    if not hints:
        return Sizes({}, {}, ())
    environment = next(n.node.shape_env for n in open_sizes(shapes))
    free = set(_symbols(shapes, conditioned))
    space = set(_symbols(shapes, [[a for a in axes if a > 1] for axes in conditioned]))  # which no kernel takes empty
    asked, assumed = [], []
    for guard in environment.guards:
        for part in _parts(environment.simplify(guard.expr)):
            is_free = bool(part.free_symbols & free)
            if _is_asked_by_model(guard, is_free):
                asked.append(part)
            elif is_free and _is_about_shapes(guard, part):
                assumed.append(part)
    same = _agreeing([part for part in asked if not part.free_symbols & free], hints)
    if same is None:
        return None
    asked, assumed = ([part.subs(same) for part in parts] for parts in (asked, assumed))
    conditions = _conditions([p for p in asked if p.free_symbols & free and not _is_bound(p)], assumed, hints)
    if conditions is None:
        return None
    asked = [part for part in asked if not part.free_symbols & free or _is_bound(part)]
    ranges: Ranges = {}
    for symbol, traced in hints.items():
        bounds = exported.range_constraints.get(symbol)  # there are none for what follows from another size
        if symbol in same:
            continue
        found = _range(symbol, bounds, [p for p in asked if symbol in p.free_symbols], traced) if bounds else None
        if found is None:
            return None
        ranges[str(symbol)] = (max(found[0], 1), found[1]) if symbol in space else found
    return Sizes(ranges, {str(one): str(other) for one, other in same.items()}, conditions)


def is_worth(sizes: Sizes, shapes: Sequence[torch.Size], axes: Sequence[Axes]) -> bool:
    """Whether sizes along these axes may be twice as large, each of them and all, whatever the others are.

    Where a linear layer fixes how many features there are, a few other sizes fit by chance, as pooling drops what is
    left over; and where a view has numbers in it, what there is more of becomes a batch.
    """
    hints, found = hints_of(shapes), set(map(str, _symbols(shapes, axes)))
    mixed = [set(sizes_in(condition)) for condition in sizes.conditions]
    if any(names & found and names - found for names in mixed):
        return False
    doubled = [{name: 2 * hints[name] for name in names} for names in (*({name} for name in found), found)]
    return all(sizes.hold({**hints, **changed}) for changed in doubled)


def refusing(sizes: Sizes, shapes: Sequence[torch.Size], axes: Sequence[Axes]) -> str | None:
    """A condition for which a size along these axes is the only one, even where the others grow along; None if not."""
    hints, asked = hints_of(shapes), set(map(str, _symbols(shapes, axes)))
    for name in asked:
        grown = ({other: factor * hints[other] for other in asked} for factor in (2, 3, 4))
        alone = ({name: n} for n in range(1, 4 * hints[name]) if n != hints[name])
        if not any(sizes.hold({**hints, **changed}) for changed in (*grown, *alone)):
            return next((condition for condition in sizes.conditions if name in sizes_in(condition)), None)
    return None


def open_sizes(shapes: Sequence[torch.Size]) -> list[Any]:
    return [n for shape in shapes for n in shape if is_symbolic(n)]


def hints_of(shapes: Sequence[torch.Size]) -> dict[str, int]:
    """What open sizes are in the example, by symbol."""
    return {str(n.node.expr): n.node.hint for n in open_sizes(shapes)}


def _symbols(shapes: Sequence[Sequence[Any]], axes: Sequence[Sequence[int]]) -> Iterator[Any]:
    """The open sizes along axes of inputs."""
    for shape, along in zip(shapes, axes, strict=True):
        yield from (shape[axis].node.expr for axis in along if is_symbolic(shape[axis]))


# -- guards -----------------------------------------------------------------------------------------------------------


def _agreeing(guards: list, hints: Mapping) -> dict | None:
    """The sizes, by others equal in the example, that must agree with them for what a model asked of both to hold.

    What is asked of two sizes is more than ranges can say, but for equal ones it is asked of one, if of any. None where
    that does not help.
    """
    same: dict = {}
    for guard in guards:
        mixed = sorted(guard.subs(same).free_symbols & hints.keys(), key=str)
        while len(mixed) > 1:
            pairs = [(a, b) for i, a in enumerate(mixed) for b in mixed[i + 1 :] if hints[a] == hints[b]]
            if not pairs:
                return None
            one, other = pairs[0]
            same = {key: one if value == other else value for key, value in same.items()} | {other: one}
            mixed = sorted(guard.subs(same).free_symbols & hints.keys(), key=str)
    return same


def _is_asked_by_model(guard, is_free: bool) -> bool:
    """Whether Python code that builds the graph decided on a size, and not a kernel on the layout of its memory."""
    file = getattr(guard.sloc.framework_loc, "filename", "")
    return not file.startswith(TORCH) or file.startswith(
        tuple(TORCH + name for name in (MODELS if is_free else LAYERS))
    )


# Of torch, what models are made of; and what speaks of layouts of memory, not of shapes.
LAYERS = ("nn" + os.sep,)
MODELS = (*LAYERS, "functional.py", "_tensor.py")
LAYOUTS = ("_ops.py", "_export" + os.sep)
ROUNDS = "div_rtn"  # before torch 2.14 it asks for remainders, whose sign alone would change what it gives


def _is_about_shapes(guard, part) -> bool:
    """Whether a kernel takes no other shapes than a guard says, as far as can be told."""
    from sympy import Eq

    if getattr(guard.sloc.framework_loc, "name", "") == ROUNDS:
        return False
    file = getattr(guard.sloc.framework_loc, "filename", "").removeprefix(TORCH)
    return not file.startswith(LAYOUTS) and (isinstance(part, Eq) or not file.startswith("_subclasses"))


def _parts(guard) -> tuple:
    """What a guard says, one by one."""
    from sympy import And

    return guard.args if isinstance(guard, And) else (guard,)


def _is_bound(guard) -> bool:
    """Whether a guard sets a size against a number."""
    from sympy.core.relational import Relational

    sides = guard.args
    return isinstance(guard, Relational) and any(s.is_Integer for s in sides) and any(s.is_Symbol for s in sides)


def _conditions(asked: Sequence, assumed: Sequence, hints: Mapping) -> tuple[str, ...] | None:
    """What a model asked and what its kernels assume, in words; None where no words say what the model asked."""
    sizes = {str(symbol): n for symbol, n in hints.items()}
    found: dict[str, None] = {}
    for guard in (*asked, *assumed):
        try:
            condition = spelled(str(_without_common_factors(guard)))
            is_known = all(name in sizes for name in sizes_in(condition)) and function_of(condition)(sizes)
        except ValueError:
            is_known = False
        if is_known and (guard in asked or not _is_always_true(condition, sizes)):
            found[condition] = None
        elif not is_known and guard in asked:
            return None
    return tuple(found)


def _without_common_factors(guard):
    """`height == 2*(height//2)` of `batch*height == 2*batch*(height//2)`, which asks nothing of the batch."""
    from sympy import Eq, cancel, gcd

    if not isinstance(guard, Eq) or not all(side.is_Mul for side in guard.args):
        return guard
    common = gcd(*guard.args)
    return Eq(*(cancel(side / common) for side in guard.args))


def _is_always_true(condition: str, sizes: Mapping[str, int]) -> bool:
    """Whether a condition on one size holds for this one and all above: that is a lower bound, which torch notes."""
    names = sizes_in(condition)
    least = sizes[names[0]] if names else 0
    return len(names) < 2 and all(function_of(condition)({**sizes, names[0]: n}) for n in range(least, least + 512))


def _range(symbol, bounds, guards: list, traced: int) -> tuple[int, int | None] | None:
    from sympy import Ne

    low, high = int(bounds.lower), int(bounds.upper) if bounds.upper < 2**31 else None
    for guard in guards:
        sides = guard.args
        if not _is_bound(guard):
            return None
        if isinstance(guard, Ne):
            excluded = int(next(side for side in sides if side.is_Integer))
            low = max(low, excluded + 1) if excluded < traced else low
            high = min(excluded - 1, high or excluded) if excluded > traced else high
    if low <= 2:  # which kernels ask for, and any size that a range excludes fails in them
        low = next(n for n in range(3) if all(guard.subs(symbol, m) for guard in guards for m in range(n, 2)))
    return low, high
