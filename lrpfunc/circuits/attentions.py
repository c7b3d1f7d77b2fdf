"""Where attention mixes tokens between two streams: the products of matrices in which it does, found in the program.

Of y = a b row j takes c_js from token s, which gives b~_s for it, along a weight W and a vector r of row j alone:

    b = V, whose rows are of tokens       W_js = a_js,  r_j = c_j     the value part
    b = K^T, whose columns are of tokens  W_js = c_js,  r_j = a_j     the key part

where c is the coefficient that arrived at y, W^T r the vector-Jacobian product at b, and W_js (r_j . b~_s) the edge.
Attention as one operation is both, with a softmax that is computed for some rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.attribution.plans import Step
from lrpfunc.attribution.stretches import Stretch
from lrpfunc.operations import ATTENTION, BILINEAR, SOFTMAX, SUM, Facts
from lrpfunc.program import Variable


class NotClosed(Exception):
    """There is no closed form between two streams; the message says why."""


class Term(NamedTuple):
    """Weights (batch, heads, rows, tokens) and vectors (batch, heads, rows, width) of some rows.

    `sizes`: of what is summed up to weights, where it cancels: rounding errors are in proportion to these.
    """

    weights: Tensor
    vectors: Tensor
    sizes: Tensor | None = None


class Mixer(NamedTuple):
    """A step in which rows of upper tokens read lower tokens.

    `site`: the attention that it is of, by its softmax; `columns`: the variables by which tokens are read, and whether
    their last axis but one counts tokens, or the last; `terms`: of some rows and the coefficients there, by column.
    """

    step: Step
    site: str
    columns: Mapping[str, bool]
    terms: Callable[[Stretch, Step, Tensor, Tensor], dict[str, Term]]

    @property
    def output(self) -> str:
        """The variable that it makes."""
        return self.step.equation.outputs[0].name

    def by_tokens(self, column: str, tensor: Tensor, batch: int) -> Tensor:
        """What is of a column's shape as (batch, heads, tokens, width)."""
        laid = by_heads(tensor, batch)
        return laid if self.columns[column] else laid.mT


def by_heads(tensor: Tensor, batch: int) -> Tensor:
    """(batch, heads, rows, columns), in float32 at least. Errors: `NotClosed` for another layout."""
    if tensor.dim() < 3 or tensor.shape[0] % batch or (tensor.dim() > 3 and tensor.shape[0] != batch):
        raise NotClosed(f"attention of shape {tuple(tensor.shape)} is not by samples and heads")
    laid = tensor.reshape(batch, -1, *tensor.shape[-2:])
    return laid.to(torch.promote_types(laid.dtype, torch.float32))


# -- in the program ---------------------------------------------------------------------------------------------------


def mixers(known: Facts, steps: Sequence[Step]) -> list[Mixer]:
    """The steps of a stretch in which attention mixes tokens. Errors: `NotClosed` where it does so twice in a row."""
    ruled = [step for step in steps if step.rule is not None]
    found = [mixer for step in steps for mixer in _of_softmax(known, steps, step)]
    found += [_fused(step) for step in ruled if known.kind_of(step.equation) == ATTENTION]
    outputs = {mixer.output for mixer in found}
    for mixer in found:
        for column in mixer.columns:
            if outputs & made_of(ruled, column):
                raise NotClosed(f"'{mixer.step.equation.name}' attends to tokens that were mixed before")
            if sum(variable.name == column for step in ruled for variable in step.inputs) > 1:
                raise NotClosed(f"'{mixer.step.equation.name}' is not alone in reading its keys or values")
    return found


def made_of(steps: Sequence[Step], variable: str) -> set[str]:
    """The variables that relevance may come to from one, itself among them."""
    reached = {variable}
    for step in reversed(steps):
        if any(made.name in reached for made in step.equation.outputs):
            reached.update(read.name for read in step.inputs)
    return reached


def _fused(step: Step) -> Mixer:
    key, value = step.equation.arguments[1:3]
    active = {variable.name for variable in step.inputs}
    return Mixer(step, step.equation.name, {v.name: True for v in (value, key) if v.name in active}, _of_attention)


def _of_softmax(known: Facts, steps: Sequence[Step], softmax: Step) -> list[Mixer]:
    """The products before and behind a softmax that is written out."""
    if known.kind_of(softmax.equation) != SOFTMAX:
        return []
    scores, pattern = softmax.equation.arguments[0], softmax.equation.outputs[0]
    site = softmax.equation.name
    found = []
    before, behind = _on_the_way(known, steps, scores, True), _on_the_way(known, steps, pattern, False)
    for step in steps:
        if step.rule is None or not _is_matrix_product(known, step):
            continue
        left, right = step.equation.arguments
        if step.equation.outputs[0].name in before:
            found.append(Mixer(step, site, {right.name: False}, _of_product(left, right, is_value=False)))
        elif left.name in behind:
            found.append(Mixer(step, site, {right.name: True}, _of_product(left, right, is_value=True)))
    return found


def _on_the_way(known: Facts, steps: Sequence[Step], start: Variable, to_inputs: bool) -> set[str]:
    """The variables before or behind scores or patterns, to the next products, that have as many rows as these."""
    reached = {start.name} if len(start.shape) > 2 else set()
    for step in reversed(steps) if to_inputs else steps:
        if known.kind_of(step.equation) != BILINEAR:
            sources, ends = step.equation.outputs, step.inputs
            if not to_inputs:
                sources, ends = ends, sources
            if any(variable.name in reached for variable in sources):
                reached.update(end.name for end in ends if len(end.shape) > 2 and _is(end.shape[-2], start.shape[-2]))
    return reached


def _is_matrix_product(known: Facts, step: Step) -> bool:
    """Of two values, (..., rows, inner) and (..., inner, columns)."""
    arguments = step.equation.arguments
    if known.kind_of(step.equation) != BILINEAR or len(arguments) != 2 or min(len(v.shape) for v in arguments) < 3:
        return False
    (*_, rows, inner), (*_, other, columns) = (variable.shape for variable in arguments)
    (*_, first, last) = step.equation.outputs[0].shape
    return _is(inner, other) and _is(rows, first) and _is(columns, last)


def _is(size: int | str, other: int | str) -> bool:
    """Whether two sizes are, or may be, the same: an open one may go by several names."""
    return size == other or (isinstance(size, str) and isinstance(other, str))


def branches(known: Facts, steps: Sequence[Step], upper: str) -> dict[str, str]:
    """What sums x + f(x) add to a stream, f(x), by the name of the equation that makes it."""
    producers = known.program.producers
    shape = producers[upper].outputs[0].shape
    found = {}
    for step in steps:
        if known.kind_of(step.equation) == SUM and len(step.inputs) == 2 and len(step.equation.outputs[0].shape) == 3:
            for one, other in (step.inputs, step.inputs[::-1]):
                if one.name in producers and len(one.shape) == len(shape) and other.name in made_of(steps, one.name):
                    found[producers[one.name].name] = one.name
    return found


# -- of rows ----------------------------------------------------------------------------------------------------------


def _of_product(left: Variable, right: Variable, is_value: bool) -> Callable[..., dict[str, Term]]:
    def terms(stretch: Stretch, step: Step, rows: Tensor, c: Tensor) -> dict[str, Term]:
        a = by_heads(stretch.value(left.name), len(c))[:, :, rows]
        return {right.name: Term(a, c) if is_value else Term(c, a)}

    return terms


def _of_attention(stretch: Stretch, step: Step, rows: Tensor, c: Tensor) -> dict[str, Term]:
    operation, batch = stretch.operation(step), len(c)
    query, key, value, *rest = operation.filled([stretch.value(variable.name) for variable in step.inputs])
    mask, is_causal = rest[0] if rest else None, rest[2] if len(rest) > 2 else False
    scale = operation.keywords.get("scale") or query.shape[-1] ** -0.5
    if mask is not None and mask.dim() == 3 and query.dim() == 3:
        mask = mask.reshape(batch, -1, *mask.shape[-2:])
    query, key, value = (by_heads(tensor, batch) for tensor in (query, key, value))
    query = query[:, :, rows]
    key, value = (spread(tensor, query.shape[1]) for tensor in (key, value))
    weights = _weights(query @ key.mT * scale, rows, mask, is_causal)
    products = weights * (c @ value.mT)
    scores = (products - weights * products.sum(-1, keepdim=True)) * scale
    sizes = (products.abs() + weights * products.abs().sum(-1, keepdim=True)) * scale
    _, key_name, value_name = (argument.name for argument in step.equation.arguments[:3])
    return {value_name: Term(weights, c), key_name: Term(scores, query, sizes)}


def _weights(scores: Tensor, rows: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """The softmax of some rows. What attends to nothing has zeros."""
    if is_causal:
        tokens = torch.arange(scores.shape[-1], device=rows.device)
        scores = scores.masked_fill(tokens > rows[:, None], -torch.inf)
    if mask is not None:
        own = mask[..., rows, :] if mask.shape[-2] > 1 else mask
        scores = scores.masked_fill(own.logical_not(), -torch.inf) if own.dtype == torch.bool else scores + own
    return scores.softmax(-1).masked_fill(scores.amax(-1, keepdim=True) == -torch.inf, 0.0)


def spread(tensor: Tensor, heads: int) -> Tensor:
    """For so many heads, of which several share one."""
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], 1)


def gathered(tensor: Tensor, heads: int) -> Tensor:
    """The transposed of `spread`: the sum over those that share one."""
    batch, count, *others = tensor.shape
    return tensor if count == heads else tensor.reshape(batch, heads, count // heads, *others).sum(2)


def names(found: Collection[Mixer]) -> list[str]:
    """The variables of which values and flows are needed."""
    needed = [name for m in found for name in (m.output, *(variable.name for variable in m.step.inputs))]
    return list(dict.fromkeys(needed))
