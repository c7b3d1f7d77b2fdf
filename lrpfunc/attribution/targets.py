"""What is to be explained: from a target to the relevance that enters at the output."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, TypeGuard

import numpy as np
import optree
import torch
from torch import Tensor

from lrpfunc.errors import TargetError
from lrpfunc.operations import row_of
from lrpfunc.program import NAMESPACE, PARAMETER, Program, Variable, is_plain

Target = int | Tensor | Sequence | Callable | None


def seed(output: Any, target: Target, has_batch: bool = True) -> Any:
    """The relevance R_out = output * one_hot(target), in the structure of `output` and in units of the logit.

    `target`: None (the arg-max class of each sample), an int, an index tensor (batch,), a tuple for outputs of higher
    rank, a list or range of one per sample, or a function `output -> R_out`. An output of one number per sample is its
    own seed. The output's first dimension is the batch, unless not `has_batch`: then the output is one sample's.
    Errors: `TargetError` for anything out of range, of another shape, or ambiguous. An index tensor whose values are
    not known (under vmap or torch.compile) and that is out of range gives zeros.
    """
    if is_function(target):
        return check_relevance(target(output), output)
    return _marked(output, target, has_batch, lambda logits, chosen: logits * chosen)


def _marked(output: Any, target: Target, has_batch: bool, mark: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """Zeros in the structure of an output, but for what `mark` makes of the logits and of where they are explained."""
    leaves, structure = optree.tree_flatten(output, namespace=NAMESPACE)
    position = _explained(leaves)
    logits = leaves[position]
    chosen = _one_hot(logits, target) if has_batch else _one_hot(logits[None], target)[0]
    marked = [torch.zeros_like(leaf) if isinstance(leaf, Tensor) and leaf is not logits else leaf for leaf in leaves]
    marked[position] = mark(logits, chosen)
    return optree.tree_unflatten(structure, marked)


def cotangent(output: Any, target: Target, has_batch: bool = True) -> Any:
    """One at what a target explains, zero elsewhere, in the structure of `output`: the derivative of what is explained.

    Of a function `output -> R_out` it is the derivative of sum(R_out): of a difference of two logits 1 and -1.
    Errors: those of `seed`; `TargetError` for a function that has no derivative, as what it gives is fixed.
    """
    if not is_function(target):
        return _marked(output, target, has_batch, lambda logits, chosen: chosen.to(logits.dtype))
    leaves, structure = optree.tree_flatten(output, namespace=NAMESPACE)
    places = [place for place, leaf in enumerate(leaves) if _is_differentiable(leaf)]

    def filled(tensors: Sequence[Tensor], others: Sequence) -> Any:
        given = list(others)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        return optree.tree_unflatten(structure, given)

    def explained(*tensors: Tensor) -> tuple[Tensor, Any]:
        relevance = seed(filled(tensors, leaves), target, has_batch)
        return _total(relevance), _differentiable(relevance)

    found: Any = torch.func.vjp(explained, *(leaves[place] for place in places), has_aux=True)
    value, pullback, relevance = found
    derivatives = pullback(torch.ones_like(value))
    if _has_value(relevance, unknown=False) and not _has_value(derivatives, unknown=True):
        raise TargetError(
            "the function given as target has no derivative, as what it gives does not depend on the output: "
            "let it multiply the output, as lambda output: output * mask."
        )
    return filled(derivatives, [torch.zeros_like(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves])


def is_function(target: Target) -> TypeGuard[Callable]:
    """Whether a target is a function `output -> R_out`."""
    return callable(target) and not isinstance(target, Tensor)


def _is_differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _differentiable(tree: Any) -> list[Tensor]:
    return [leaf for leaf in optree.tree_leaves(tree, namespace=NAMESPACE) if _is_differentiable(leaf)]


def _total(relevance: Any) -> Tensor:
    parts = [leaf.real.sum() for leaf in _differentiable(relevance)]
    return sum(parts[1:], start=parts[0])


def _has_value(tree: Any, unknown: bool) -> bool:
    return any(known_any(leaf != 0, unknown) for leaf in _differentiable(tree))


def known_any(flags: Tensor, unknown: bool) -> bool:
    """Whether any of some booleans is true; `unknown` where values are not known, as under vmap or torch.compile."""
    if torch.compiler.is_compiling() or flags.is_meta:
        return unknown
    try:
        return bool(flags.any())
    except RuntimeError:
        return unknown


def has_batch(program: Program) -> bool:
    """Whether an output's first dimension counts samples. Where a program has no open batch, vectors may be logits.

    They are if a layer makes them, through whatever keeps their shape, or if no input has a dimension of their size.
    """
    floating = [v for v in program.output_leaves if isinstance(v, Variable) and v.is_floating]
    if len(floating) != 1 or len(floating[0].shape) != 1 or isinstance(floating[0].shape[0], str):
        return True
    made, size = floating[0], floating[0].shape[0]
    while (maker := program.producers.get(made.name)) is not None:
        values = [v for v in maker.reads if v.is_floating and not v.name.startswith(PARAMETER)]
        if row_of(maker).positions is not None and all(len(v.shape) == 1 for v in values):
            return False
        same = [v for v in values if v.shape == made.shape]
        if not same:
            break
        made = same[0]
    shapes = [leaf.value.shape for leaf in program.input_leaves if isinstance(leaf.value, Variable)]
    return any(size in shape for shape in shapes if len(shape) > 1)


def _explained(leaves: list) -> int:
    floating = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if len(floating) != 1:
        raise TargetError(
            f"the output has {len(floating)} floating-point tensors, so a class does not say what to explain: "
            "give a function as target, output -> relevance of the same structure."
        )
    return floating[0]


def _one_hot(logits: Tensor, target: Target) -> Tensor:
    classes = logits.shape[1:]
    if not classes:
        if target is not None:
            raise TargetError(f"the output has one number per sample, so target must be None, but is {target!r}.")
        return torch.ones_like(logits, dtype=torch.bool)
    if target is None:
        if len(classes) != 1:
            raise TargetError(
                f"the output has shape {tuple(logits.shape)}, of which the arg-max of a sample is no class: "
                "give a tuple of indices, one per dimension after the batch, or a function as target, such as "
                "text.token(None) for the last token of a language model."
            )
        return mark(logits, [logits.argmax(dim=1)])
    if isinstance(target, (np.ndarray, np.generic)) and target.dtype.kind in "iufb":
        target = torch.as_tensor(target)
    if isinstance(target, range):
        target = list(target)
    if isinstance(target, list):
        return mark(logits, _per_sample(logits, target))
    indices = list(target) if isinstance(target, tuple) else [target]
    if len(indices) != len(classes):
        raise TargetError(
            f"target must have {len(classes)} indices for an output of shape {tuple(logits.shape)}, "
            f"but has {len(indices)}."
        )
    return mark(logits, [_index(logits, index, axis) for axis, index in enumerate(indices, start=1)])


def _per_sample(logits: Tensor, target: list) -> list[Tensor]:
    batch, *classes = logits.shape
    if len(target) != batch:
        raise TargetError(f"a list of targets must have one per sample, {batch}, but has {len(target)}.")
    rows = [item if isinstance(item, tuple) else (item,) for item in target]
    for row in rows:
        if len(row) != len(classes) or not all(is_int(i) for i in row):
            raise TargetError(f"each target in a list must be {len(classes)} int(s), but one is {row!r}.")
    columns = [list(column) for column in zip(*rows, strict=True)]
    for axis, column in enumerate(columns, start=1):
        for index in column:
            _check_index(index, logits.shape, axis)
    return [torch.tensor(column, device=logits.device) for column in columns]


def _index(logits: Tensor, index: Any, axis: int) -> Tensor:
    if isinstance(index, Tensor):
        return index_tensor(logits, index, lambda extreme: _check_index(extreme, logits.shape, axis))
    if not is_int(index):
        raise TargetError(
            "a target must be an int, an index tensor, an array, a range, a tuple, a list or a function, "
            f"but is {' '.join(repr(index).split())}."  # an array's repr has several lines
        )
    _check_index(index, logits.shape, axis)
    return torch.full((logits.shape[0],), int(index), device=logits.device)


def index_tensor(logits: Tensor, index: Tensor, check: Callable, name: str = "an index tensor") -> Tensor:
    """An index tensor, 0-d or (batch,), as (batch,) where the logits are; `check` gets its extremes and may raise.

    Errors: `TargetError`, which calls the tensor by its `name`, for another shape or dtype.
    """
    if index.is_floating_point() or index.dtype == torch.bool:
        raise TargetError(f"{name} must hold integers, but is {index.dtype}.")
    if index.dim() and tuple(index.shape) != (logits.shape[0],):
        raise TargetError(f"{name} must have shape ({logits.shape[0]},), but has {tuple(index.shape)}.")
    for extreme in _known_range(index):
        check(extreme)
    return index.to(logits.device, torch.long).expand(logits.shape[0])


def per_sample(name: str, index: Any, logits: Tensor, check: Callable[[int], None]) -> Tensor:
    """An int, a list or a tensor as one index per sample (batch,), each of which `check` gets where it is known.

    Errors: `TargetError`, which calls it by its `name`.
    """
    batch = logits.shape[0]
    if isinstance(index, Tensor):
        return index_tensor(logits, index, check, f"a tensor as {name}")
    listed: Any = [index] * batch if is_int(index) else index
    if not isinstance(listed, (list, tuple)) or not all(is_int(each) for each in listed):
        raise TargetError(f"{name} must be an int, or a list or tensor with one per sample, but is {index!r}.")
    if len(listed) != batch:
        raise TargetError(f"a list as {name} must have one per sample, {batch}, but has {len(listed)}.")
    for each in listed:
        check(each)
    return torch.tensor(listed, dtype=torch.long, device=logits.device)


def _known_range(index: Tensor) -> tuple[int, int]:
    """The extremes of an index tensor; (0, 0) where its values are not known, as under vmap or torch.compile."""
    if torch.compiler.is_compiling() or index.numel() == 0:
        return 0, 0
    try:
        low, high = torch.aminmax(index)
        return int(low), int(high)
    except RuntimeError:
        return 0, 0


def check_class(index: int, size: int) -> None:
    """Errors: `TargetError` for a class that there is not among so many."""
    if not -size <= index < size:
        raise TargetError(f"target {index} is out of range: the output has {size} classes, 0 to {size - 1}.")


def _check_index(index: int, shape: Sequence[int], axis: int) -> None:
    """Errors: `TargetError` for a class, position, row or whatever else an axis of an output counts, and does not have.

    Which one that is no shape tells, so that of several axes the message names the number.
    """
    size = shape[axis]
    if len(shape) == 2:
        check_class(index, size)
    elif not -size <= index < size:
        raise TargetError(
            f"index {index} of the target is out of range: dimension {axis} of the output, {tuple(shape)}, has size "
            f"{size}, 0 to {size - 1}."
        )


def is_int(value: Any) -> bool:
    """Whether it is an int of Python or numpy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_class(target: Any) -> bool:
    """Whether it is a class for sure, or one for each sample: None, an integer or a tensor of integers."""
    if isinstance(target, Tensor):
        return not (target.is_floating_point() or target.is_complex())
    return target is None or is_int(target)


def mark(logits: Tensor, indices: list[Tensor]) -> Tensor:
    """True where all indices of a sample agree, else False: comparisons only, so that it maps over any transform."""
    if logits.dim() == 2 and is_plain(logits, *indices):
        chosen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        return chosen.scatter_(1, indices[0].remainder(logits.shape[1]).unsqueeze(1), True)
    agree = []
    for axis, index in enumerate(indices, start=1):
        size = logits.shape[axis]
        positions = torch.arange(size, device=logits.device)
        if logits.dim() > 2:
            positions = positions.reshape([-1 if a == axis else 1 for a in range(logits.dim())])
        wanted = torch.where(index < 0, index + size, index).reshape([-1] + [1] * (logits.dim() - 1))
        agree.append(positions == wanted)
    return functools.reduce(torch.logical_and, agree).expand(logits.shape)


def real_dtype(value: Tensor) -> torch.dtype:
    """Of the relevance of a value: relevance is real, also where the value is complex."""
    return (value.real if value.is_complex() else value).dtype


def check_relevance(relevance: Any, output: Any, form: str = "relevance") -> Any:
    """The relevance or coefficient of an output, if it has its structure, shapes and dtypes. Errors: `TargetError`."""
    given, structure = optree.tree_flatten(relevance, namespace=NAMESPACE)
    expected, expected_structure = optree.tree_flatten(output, namespace=NAMESPACE)
    if structure != expected_structure:
        raise TargetError(
            f"the {form} of the output must have its structure, {expected_structure}, but has {structure}."
        )
    for got, needed in zip(given, expected, strict=True):
        if not isinstance(needed, Tensor):
            continue
        if not isinstance(got, Tensor) or got.shape != needed.shape:
            shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
            raise TargetError(f"the {form} of the output must have its shape, {tuple(needed.shape)}, but has {shape}.")
        dtype = real_dtype(needed) if form == "relevance" else needed.dtype
        is_of_ids = got.is_floating_point() and not (needed.is_floating_point() or needed.is_complex())
        if got.dtype != dtype and not is_of_ids:
            as_it_is = "as it is" if dtype == needed.dtype else "as it is real also of complex numbers"
            raise TargetError(f"the {form} of the output must be {dtype} {as_it_is}, but is {got.dtype}.")
    return relevance
