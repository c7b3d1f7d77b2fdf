"""What a model shows: its equations, how many of them have a rule, and how much relevance arrives."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn

import lrpfunc
from lrpfunc import composites
from lrpfunc.operations import MOVEMENT, Facts, facts, row_of
from lrpfunc.program import Equation, Program, Variable

# Whatever relevance comes to by any of these must have a rule.
EXAMINED = {"attn_lrp": composites.attn_lrp(), "cp_lrp": composites.cp_lrp(), "epsilon_plus": composites.epsilon_plus()}
CONSERVES = EXAMINED["cp_lrp"]
LOST = 1e-6  # of the relevance that passes an operation, by its size: more than rounding takes


class Model(NamedTuple):
    """A model of a library. `make` gives it, in float64, and what it is called with, by the names of its arguments."""

    library: str
    name: str
    make: Callable[[], tuple[nn.Module, Mapping[str, Tensor]]]

    @property
    def title(self) -> str:
        return f"{self.library}/{self.name}"


class Row(NamedTuple):
    """One model's line.

    `equations`: that relevance may come to. `fallbacks`: operations that are left to the gradient, and how many
    equations of each. `total`: what arrives at the inputs by CP-LRP, over the explained output, where all that is added
    whatever the input (biases, positions, class tokens, shifts) is replaced by zeros: one, unless a rule loses
    something or relevance of both signs grows until rounding is more than the output, and not a number if the output
    is zero then. `lost`: the operation that loses or adds most of what passes it. `grown`: the size of all relevance
    where that is largest, over the output, if nothing else explains a total that is not one. `error`: why there is
    nothing else to show.
    """

    title: str
    equations: int = 0
    fallbacks: Mapping[str, int] = {}
    total: float = float("nan")
    lost: str = ""
    grown: float = 0.0
    seconds: float = 0.0
    error: str = ""

    @property
    def percent(self) -> float:
        """Of the equations that have a rule, to a tenth; 100 for no fewer than all."""
        if not self.equations:
            return 0.0
        missing = sum(self.fallbacks.values())
        return min(round(100 * (1 - missing / self.equations), 1), 99.9) if missing else 100.0


def examined(model: Model) -> Row:
    """Trace a model, count what has a rule, explain it by all composites, and see how much relevance arrives."""
    start = time.perf_counter()
    row = Row(model.title)
    try:
        module, x = model.make()
        fmodel, params = lrpfunc.functionalize(module.requires_grad_(False), **x)
        equations, fallbacks = covered(fmodel)
        row = row._replace(equations=equations, fallbacks=fallbacks)
        for name, composite in EXAMINED.items():
            _check(name, lrpfunc.attribute(fmodel, params, x, composite))
        row = row._replace(**conserved(fmodel, params, x))
    except Exception as error:  # a row says so, and the others go on
        row = row._replace(error=f"{type(error).__name__}: {error}".splitlines()[0])
    return row._replace(seconds=time.perf_counter() - start)


def _check(composite: str, relevance: Mapping[str, Tensor]) -> None:
    values = [value for value in relevance.values() if value is not None]
    if not all(value.isfinite().all() for value in values):
        raise ArithmeticError(f"relevance by {composite} is not finite")
    if not any(value.any() for value in values):
        raise ArithmeticError(f"no relevance by {composite}")


def covered(fmodel: Program) -> tuple[int, dict[str, int]]:
    """The number of all equations, and what has no rule under some composite: how many of each operation."""
    left: dict[str, str] = {}
    count = 0
    for composite in EXAMINED.values():
        rows = lrpfunc.explain(fmodel, composite).rows
        count = len(rows)
        left |= {name: operator for mark, name, _, operator, *_ in rows if mark}
    return count, dict(Counter(left.values()))


# -- conservation -----------------------------------------------------------------------------------------------------


def conserved(fmodel: Program, params, x: Mapping[str, Tensor]) -> dict[str, Any]:
    """`total`, `lost` and `grown` of a row, of the program without constants.

    Not a number where nothing is left of the output, as where all that a model reads is a class token.
    """
    bare = without_constants(fmodel)
    logits = bare(params, **x)
    if not logits.any():
        return {}
    target = int(logits[0].abs().argmax())
    relevance = lrpfunc.attribute(bare, params, x, CONSERVES, target)
    arrived = sum(value.sum() for value in relevance.values() if value is not None)
    total = float(arrived / logits[:, target].sum())
    if abs(total - 1) < LOST:
        return {"total": total}
    absorbed = {e.name: abs(float(e.absorbed)) for e in lrpfunc.ledger(bare, params, x, CONSERVES, target).entries}
    _, passed = lrpfunc.record(bare, params, x, CONSERVES, at=list(absorbed)).pull(target)
    sizes = {name: sum(float(R.abs().sum()) for R in optree.tree_leaves(passed[name])) for name in absorbed}
    shares = {name: absorbed[name] / size if size else 0.0 for name, size in sizes.items()}
    most = max(shares, key=shares.__getitem__)
    if shares[most] < LOST:
        return {"total": total, "grown": max(sizes.values()) / float(logits[:, target].sum().abs())}
    operators = {equation.name: equation.operator for equation in bare.equations}
    return {"total": total, "lost": f"{operators[most]} '{most}'"}


def without_constants(fmodel: Program) -> Program:
    """A program with zeros in place of all that is added whatever the input where relevance comes by."""
    reached, known = composites.assign(fmodel, CONSERVES), facts(fmodel)
    equations: list[Equation] = []
    for equation in fmodel.equations:
        if equation.name in reached:
            *zeros, equation = _without_terms(known, equation)
            equations += zeros
        equations.append(equation)
    return fmodel.replace(equations=tuple(equations))


# Where normalizations have what they add: biases and means.
ADDED = {"layer_norm": (3,), "group_norm": (3,), **dict.fromkeys(("batch_norm", "frozen_batch_norm"), (2, 3))}


def _without_terms(known: Facts, equation: Equation) -> Iterator[Equation]:
    """Zeros of the size of each constant that an equation adds, and the equation with these."""
    row = row_of(equation)
    positions = ADDED.get(equation.operator, ())
    if row.positions is not None and row.positions.bias is not None:
        positions = (row.positions.bias,)
    if row.shifts:
        positions = (0, 1)
    if known.kind_of(equation) == MOVEMENT:
        positions = tuple(range(len(equation.arguments)))
    names = iter(f"{equation.outputs[0].name}.zeros.{number}" for number in range(99))
    zeros: list[Equation] = []

    def zero(value):
        if isinstance(value, (list, tuple)):
            return type(value)([zero(item) for item in value])
        if not isinstance(value, Variable) or not value.is_differentiable or value.name in known.active:
            return 0 if row.shifts and isinstance(value, (int, float)) else value
        name = next(names)
        made = Variable(name, value.shape, value.dtype)
        zeros.append(Equation(name, torch.ops.aten.zeros_like.default, (value,), {}, (made,)))
        return made

    arguments = tuple(zero(v) if position in positions else v for position, v in enumerate(equation.arguments))
    yield from zeros
    yield replace(equation, arguments=arguments)
