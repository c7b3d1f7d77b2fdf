"""What an exported graph makes of other inputs than the example, beside what the function makes of them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from lrpfunc.compat import quiet
from lrpfunc.program import sizes_in
from lrpfunc.tracing.axes import Axes
from lrpfunc.tracing.graphs import draws, writes
from lrpfunc.tracing.sizes import Sizes, hints_of, shapes_of_inputs

FEW = 2  # samples, and tokens, by which something other than the example is told in little time


def with_ones(front: nn.Module, exported, params, examples, sizes: Sizes) -> Sizes:
    """Sizes whose ranges go down to one if that is excluded without need.

    Models ask whether a size is one to save work (a mask for one token, a repeat for one sample), and what they do for
    more is right for one as well. Whether it is, is seen by doing both, on two inputs that give different outputs.
    """
    if any(x.is_meta for x in (*params, *examples)) or any(map(draws, exported.graph.nodes)):
        return sizes
    conditioned = {name for condition in sizes.conditions for name in sizes_in(condition)}
    ranges = dict(sizes.ranges)
    for size, (low, high) in sizes.ranges.items():
        if low == 2 and size not in conditioned and _takes_one(front, exported, params, examples, sizes.same, size):
            ranges[size] = (1, high)
    return sizes._replace(ranges=ranges)


def _takes_one(front: nn.Module, exported, params, examples, same: Mapping[str, str], size: str) -> bool:
    shapes = shapes_of_inputs(exported, len(examples))
    ones = dict.fromkeys([size, *(other for other, one in same.items() if one == size)], 1)
    seen = []
    for seed in (0, 1):
        inputs = [_resized(_other(x, seed), shape, ones) for x, shape in zip(examples, shapes, strict=True)]
        try:
            made = _made_alike(front, exported, params, inputs)
        except Exception:  # the traced code is not for one
            return False
        if made is None:
            return False
        seen.append(made)
    return not all(map(torch.equal, *seen))


def holds_elsewhere(front: nn.Module, exported, params, examples, sizes: Sizes, axes: Sequence[Axes]) -> bool:
    """Whether a graph makes of inputs of other sizes what the function makes of them.

    torch notes what Python decides by a size; but a few functions take the example's size for a number, silently. Along
    these axes that must be seen not to be so. Batches and sequences, of which next to any number is taken, are only
    closed where it is seen to be so.
    """
    shapes = shapes_of_inputs(exported, len(examples))
    hints = hints_of(shapes)
    pairs = zip(shapes, axes, strict=True)
    needed = sorted({str(shape[axis]) for shape, along in pairs for axis in along} & hints.keys())
    every = [name for name, n in hints.items() if n and name not in sizes.same]
    if not every or any(tensor.is_meta for tensor in (*params, *examples)):
        return True
    if any(map(draws, exported.graph.nodes)):
        return not needed
    may_shrink = not needed or all(x.is_floating_point() for x in examples)  # which indices may not
    random = [_other(x, 1) if x.is_floating_point() else x for x in examples]
    least = {name: max(n // 2, 1) if name in needed else min(max(n // 2, 1), FEW) for name, n in hints.items()}
    begins = (least, hints) if may_shrink else (hints,)
    elsewhere = [one for names in (every, needed) if names for one in _elsewhere(sizes, hints, names, begins)]
    for changed, values in itertools.product(elsewhere, (random, examples)):
        along = {other: changed[one] for other, one in sizes.same.items() if one in changed}
        inputs = [_resized(x, shape, changed | along) for x, shape in zip(values, shapes, strict=True)]
        try:
            made = _made_alike(front, exported, params, inputs)
        except Exception:  # no kernel is for this size, or the model for such numbers
            continue
        if made is None or any(tensor.numel() for tensor in made):
            return made is not None
    return not needed


def _elsewhere(
    sizes: Sizes, hints: Mapping[str, int], names: Sequence[str], begins: Sequence[Mapping[str, int]]
) -> Iterator[dict[str, int]]:
    """Other sizes for which a trace should hold, near where the search begins, or multiples; first some of which no two
    change in proportion."""
    steps = range(max(hints[name] for name in names) + 1)
    for begin in begins if len(names) > 1 else ():
        orders = itertools.product(steps, (names, names[::-1]))
        apart = ({name: begin[name] + step * i for i, name in enumerate(order, 1)} for step, order in orders)
        ratios = ((one, {one[name] / hints[name] for name in names}) for one in apart)
        yield from _fitting(sizes, hints, (one for one, seen in ratios if len(seen) == len(names)))
    for begin in begins:
        yield from _fitting(sizes, hints, ({name: begin[name] + step for name in names} for step in steps))
    yield from _fitting(sizes, hints, ({name: hints[name] * factor for name in names} for factor in (2, 3, 4)))


def _fitting(sizes: Sizes, hints: Mapping[str, int], candidates: Iterable[dict[str, int]]) -> Iterator[dict[str, int]]:
    """The first that a trace should hold for, and that differ from the example in every size."""
    fitting = (one for one in candidates if all(n != hints[name] for name, n in one.items()))
    return itertools.islice((one for one in fitting if sizes.hold({**hints, **one})), 1)


def _made_alike(front: nn.Module, exported, params, inputs: Sequence[Tensor]) -> list[Tensor] | None:
    """The tensors that a function makes of inputs, None if the graph makes others; errors are those of either."""
    front, is_written = _apart(front), any(map(writes, exported.graph.nodes))

    def own(x: Tensor) -> Tensor:
        return x.clone() if is_written else x

    # Zeros, as some models begin with, would hide what they are multiplied by.
    known = dict(front.named_parameters())
    changed = {name: _other(p, 2) if _is_zero(p) else p for name, p in known.items() if is_written or _is_zero(p)}
    given = [_other(p, 3) if _is_zero(p) else p for p in params]
    buffers = dict(front.named_buffers())
    with torch.no_grad(), quiet():
        state = {name: own(p) for name, p in changed.items()} | {name: b.clone() for name, b in buffers.items()}
        made = torch.func.functional_call(front, state, tuple(map(own, (*given, *inputs))))
        state = {name: own(p) for name, p in changed.items()}
        evaluated = _evaluated(exported, state, [*map(own, given)], [*map(own, inputs)])
        expected, found = ([leaf for leaf in leaves if isinstance(leaf, Tensor)] for leaves in (made, evaluated))
    return expected if len(found) == len(expected) and all(map(_agrees, found, expected)) else None


def _apart(front: nn.Module) -> nn.Module:
    """The same with a function that notes for itself what it gave: the export's notes are those of open sizes."""
    front = copy.copy(front)
    front.function = copy.copy(front.function)
    return front


def _other(x: Tensor, seed: int) -> Tensor:
    """A tensor like an example: random numbers, or integers and truth values in its range."""
    if x.is_floating_point():
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(x.shape, generator=generator).to(x)
    if seed == 0 or x.is_complex() or not x.numel():
        return x
    steps = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    return ((x + steps + seed) % (x.max() + 1).clamp(min=1)).to(x.dtype)


def _resized(x: Tensor, shape: Sequence, sizes: Mapping[str, int]) -> Tensor:
    """A tensor with other sizes where the symbols of its shape have some: a part of it, or several of it."""
    for axis, n in enumerate(shape):
        size = sizes.get(str(n), x.shape[axis])
        copies = -(-size // x.shape[axis]) if x.shape[axis] else 1
        x = x.repeat([copies if i == axis else 1 for i in range(x.dim())]).narrow(axis, 0, size)
    return x.clone()


def _is_zero(p: Tensor) -> bool:
    return p.is_floating_point() and not p.any()


def _evaluated(exported, changed: Mapping[str, Tensor], params: Sequence[Tensor], inputs: Sequence[Tensor]) -> list:
    """The outputs of an exported graph, without its checks of sizes. `changed`: other values of its parameters."""
    user = iter((*params, *inputs))
    arguments = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            arguments.append(next(user))
        else:
            kept = exported.state_dict.get(spec.target, exported.constants.get(spec.target))
            arguments.append(kept.detach().clone() if spec.kind is InputKind.BUFFER else changed.get(spec.target, kept))
    return list(torch.fx.Interpreter(exported.graph_module).run(*arguments))


def _agrees(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding, in units of the largest value."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not found.is_floating_point():
        return torch.equal(found, expected)
    largest = expected.abs().nan_to_num().max().item() if expected.numel() else 0.0
    limit = largest * torch.finfo(found.dtype).eps * 64
    return torch.allclose(found, expected, rtol=0.0, atol=limit, equal_nan=True)
