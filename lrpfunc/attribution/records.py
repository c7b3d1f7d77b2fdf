"""One forward pass under rules, and relevance from anywhere to anywhere after it: `record`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optree
import torch
from torch import Tensor

from lrpfunc.attribution.checks import warn
from lrpfunc.attribution.interpreter import (
    Edit,
    Passed,
    at_inputs,
    backward,
    forward,
    no_relevance,
)
from lrpfunc.attribution.memory import apart, contiguous, own
from lrpfunc.attribution.places import outputs_named
from lrpfunc.attribution.plans import Plan, make_plan, opened
from lrpfunc.attribution.seeds import Edits, edits_named, flows_entering, refuse_unseen
from lrpfunc.attribution.targets import Target
from lrpfunc.compat import register_pytree
from lrpfunc.composites import Entries
from lrpfunc.errors import InputError, RuleError, TargetError
from lrpfunc.operations import InputRange
from lrpfunc.program import NAMESPACE, Program, refilled
from lrpfunc.rules import Flow, stabilizer

RELEVANCE, COEFFICIENT = "relevance", "coefficient"
FORMS = (RELEVANCE, COEFFICIENT)


def record(
    fmodel: Program,
    params,
    x,
    rules: Entries,
    at: str | Sequence[str] | None = None,
    strict: bool = False,
    input_range: InputRange = None,
    checkpoint: int | None = None,
    once: bool = False,
) -> Trail:
    """One forward pass under rules, and what it leaves behind: relevance can then be pulled from anywhere to anywhere.

    Args:
        fmodel, params, x, rules, strict, input_range, checkpoint: as `attribute` takes them.
        at: names of the layers at whose outputs relevance enters, is edited, or is wanted: a name, a module's path
            (its last equation), or a pattern with wildcards, as `by_name` takes it. Of what is called more than once
            all calls are meant, "act:0", "act:1", ..., each of which may be named alone.
        once: whether it is pulled but once, and may be used up by that, which takes less memory. Copies are used up
            with it.

    Errors: `ParameterError`, `InputError`, `RuleError`.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 4))
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 2))
    >>> trail = lrpfunc.record(fmodel, params, torch.randn(5, 2), lrpfunc.rules.epsilon(), at="1")
    >>> relevance, inner = trail.pull(target=3)
    >>> relevance.shape, inner["1"].shape, trail.values["1"].shape
    (torch.Size([5, 2]), torch.Size([5, 3]), torch.Size([5, 3]))
    >>> below, _ = trail.pull({"1": inner["1"]})  # what arrived there, sent on from there
    >>> torch.testing.assert_close(below, relevance)
    """
    return recorded(make_plan(fmodel, params, rules, strict, input_range), x, at, checkpoint, once=once)


def recorded(
    plan: Plan, x, at: str | Sequence[str] | None, checkpoint: int | None, reads_only: bool = False, once: bool = False
) -> Trail:
    """The trail of a plan. `reads_only`: at inner layers relevance is only looked at, and it is pulled at once; `once`:
    it is pulled once."""
    places = {} if at is None else outputs_named(plan.program, at)
    if not reads_only:
        plan = opened(plan, frozenset(places.values()))
    return Trail(forward(plan, x, places, checkpoint, is_final=once, is_watched=not reads_only))


def followed(plan: Plan, x, names: Iterable[str], target: Any) -> tuple[Mapping[str, Any], dict[str, Flow]]:
    """The values of variables and, of a target that is pulled to the inputs, what arrived at them."""
    passed = forward(plan, x, {name: name for name in names}, None, is_final=True)
    flows, inner = backward(passed, flows_entering(passed, target), {})
    return passed.values, flows | {name: flow for name, flow in inner.items() if flow is not None}


class Trail:
    """What a forward pass under rules left behind; `record` makes it, `pull` and `pull_each` follow it back.

    It is a pytree of tensors, so that it may leave and enter functions that torch transforms. What it hands out are
    copies, which may be written over; inputs and parameters may not, as long as it is pulled.

    Args:
        passed: what `record` found.

    >>> import lrpfunc, torch
    >>> fmodel, params = lrpfunc.functionalize(torch.nn.Linear(2, 3), torch.ones(1, 2))
    >>> trail = lrpfunc.record(fmodel, params, torch.randn(5, 2), lrpfunc.rules.epsilon())
    >>> trail
    Trail(output (5, 3), at nothing)
    """

    def __init__(self, passed: Any):
        self._passed = passed

    @property
    def output(self) -> Any:
        """The model's output, a copy."""
        return own(self._passed.output)

    @property
    def values(self) -> dict[str, Tensor]:
        """The outputs of the layers that `at` names; copies, made anew whenever they are asked for."""
        return {name: own(self._passed.values[variable]) for name, variable in self._passed.at.items()}

    def pull(
        self,
        target: Target | Flow | Mapping[str, Any] = None,
        form: str = RELEVANCE,
        edit: Edits | None = None,
        inputs: bool = True,
    ) -> tuple[Any, dict[str, Tensor]]:
        """The relevance of the inputs, in their structure, and of the layers that `at` names.

        Args:
            target: what enters: any target that `attribute` takes; the relevance of the output, a pytree like it, or a
                `Flow` of one; or {name: relevance} at layers that `at` names, several at once. There, too, a function
                of the value or a `Flow` may stand for the relevance. A pattern, or a module that is called more than
                once, stands for all of its layers. Relevance is real; at complex values it does not say the phase of
                the coefficient, for which there is Flow(coefficient=...).
            form: "relevance", or "coefficient": c with R = value * c, for which nothing is divided. Where a rule gives
                relevance only, it is divided by the stabilized value, with a warning that names the place. Integers,
                such as token ids, have no coefficient, and are given their relevance.
            edit: what becomes of what passes at layers that `at` names, what entered there included: a tensor or a
                number multiplies it, a function maps relevance to relevance. What is returned for the layer is edited.
                Names are as in `target`.
            inputs: whether the inputs' is wanted; None stands for it otherwise.

        Errors: `TargetError`; `RuleError` for names; `InputError` for edits that do not fit, or that no relevance
        comes to, if the trail was used up, and if inputs or parameters were written to since. What is refused before a
        function of `edit` is called uses nothing up.
        """
        _check_form(form)
        self._passed.refuse_spent()
        entering = flows_entering(self._passed, target)
        edits = edits_named(self._passed, edit, entering)
        return self._finished(self._pulled(entering, edits), form, inputs, entering)

    def pull_each(
        self,
        targets: Sequence | Tensor,
        form: str = RELEVANCE,
        edit: Edits | None = None,
        chunk_size: int | None = None,
        inputs: bool = True,
    ) -> tuple[Any, dict[str, Tensor]]:
        """As `pull` for each of several targets, all in one batch: the results have a first dimension for the targets.

        Args:
            targets: a sequence of what `pull` takes as target, all of one kind, or an index tensor.
            form: as `pull` takes it.
            edit: as `pull` takes it; the same for all targets.
            chunk_size: how many targets to pull back at once, to save memory; None: all.
            inputs: as `pull` takes it.

        Errors: those of `pull`; `TargetError` if there is no target, or targets enter at different places;
        `InputError` for several chunks of a trail for one pull.
        """
        _check_form(form)
        check_chunk_size(chunk_size)
        self._passed.refuse_spent()
        entering = [flows_entering(self._passed, target) for target in several(targets)]
        places = {place: flow.is_relevance for place, flow in entering[0].items()}
        if any({place: flow.is_relevance for place, flow in each.items()} != places for each in entering):
            raise TargetError("targets of one batch must enter at the same layers: pull the others by themselves.")
        self._refuse_chunks(len(entering), chunk_size)
        edits = edits_named(self._passed, edit, places)
        template: list[Any] = []

        def back(*tensors):  # vmap takes and gives nothing but tensors
            flows = {name: entering[0][name].moved(one) for name, one in zip(places, tensors, strict=True)}
            found = self._finished(self._pulled(flows, edits), form, inputs, flows)
            template[:] = [found]
            return tuple(leaf for leaf in optree.tree_leaves(found, namespace=NAMESPACE) if isinstance(leaf, Tensor))

        stacked = [torch.stack([each[place].tensor for each in entering]) for place in places]
        moved = torch.func.vmap(back, chunk_size=chunk_size)(*stacked)
        return contiguous(refilled(template[0], moved))

    def _refuse_chunks(self, count: int, chunk_size: int | None) -> None:
        """Errors: `InputError` where several pulls are needed and there is one."""
        if self._passed.use is not None and chunk_size is not None and chunk_size < count:
            raise InputError(
                f"this trail was made for one pull, but {count} targets are several, {chunk_size} at once: leave "
                "chunk_size out, or record without once."
            )

    def _pulled(self, entering: Mapping[str, Flow], edits: Mapping[str, Edit]) -> tuple[dict, dict]:
        """What arrives at the inputs and inside, by variables. Errors: `InputError` for edits where nothing passed."""
        flows, inner = backward(self._passed, entering, edits)
        refuse_unseen([name for name, place in self._passed.at.items() if place in edits and inner[place] is None])
        return flows, inner

    def _finished(
        self, found: tuple[dict, dict], form: str, inputs: bool, entered: Mapping[str, Flow]
    ) -> tuple[Any, dict[str, Tensor]]:
        """Flows as what was asked for, none of which shows memory of what entered or what the trail keeps."""
        flows, inner = found
        read = _as_relevance if form == RELEVANCE else _as_coefficient
        passed = self._passed
        kept = {name: contiguous(read(name, inner[v], passed.values[v])) for name, v in passed.at.items()}
        results = (at_inputs(passed, flows, read) if inputs else None), kept
        entering = [flow.tensor for flow in entered.values()]
        return apart(results, (passed.inputs, passed.output, passed.values, entering))

    def __repr__(self) -> str:
        leaves = optree.tree_leaves(self._passed.output, namespace=NAMESPACE)
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor))
        return f"Trail(output {shapes}, at {', '.join(self._passed.at) or 'nothing'})"


class _Frame:
    """A trail without its tensors. Frames are alike that have room for as many tensors of one explanation."""

    def __init__(self, passed: Passed, structure: Any, others: list):
        self.passed, self.structure, self.others = passed, structure, others

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Frame):
            return False
        return self.passed.plan.program is other.passed.plan.program and len(self.others) == len(other.others)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Frame({len(self.others)} leaves)"


class _Filled(NamedTuple):
    """A frame with something else than tensors in it, as torch fills it to see its structure."""

    content: list
    frame: _Frame


def _taken_apart(trail: Trail) -> tuple[list, _Frame]:
    passed = trail._passed
    if isinstance(passed, _Filled):
        return passed
    leaves, structure = optree.tree_flatten(passed.content(), namespace=NAMESPACE)
    others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], _Frame(passed, structure, others)


def _put_together(tensors: Iterable, frame: _Frame) -> Trail:
    content = list(tensors)
    if not all(isinstance(one, Tensor) for one in content):
        return Trail(_Filled(content, frame))
    filled = iter(content)
    leaves = [next(filled) if other is None else other for other in frame.others]
    return Trail(frame.passed.with_content(optree.tree_unflatten(frame.structure, leaves)))


register_pytree(Trail, _taken_apart, _put_together)

# -- what enters and what comes out -----------------------------------------------------------------------------------


def several(targets: Sequence | Tensor) -> list:
    """Targets one by one. Errors: `TargetError` if there are none."""
    is_tensor = isinstance(targets, (Tensor, np.ndarray)) and targets.ndim > 0
    is_sequence = isinstance(targets, Sequence) and not isinstance(targets, (str, bytes))
    listed = list(targets) if is_tensor or is_sequence else []
    if not listed:
        raise TargetError(f"targets must be a sequence of at least one target or an index tensor, but is {targets!r}.")
    return listed


def check_chunk_size(chunk_size: int | None) -> None:
    """Errors: `TargetError` for what is no number of targets."""
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise TargetError(f"chunk_size must be a number of targets >= 1, but is {chunk_size!r}.")


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise RuleError(f"form must be {' or '.join(map(repr, FORMS))}, but is {form!r}.")


def _as_relevance(name: str, flow: Flow | None, value: Tensor) -> Tensor:
    return no_relevance(value) if flow is None else flow.relevance(value)


def _as_coefficient(name: str, flow: Flow | None, value: Tensor) -> Tensor:
    if flow is None:
        return torch.zeros_like(value)
    if not value.is_floating_point() and not value.is_complex():
        return flow.relevance(value)  # a token's number is a name, to which nothing is proportional
    if flow.is_relevance and not torch.compiler.is_compiling():
        warn(
            f"at '{name}' only a relevance is known, as a rule above it shares whatever the value is, or relevance "
            "entered or was edited there: it was divided by the stabilized value."
        )
    return flow.coefficient(value, stabilizer(1e-6), as_it_is=True)
