"""What is checked of a call and of a rule while an explanation is made."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import optree
import torch
from torch import Tensor

from lrpfunc.errors import InputError, ParameterError, RuleError
from lrpfunc.operations import CONVOLUTION, facts
from lrpfunc.program import NAMESPACE, PARAMETER, Equation, Program, Variable, is_plain
from lrpfunc.rules import Flow

INSIDE = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(torch.__file__).parent))

BROADER = (  # the way out where float16 does not suffice
    "Cast inputs and params to bfloat16 or float32: "
    "optree.tree_map(lambda p: p.bfloat16() if p.is_floating_point() else p, params)."
)

# -- of a call --------------------------------------------------------------------------------------------------------


def refuse_other_inputs(program: Program) -> None:
    """Relevance must be able to arrive: at an input of real or complex numbers, or at ids. Errors: `InputError`."""
    active = facts(program).active
    if not any(isinstance(leaf.value, Variable) and leaf.value.name in active for leaf in program.input_leaves):
        raise InputError(
            "relevance needs a floating-point input, or token ids that go to an embedding, but all inputs are integers "
            "that go elsewhere. Trace the model from its embeddings (inputs_embeds), or cast the input if it is data."
        )


def refuse_constant_outputs(program: Program) -> None:
    """Relevance must be able to enter: at an output that is no constant. Errors: `InputError`."""
    active = facts(program).active
    if not any(isinstance(v, Variable) and v.name in active for v in program.output_leaves):
        raise InputError(
            "no relevance can flow: no output depends on an input through what has a derivative. Comparisons, arg-max, "
            "step functions such as sign and floor, and detach are constants."
        )


def refuse_convolved_shards(program: Program, values: Mapping[str, Tensor]) -> None:
    """Torch's DTensor lets each process convolve its part, and takes the results for those of the whole.

    What is split by samples, or whole everywhere, it convolves rightly. Errors: `ParameterError`.
    """
    parameters = {variable.name for variable in program.parameters.values()}
    shards = [
        name
        for name, value in values.items()
        for placement in getattr(value, "placements", ())
        if not (placement.is_replicate() or (name not in parameters and placement.is_shard(0)))
    ]
    if shards and any(facts(program).kind_of(equation) == CONVOLUTION for equation in program.equations):
        raise ParameterError(
            f"'{shards[0].removeprefix(PARAMETER)}' is sharded, and torch's DTensor computes convolutions of shards "
            "wrongly: replicate all parameters, and split inputs by samples at most (Shard(0))."
        )


def check_ranges(program: Program, stated: Mapping[str, tuple[float, float]], inputs: tuple) -> None:
    """What was stated of the inputs, where it can be seen."""
    if not stated:
        return
    leaves = optree.tree_leaves(inputs, namespace=NAMESPACE)
    for leaf, value in zip(program.input_leaves, leaves, strict=True):
        if leaf.label in stated and is_plain(value) and value.numel() and not value.is_meta:
            low, high = stated[leaf.label]
            smallest, largest = value.min().item(), value.max().item()
            if not (low <= smallest and largest <= high):
                raise InputError(
                    f"input_range says that '{leaf.label}' lies in {low:g} to {high:g}, "
                    f"but it goes from {smallest:g} to {largest:g}."
                )


def checked_range(relevance: Tensor) -> Tensor:
    """A relevance in half precision, if it did not overflow, where that can be seen. Errors: `InputError`."""
    can_be_seen = relevance.dtype == torch.float16 and is_plain(relevance) and not relevance.is_meta
    if can_be_seen and not relevance.isfinite().all():
        raise InputError(f"relevance overflowed in float16, which ends at 65504. {BROADER}")
    return relevance


# -- of a rule --------------------------------------------------------------------------------------------------------


def checked_pair(result) -> tuple:
    """What a rule's forward returned, if it is a pair. Errors: `RuleError`."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise RuleError(f"forward must return (output, residuals), but returned {type(result).__name__}.")
    return result


def check_outputs(equation: Equation, outputs: Sequence) -> None:
    """Refuse outputs of another shape than the equation's. Errors: `RuleError`."""
    for variable, output in zip(equation.outputs, outputs, strict=True):
        shape: Sequence[int] = output.shape if isinstance(output, Tensor) else ()
        is_right = len(shape) == len(variable.shape)
        for traced, size in zip(variable.shape, shape, strict=False):  # a loop: a generator takes twice as long
            if traced != size and isinstance(traced, int):
                is_right = False
        if not is_right:
            shape = tuple(shape)
            raise RuleError(f"forward must return the equation's output, of shape {variable}, but returned {shape}.")


def checked_flows(who: str, moved, shapes: Sequence[torch.Size]) -> list[Flow | None]:
    """What a rule's backward returned as one flow (or None) for each input, of its shape."""
    flows = list(moved) if isinstance(moved, (tuple, list)) else [moved]
    if len(flows) != len(shapes):
        raise RuleError(f"{who} must return {len(shapes)} flow(s), one per input, but returned {len(flows)}.")
    for needed, flow in zip(shapes, flows, strict=True):
        if flow is None:
            continue
        if not isinstance(flow, Flow):
            kind = type(flow).__name__
            raise RuleError(f"{who} must return Flow(relevance=...) or Flow(coefficient=...), but returned {kind}.")
        if flow.shape != needed:
            raise RuleError(
                f"{who} must return the shape of its input, {tuple(needed)}, but returned {tuple(flow.shape)}."
            )
    return flows


# -- of a result ------------------------------------------------------------------------------------------------------


def warn(message: str) -> None:
    """Warn at the line that called lrpfunc, whatever of torch's transforms lies between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
