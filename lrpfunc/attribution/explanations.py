"""Explanations in one call: what people use of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrpfunc.attribution.compiling import Compiled
from lrpfunc.attribution.plans import Plan, laid_out, make_plan
from lrpfunc.attribution.records import Trail, check_chunk_size, recorded
from lrpfunc.attribution.targets import Target
from lrpfunc.composites import Entries
from lrpfunc.operations import InputRange
from lrpfunc.program import Program


def attribute(
    fmodel: Program,
    params,
    x,
    rules: Entries,
    target: Target = None,
    at: str | Sequence[str] | None = None,
    strict: bool = False,
    input_range: InputRange = None,
    checkpoint: int | None = None,
):
    """The relevance of the inputs, in the structure of `x` and in units of the explained output.

    Leaves that relevance cannot reach (integers, masks) come back as zeros; token ids that a table is looked up with
    have relevance, that of their rows.

    Args:
        fmodel, params: a program and its parameters.
        x: one tensor, a tuple of inputs (each a pytree), or a dict by input name for a program traced with keywords.
        rules: a composite, a mapping {name pattern: rule} or one rule for all weighted equations.
        target: None (arg-max), an int, an index tensor, a tuple, a list per sample, or a function output -> relevance.
        at: names of layers at whose outputs relevance is wanted too; the result is then `(relevance, {name: tensor})`.
        strict: whether to refuse equations that fall back to the gradient.
        input_range: what the inputs are known to lie in, (low, high), for all or by the input's name; rules that treat
            signs apart save work where low >= 0.
        checkpoint: in how many segments to run the model; all but the last are run twice, so that the residuals of only
            one are in memory.

    Errors: `ParameterError`, `InputError`, `TargetError`, `RuleError`.

    >>> import lrpfunc, torch
    >>> from lrpfunc import rules
    >>> params, x = {"w": torch.tensor([[2.0, 0.0], [1.0, -1.0]])}, torch.tensor([[1.0, 3.0]])
    >>> fmodel, params = lrpfunc.trace(lambda p, x: torch.nn.functional.linear(x, p["w"]), params, x)
    >>> lrpfunc.attribute(fmodel, params, x, rules.epsilon(0), target=1)  # 1 * 1 and 3 * -1
    tensor([[ 1., -3.]])
    """
    return _attribute(make_plan(fmodel, params, rules, strict, input_range), x, target, at, checkpoint)


def attribute_each(
    fmodel: Program,
    params,
    x,
    rules: Entries,
    targets: Sequence[Target] | Tensor,
    strict: bool = False,
    input_range: InputRange = None,
    chunk_size: int | None = None,
):
    """The relevance for each of several targets: that of `attribute`, with a first dimension for the targets.

    All share one forward pass, and their backward passes are one batch.

    Args:
        fmodel, params, x, rules, strict, input_range: as `attribute` takes them.
        targets: a sequence of what `attribute` takes as target, or an index tensor, (targets,) or (targets, batch).
        chunk_size: how many targets to pull back at once, to save memory; None: all.

    Errors: those of `attribute`; `TargetError` if there is no target.

    >>> import lrpfunc, torch
    >>> from lrpfunc import rules
    >>> params, x = {"w": torch.tensor([[2.0, 0.0], [1.0, -1.0]])}, torch.tensor([[1.0, 3.0]])
    >>> fmodel, params = lrpfunc.trace(lambda p, x: torch.nn.functional.linear(x, p["w"]), params, x)
    >>> lrpfunc.attribute_each(fmodel, params, x, rules.epsilon(0), [0, 1])
    tensor([[[ 2.,  0.]],
    <BLANKLINE>
            [[ 1., -3.]]])
    """
    return _attribute_each(make_plan(fmodel, params, rules, strict, input_range), x, targets, chunk_size)


def vjp(
    fmodel: Program,
    params,
    x,
    rules: Entries,
    strict: bool = False,
    input_range: InputRange = None,
    checkpoint: int | None = None,
) -> tuple[Any, Callable]:
    """The output and a pullback `R_out -> R_x`, as `torch.func.vjp` has them. The pullback may be called again.

    Args:
        fmodel, params, x, rules, strict, input_range, checkpoint: as `attribute` takes them.

    Errors: `ParameterError`, `InputError`, `RuleError`; `TargetError` for an R_out that is not shaped like the output.

    >>> import lrpfunc, torch
    >>> from lrpfunc import rules
    >>> params, x = {"w": torch.tensor([[2.0, 0.0], [1.0, -1.0]])}, torch.tensor([[1.0, 3.0]])
    >>> fmodel, params = lrpfunc.trace(lambda p, x: torch.nn.functional.linear(x, p["w"]), params, x)
    >>> y, pullback = lrpfunc.vjp(fmodel, params, x, rules.epsilon(0))
    >>> y, pullback(y)
    (tensor([[ 2., -2.]]), tensor([[ 3., -3.]]))
    """
    return _vjp(make_plan(fmodel, params, rules, strict, input_range), x, checkpoint)


@dataclass(frozen=True, repr=False)
class Prepared:
    """An explanation that has its parameters; `prepare` and `explainer` make it.

    It is called as `explain(x, target, at, checkpoint)`; `each` explains several targets, `vjp` gives the pullback.

    Args:
        plan: what `prepare` found out.
        compiled: what compiles it, if that was asked for.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 4))
    >>> explain = lrpfunc.explainer(model, torch.ones(1, 2))
    >>> x = torch.randn(8, 2)
    >>> explain(x).shape, explain(x, target=3).shape, explain.each(x, range(4)).shape
    (torch.Size([8, 2]), torch.Size([8, 2]), torch.Size([4, 8, 2]))
    """

    plan: Plan
    compiled: Compiled | None = None

    @property
    def fmodel(self) -> Program:
        """The program that is explained; `print(explain.fmodel)` lists its names."""
        return self.plan.program

    def __call__(self, x, target: Target = None, at: str | Sequence[str] | None = None, checkpoint: int | None = None):
        """The relevance of the inputs; see `attribute`."""
        if self.compiled is not None and checkpoint is None:
            return self.compiled(x, target, at)
        return _attribute(self.plan, x, target, at, checkpoint)

    def record(
        self, x, at: str | Sequence[str] | None = None, checkpoint: int | None = None, once: bool = False
    ) -> Trail:
        """What one forward pass leaves behind; see the function of the same name."""
        return recorded(self.plan, x, at, checkpoint, once=once)

    def vjp(self, x, checkpoint: int | None = None) -> tuple[Any, Callable]:
        """The output and a pullback; see the function of the same name."""
        return _vjp(self.plan, x, checkpoint)

    def each(self, x, targets: Sequence[Target] | Tensor, chunk_size: int | None = None):
        """The relevance for each of several targets; see `attribute_each`."""
        return _attribute_each(self.plan, x, targets, chunk_size)

    def __repr__(self) -> str:
        how = "" if self.compiled is None else f", {self.compiled}"
        return f"Prepared({len(self.plan.steps)} equations, inputs {', '.join(self.plan.program.input_names)}{how})"


def prepare(
    fmodel: Program,
    params,
    rules: Entries,
    strict: bool = False,
    input_range: InputRange = None,
    compile: bool | str = False,
) -> Prepared:
    """An explanation as a function of x: what depends on parameters only (W+, W^2, ...) is computed here, once.

    `explain = prepare(fmodel, params, rules)`; then `explain(x, target, at, checkpoint)` equals `attribute` with the
    same arguments, `explain.vjp(x)` equals `vjp` and `explain.each(x, targets)` equals `attribute_each`. Prepare
    again after parameters were changed in place.

    Args:
        fmodel, params, rules, strict, input_range: as `attribute` takes them.
        compile: whether `explain(x, target, at)` is compiled by torch, by a backend if one is named: once for inputs of
            each shape, which takes minutes, or seconds where torch has it on disk from another process. What it gives
            is the same to rounding. It pays for small networks, of which most of the time is Python's, and on GPUs.

    Errors: `ParameterError`, `RuleError`; `InputError` for an `input_range` that names no input or is none; in use
    `TraceError` where torch cannot compile.

    >>> import lrpfunc, torch
    >>> from lrpfunc import rules
    >>> params, x = {"w": torch.tensor([[2.0, 0.0], [1.0, -1.0]])}, torch.tensor([[1.0, 3.0]])
    >>> fmodel, params = lrpfunc.trace(lambda p, x: torch.nn.functional.linear(x, p["w"]), params, x)
    >>> explain = lrpfunc.prepare(fmodel, params, rules.epsilon(0))
    >>> explain(x, target=0)
    tensor([[2., 0.]])
    """
    return as_prepared(make_plan(fmodel, params, rules, strict, input_range, hoists=True), compile)


def as_prepared(plan: Plan, compile: bool | str = False) -> Prepared:
    """The prepared explanation of a plan."""
    backend = "inductor" if compile is True else compile
    return Prepared(plan, Compiled(plan, _explained, backend) if backend else None)


def _explained(plan: Plan, x, target: Target, at: str | Sequence[str] | None):
    return _attribute(plan, x, target, at, None)


def _attribute(plan: Plan, x, target: Target, at: str | Sequence[str] | None, checkpoint: int | None):
    trail = recorded(plan, x, at, checkpoint, reads_only=True, once=True)
    relevance, inner = trail.pull(target)
    return relevance if at is None else (relevance, inner)


def _vjp(plan: Plan, x, checkpoint: int | None) -> tuple[Any, Callable]:
    trail = recorded(plan, x, None, checkpoint)

    def pullback(relevance):
        return trail.pull(lambda output: relevance)[0]

    return trail.output, pullback


def _attribute_each(plan: Plan, x, targets: Sequence[Target] | Tensor, chunk_size: int | None):
    check_chunk_size(chunk_size)
    return recorded(laid_out(plan), x, None, None).pull_each(targets, chunk_size=chunk_size)[0]
