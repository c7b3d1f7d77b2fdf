"""What enters along a trail and what edits it on the way, both checked before anything moves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from lrpfunc.attribution.checks import refuse_constant_outputs
from lrpfunc.attribution.interpreter import Edit, Passed, add, at_output
from lrpfunc.attribution.memory import own
from lrpfunc.attribution.places import outputs_named
from lrpfunc.attribution.targets import Target, check_relevance, has_batch, is_class, is_function, real_dtype, seed
from lrpfunc.composites import variables_seen
from lrpfunc.errors import InputError, LrpError, RuleError, TargetError
from lrpfunc.program import NAMESPACE
from lrpfunc.rules import Flow

Edits = Mapping[str, Tensor | float | Callable[[Tensor], Tensor]]


def places_named(passed: Passed, name: Any) -> dict[str, str]:
    """The variables that a name means to a trail: one that it was recorded at, or several by a pattern or a module.

    Errors: `RuleError` for names that there are not, and for layers that it was not recorded at.
    """
    at = passed.at
    if name in at:
        return {name: at[name]}
    if not isinstance(name, str):
        raise RuleError(f"layers go by their names, but got {name!r}.")
    found = outputs_named(passed.plan.program, name)
    recorded = set(at.values())
    if left := [each for each, variable in found.items() if variable not in recorded]:
        raise RuleError(
            f"'{left[0]}' is not among the layers that this trail was recorded at, {', '.join(at) or 'none'}: "
            f"record(..., at={[*at, name]!r})."
        )
    return found


# -- what enters ------------------------------------------------------------------------------------------------------


def flows_entering(passed: Passed, target: Target | Flow | Mapping[str, Any]) -> dict[str, Flow]:
    """The flows that enter, by the variables they enter at.

    Errors: `TargetError` for what does not fit; `RuleError` for names; `InputError` if all outputs are constants.
    """
    program, output = passed.plan.program, passed.output
    if isinstance(target, Mapping) and not _is_of_output(passed, target):
        return _at_layers(passed, target)
    if isinstance(target, Flow):
        form = "relevance" if target.is_relevance else "coefficient"
        return at_output(passed, check_relevance(target.tensor, output, form), target.moved)
    if isinstance(target, Mapping) or (not is_class(target) and _fits(target, output)):
        return at_output(passed, check_relevance(target, output))
    refuse_constant_outputs(program)
    given = own(output) if is_function(target) else output
    return at_output(passed, seed(given, target, has_batch(program)))


def _is_of_output(passed: Passed, target: Mapping) -> bool:
    """Whether a mapping is the relevance of the output, and not of layers. Errors: `TargetError` if it may be both."""
    output = passed.output
    if not target or not isinstance(output, Mapping):
        return False
    layers, is_structured = [name for name in target if _is_layer(passed, name)], _is_structured(target, output)
    if len(layers) < len(target):
        return set(target) <= set(output) and (is_structured or not layers)
    if not is_structured:
        return False
    is_output, is_layers = _fits(target, output), all(_may_enter(passed, name, one) for name, one in target.items())
    if is_output != is_layers or _is_output_itself(passed, target):
        return is_output
    first = next(iter(target))
    shapes = [tuple(passed.values[place].shape) for place in places_named(passed, first).values()]
    raise TargetError(
        f"{', '.join(map(repr, target))}: parts of the output are called so, and layers of this trail as well, and it "
        f"cannot be told which is meant. Of the output, {_shape(output[first])}, give a function, lambda output: "
        f"{{{first!r}: R}}; of layers, {', '.join(map(str, shapes))}, flows, {{{first!r}: lrpfunc.Flow(relevance=R)}}."
    )


def _shape(tree: Any) -> str:
    leaves = optree.tree_leaves(tree, namespace=NAMESPACE)
    return ", ".join(str(tuple(leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor))


def _is_layer(passed: Passed, name: Any) -> bool:
    try:
        return bool(places_named(passed, name))
    except LrpError:
        return False


def _may_enter(passed: Passed, name: str, given: Any) -> bool:
    """Whether something can enter at layers, as far as that can be told without calling it."""
    if isinstance(given, Flow) or is_function(given):
        return True
    values = [passed.values[place] for place in places_named(passed, name).values()]
    return isinstance(given, Tensor) and all(given.shape == value.shape for value in values)


def _is_output_itself(passed: Passed, target: Mapping) -> bool:
    """Whether the layers of these names make the parts of the output of these names, so that both mean the same."""
    parts = passed.plan.program.output
    named = [(parts[name], set(places_named(passed, name).values())) for name in target]
    return all({getattr(part, "name", None)} == places for part, places in named)


def _is_structured(target: Any, output: Any) -> bool:
    structures = [optree.tree_structure(tree, namespace=NAMESPACE) for tree in (target, output)]
    return structures[0] == structures[1]


def _fits(target: Any, output: Any) -> bool:
    """Whether a target is the relevance of the output itself, tensors in its structure."""
    given, structure = optree.tree_flatten(target, namespace=NAMESPACE)
    leaves, expected = optree.tree_flatten(output, namespace=NAMESPACE)
    tensors = [(one, leaf) for one, leaf in zip(given, leaves, strict=False) if isinstance(leaf, Tensor)]
    are_alike = all(isinstance(one, Tensor) and one.shape == leaf.shape for one, leaf in tensors)
    return structure == expected and are_alike and any(one.is_floating_point() for one, _ in tensors)


def _at_layers(passed: Passed, given: Mapping[str, Any]) -> dict[str, Flow]:
    if not given:
        raise TargetError("nothing enters: give the relevance of one layer at least, {name: relevance}.")
    flows: dict[str, Flow] = {}
    for name, one in given.items():
        for layer, place in places_named(passed, name).items():
            add(flows, place, _flow(layer, one, passed.values[place]), passed.values)
    return flows


def _flow(name: str, given: Any, value: Tensor) -> Flow:
    """What enters at a layer of this value."""
    flow = given if isinstance(given, Flow) else None
    if flow is not None and not flow.is_relevance and not (value.is_floating_point() or value.is_complex()):
        raise TargetError(f"'{name}' holds integers, to which nothing is proportional: give Flow(relevance=...).")
    entering = flow.tensor if flow else given(own(value)) if is_function(given) else given
    is_coefficient = flow is not None and not flow.is_relevance
    _check(entering, value, f"what enters at '{name}'", TargetError, is_coefficient)
    return flow.moved(entering) if flow else Flow(relevance=entering)


def _check(given: Any, value: Tensor, who: str, error: type[LrpError], is_coefficient: bool = False) -> None:
    """Refuse what is no relevance or coefficient of a value. Relevance is real, and of ids it is floating-point."""
    if not isinstance(given, Tensor):
        raise error(f"{who} must be a tensor {tuple(value.shape)}, as the value, but is {type(given).__name__}.")
    dtype = value.dtype if is_coefficient else real_dtype(value)
    is_of_ids = not (dtype.is_floating_point or dtype.is_complex)
    if given.shape != value.shape or (not given.is_floating_point() if is_of_ids else given.dtype != dtype):
        needed = "floating-point numbers" if is_of_ids else f"{dtype}, as the value"
        raise error(
            f"{who} must be a tensor {tuple(value.shape)} of {needed}, but is {tuple(given.shape)} of {given.dtype}."
        )
    _check_device(given, value, who)


def _check_device(given: Tensor, value: Tensor, who: str) -> None:
    if given.device != value.device:
        raise InputError(f"{who} must be on {value.device}, as the value, but is on {given.device}.")


# -- what is edited ---------------------------------------------------------------------------------------------------


def edits_named(passed: Passed, edit: Edits | None, entered: Collection[str]) -> dict[str, Edit]:
    """What becomes of what passes, by variables; `entered`: those at which relevance enters.

    Errors: `InputError` for what does not fit, and where no relevance comes; `RuleError` for names.
    """
    if edit is not None and not isinstance(edit, Mapping):
        raise InputError(f"edits are {{name: mask or function}}, but got {type(edit).__name__}.")
    edits: dict[str, Edit] = {}
    names: dict[str, str] = {}
    for name, given in (edit or {}).items():
        for layer, place in places_named(passed, name).items():
            if place in edits:
                raise InputError(f"some of {', '.join(map(repr, edit or {}))} are one layer: edit it once.")
            edits[place], names[place] = _edit(layer, given, passed.values[place]), layer
    if edits:
        assigned = {step.equation.name: step.rule for step in passed.plan.steps if step.rule is not None}
        seen = variables_seen(passed.plan.program, assigned, entered)
        refuse_unseen([layer for place, layer in names.items() if place not in seen])
    return edits


def refuse_unseen(names: Sequence[str]) -> None:
    """Errors: `InputError` for edits that would change nothing."""
    if names:
        raise InputError(
            f"the edit of {', '.join(map(repr, names))} would change nothing: no relevance comes there from where it "
            "enters, as that does not depend on it, or only through what counts as a constant."
        )


def _edit(name: str, given: Any, value: Tensor) -> Edit:
    """What an edit does with a flow and the value it is of."""
    who = f"the edit of '{name}'"
    if is_function(given):

        def mapped(flow: Flow, value: Tensor) -> Flow:
            relevance = flow.relevance(value)
            edited = given(own(relevance))
            _check(edited, value, f"what {who} gives", InputError)
            return Flow(relevance=own(edited))

        return mapped

    if isinstance(given, bool) or not isinstance(given, (Tensor, int, float)):
        raise InputError(f"{who} must be a tensor, a number, or a function of a relevance, but is {given!r}.")
    if isinstance(given, Tensor):
        _check_mask(given, value, who)

    def masked(flow: Flow, value: Tensor) -> Flow:
        return flow.moved(flow.tensor * (given.to(flow.tensor.dtype) if isinstance(given, Tensor) else given))

    return masked


def _check_mask(mask: Tensor, value: Tensor, who: str) -> None:
    if mask.is_complex():
        raise InputError(f"{who} must be real, as relevance is, also where values are complex, but is {mask.dtype}.")
    if _broadcast(mask.shape, value.shape) != value.shape:
        raise InputError(
            f"{who} multiplies what passes there, {tuple(value.shape)}, which a mask {tuple(mask.shape)} would give "
            "another shape."
        )
    _check_device(mask, value, who)


def _broadcast(one: torch.Size, other: torch.Size) -> torch.Size | None:
    try:
        return torch.broadcast_shapes(one, other)
    except RuntimeError:
        return None
