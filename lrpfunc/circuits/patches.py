"""Relevance patching: what putting a clean run's values into a corrupted one would restore, node by node, at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lrpfunc.attribution import Target, cotangent, has_batch, record
from lrpfunc.attribution.interpreter import unpack
from lrpfunc.attribution.places import each_named
from lrpfunc.composites import Entries
from lrpfunc.errors import InputError
from lrpfunc.program import Program
from lrpfunc.rules import Flow


def patching(
    fmodel: Program,
    params,
    clean,
    corrupted,
    target: Target,
    rules: Entries,
    at: str | Sequence[str],
) -> dict[str, Tensor]:
    """(clean - corrupted) * c at each named layer: what its clean values would add to the corrupted run's output.

    c is the coefficient of the layer's value in the corrupted run, where that of the explained output is one, so that
    the estimate is in the output's units. Two forward passes, one pullback. With the gradient everywhere,
    `by_kind({"*": rules.gradient()})`, it is attribution patching. Sum over the dimensions that make a node: a head, a
    token, a neuron.

    Args:
        fmodel: a program.
        params: its parameters.
        clean: inputs, as `attribute` takes them.
        corrupted: inputs of the same shapes.
        target: what is explained, as `attribute` takes it: a class, (position, class), or a function output -> R_out.
        rules: a composite, a mapping or a rule, which is for layers: what is no layer keeps its usual rule.
        at: names of layers, as `record` takes them: "*.self_attn:heads", "*.mlp:neurons", "layers.*:residual".

    Errors: those of `record`; `InputError` for runs of different shapes.
    Source: Jafari et al. 2025, arXiv:2508.21258 (relevance patching); Nanda 2023 (attribution patching).

    >>> import lrpfunc, torch
    >>> from lrpfunc import circuits, rules
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 2))
    >>> found = circuits.patching(fmodel, params, torch.ones(1, 2), torch.zeros(1, 2), 0, rules.epsilon(0), at="2")
    >>> bool((found["2"] == model(torch.ones(1, 2)) - model(torch.zeros(1, 2))).all())
    True
    """
    good = record(fmodel, params, clean, rules, at=at)
    bad = record(fmodel, params, corrupted, rules, at=at)
    values, others = good.values, bad.values
    _check_runs(values, others)
    start = Flow(coefficient=cotangent(bad.output, target, has_batch(fmodel)))
    _, coefficients = bad.pull(start, form="coefficient", inputs=False)
    return {
        name: Flow(coefficient=coefficients[name]).relevance(values[name] - value) for name, value in others.items()
    }


def _check_runs(clean: Mapping[str, Tensor], corrupted: Mapping[str, Tensor]) -> None:
    """Errors: `InputError` for values of other shapes, and for integers."""
    for name, value in corrupted.items():
        shape = clean[name].shape
        if shape != value.shape:
            raise InputError(
                f"patching needs runs of the same shapes, but '{name}' is {tuple(shape)} in the clean run and "
                f"{tuple(value.shape)} in the corrupted one."
            )
        if not (value.is_floating_point() or value.is_complex()):
            raise InputError(
                f"'{name}' holds integers, of which no part can be put in: name the layer that reads them."
            )


def patched(fmodel: Program, params, x, values: Mapping[str, Tensor]):
    """The output with the outputs of some layers replaced: true activation patching, the measure of the estimates.

    Args:
        fmodel: a program.
        params: its parameters.
        x: inputs, as `attribute` takes them.
        values: what layers give instead, by name, as `record` takes names; what depends on them is computed anew.

    Errors: `RuleError` for a name that there is not; `InputError` for a value of another shape or dtype, and for two of
    one layer.

    >>> import lrpfunc, torch
    >>> from lrpfunc import circuits
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 2))
    >>> circuits.patched(fmodel, params, torch.ones(4, 2), {"0": -torch.ones(4, 3)}).sum()
    tensor(0.)
    """
    if not isinstance(values, Mapping):
        raise InputError(
            f"what layers give instead must be a mapping of names to tensors, but is {type(values).__name__}."
        )
    replaced = _replaced(fmodel, values)
    found = fmodel.bind(params, unpack(fmodel, x)[0])
    for equation, dead in zip(fmodel.equations, fmodel.last_reads, strict=True):
        fmodel.store(equation, equation.evaluate(found), found)
        for variable in equation.outputs:
            if variable.name in replaced:
                found[variable.name] = _fitting(equation.name, replaced[variable.name], found[variable.name])
        for name in dead:
            del found[name]
    return fmodel.result(found)


def _replaced(fmodel: Program, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is given instead, by variables. Errors: `RuleError`; `InputError` for a layer that is named twice."""
    replaced: dict[str, Tensor] = {}
    for name, places in each_named(fmodel, list(values)).items():
        if any(place in replaced for place in places.values()):
            raise InputError(f"some of {', '.join(map(repr, values))} are one layer: give its value once.")
        replaced |= dict.fromkeys(places.values(), values[name])
    return replaced


def _fitting(name: str, value: Tensor, computed: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != computed.shape or value.dtype != computed.dtype:
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"what '{name}' gives instead must be a tensor {computed.dtype} {tuple(computed.shape)}, but is {got}."
        )
    return value
