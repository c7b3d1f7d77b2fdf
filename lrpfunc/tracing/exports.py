"""What `torch.export` makes of a function: a graph with sizes left open, and for which sizes it holds.

The only user of `torch.export`. A graph is exported with as many open sizes as the model allows; what the model asks
about them is then read off its guards as ranges and equalities, which a program checks when it is called.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.overrides import TorchFunctionMode

from lrpfunc.compat import LOGGERS, Operator, all_sizes_alike, mapped_nodes, recurrent_shapes, tracing_alone
from lrpfunc.errors import LrpError, TraceError
from lrpfunc.operations import row_named
from lrpfunc.program import operator_name
from lrpfunc.tracing.graphs import is_symbolic
from lrpfunc.tracing.refusals import failure
from lrpfunc.tracing.sizes import Ranges, ranges_of, shapes_of_inputs
from lrpfunc.tracing.source_lines import INTERNAL

Axes = tuple[int, ...]  # of one input, along which it may have any size

LOCK = threading.RLock()  # torch.export has state of the process: one thread traces at a time


class Export(NamedTuple):
    """An exported program, the ranges of its open sizes, and those that must agree, by the other's name."""

    program: Any
    ranges: Ranges
    same: Mapping[str, str]


class Front(nn.Module):
    """What `torch.export` sees of a function: tensors in, a list of tensors and sizes out."""

    def __init__(self, function: Callable[[Sequence[Tensor]], list], model: nn.Module | None):
        super().__init__()
        self.function = function
        if model is not None:
            self.model = model

    def forward(self, *tensors):
        try:
            with _untouched(self), torch.fx.traceback.preserve_node_meta(), _Lines():
                return self.function(tensors)
        except Exception as error:
            raise _Failed(error) from error


class _Failed(Exception):
    """What went wrong in an exported function. It takes no `partial_fx_graph`, which torch.export would print."""

    def __init__(self, error: Exception):
        super().__init__(error)
        self.error = error

    def __setattr__(self, name: str, value) -> None:
        if name != "partial_fx_graph":
            super().__setattr__(name, value)


@contextlib.contextmanager
def _untouched(front: nn.Module):
    """Put back all attributes of all modules, some of which forward may assign: the next run finds what this did."""
    before = [(module, dict(vars(module)), _contents(module)) for module in front.modules()]
    try:
        yield
    finally:
        for module, attributes, contents in before:
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)
            for container, content in contents:
                container.clear()
                container.extend(content) if isinstance(container, list) else container.update(content)


def _contents(module: nn.Module) -> list[tuple]:
    return [(value, copy.copy(value)) for value in vars(module).values() if isinstance(value, (dict, list, set))]


class _Lines(TorchFunctionMode):
    """Notes the user's line on each node; torch.export itself notes only lines of functions called `forward`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if torch.compiler.is_dynamo_compiling():  # the branches of torch.cond, say
            return function(*args, **(kwargs or {}))
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(INTERNAL):
            frame = frame.f_back
        torch.fx.traceback.set_stack_trace([f'File "{frame.f_code.co_filename}", line {frame.f_lineno}'])
        return function(*args, **(kwargs or {}))


def exports(front: Front, params: list[Tensor], inputs: list[Tensor], axes: Sequence[Axes] | None) -> Iterator[Export]:
    """Exports with sizes left open along axes of each input where the model allows it, the most first; last with none.

    Without `axes` these are the batch of all inputs that have the first one's batch size, and their sequence length.
    """
    for opened in _attempts(inputs, axes):
        exported = _export_open(front, params, inputs, opened, has_data=axes is None)
        if exported is not None:
            yield exported
    yield Export(_export_once(front, params, inputs, [()] * len(inputs)), {}, {})


def _attempts(inputs: list[Tensor], axes: Sequence[Axes] | None) -> Iterator[list[Axes]]:
    """What to leave open, the most first."""
    if axes is not None:
        yield list(axes)
        return
    batch = next((tensor.shape[0] for tensor in inputs if tensor.dim()), None)
    has_batch = [tensor.dim() > 0 and tensor.shape[0] == batch for tensor in inputs]
    is_sequence = [has and _is_sequence(tensor) for has, tensor in zip(has_batch, inputs, strict=True)]
    lengths = {tensor.shape[1] for tensor, long in zip(inputs, is_sequence, strict=True) if long}
    masks = [has and x.dim() == 2 and x.shape[1] in lengths for has, x in zip(has_batch, inputs, strict=True)]
    is_sequence = [long or mask for long, mask in zip(is_sequence, masks, strict=True)]
    if any(is_sequence):
        yield [(0, 1) if long else (0,) * has for has, long in zip(has_batch, is_sequence, strict=True)]
    yield [(0,) * has for has in has_batch]


def _is_sequence(tensor: Tensor) -> bool:
    """Token ids and their masks, (batch, length), or embeddings, (batch, length, width)."""
    return tensor.dim() == (3 if tensor.is_floating_point() else 2) and tensor.shape[1] > 1


def _export_open(front: Front, params: list[Tensor], inputs: list[Tensor], axes: list[Axes], has_data: bool):
    """The export with open sizes and the ranges of these; None if it fails or no range can say for which it holds."""
    batch = next((tensor.shape[0] for tensor in inputs if tensor.dim()), None)
    while any(axes):
        # A size of one would be baked in, so an example of one sample is traced as two.
        examples = [_two(x) if 0 in opened and batch == 1 else x for x, opened in zip(inputs, axes, strict=True)]
        try:
            exported = _export_once(front, params, examples, axes)
        except Exception:  # whatever is wrong shows again, in plainer words, without dynamic sizes
            return None
        if _is_misled(exported):
            return None
        found = ranges_of(exported, len(inputs))
        if found is None:
            return None
        ranges, same = found
        shapes = shapes_of_inputs(exported, len(inputs))
        stayed = [tuple(a for a in opened if is_symbolic(n[a])) for opened, n in zip(axes, shapes, strict=True)]
        has_batch = [0 in before and 0 not in after for before, after in zip(axes, stayed, strict=True)]
        if batch == 1 and any(has_batch):
            axes = stayed
            continue
        if has_data:
            ranges = {s: _with_one(front, exported, params, examples, same, s, known) for s, known in ranges.items()}
        excludes_example = [s for s, (low, _) in ranges.items() if batch == 1 and low > 1 and _is_batch(shapes, s)]
        if not excludes_example:
            return Export(exported, ranges, same)
        axes = [tuple(axis for axis in opened if axis != 0) for opened in axes]
    return None


def _is_misled(exported) -> bool:
    """Whether torch took what `unbind` gives along an open size for slices that keep their dimension, as 2.15 does."""
    nodes = exported.graph.find_nodes(op="call_function", target=torch.ops.aten.unbind.int)
    return any(part.dim() == node.args[0].meta["val"].dim() for node in nodes for part in node.meta["val"])


def _is_batch(shapes: Sequence[torch.Size], size: str) -> bool:
    return any(len(shape) > 0 and str(shape[0]) == size for shape in shapes)


def _with_one(front: Front, exported, params, examples, same: Mapping[str, str], size: str, range_):
    """The range of a size, down to one if that is excluded without need.

    Models ask whether a size is one to save work (a mask for one token, a repeat for one sample), and what they do for
    more is right for one as well. Whether it is, is seen by doing both, on two inputs that give different outputs.
    """
    low, high = range_
    if low != 2 or any(tensor.is_meta for tensor in (*params, *examples)):
        return range_
    shapes = shapes_of_inputs(exported, len(examples))
    sizes = {size, *(other for other, one in same.items() if one == size)}
    axes = [[axis for axis, n in enumerate(shape) if str(n) in sizes] for shape in shapes]
    # Zeros, as some models begin with, would hide what they are multiplied by.
    changed = {name: _other(p, 2) for name, p in front.named_parameters() if _is_zero(p)}
    state = changed | {name: buffer.clone() for name, buffer in front.named_buffers()}  # which forward might write to
    given = [_other(p, 3) if _is_zero(p) else p for p in params]
    try:
        with torch.no_grad(), _quiet():
            seen = []
            for seed in (0, 1):
                inputs = [_first(_other(x, seed), along) for x, along in zip(examples, axes, strict=True)]
                made = torch.func.functional_call(front, state, (*given, *inputs))
                expected = [leaf for leaf in made if isinstance(leaf, Tensor)]
                found = [leaf for leaf in _evaluated(exported, changed, given, inputs) if isinstance(leaf, Tensor)]
                if not all(map(_agrees, found, expected)) or len(found) != len(expected):
                    return range_
                seen.append(expected)
    except Exception:  # the traced code is not for one
        return range_
    return range_ if all(map(torch.equal, *seen)) else (1, high)


def _other(x: Tensor, seed: int) -> Tensor:
    """A tensor like an example: random numbers, or integers and truth values in its range."""
    if x.is_floating_point():
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(x.shape, generator=generator).to(x)
    if seed == 0 or x.is_complex() or not x.numel():
        return x
    steps = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    return ((x + steps + seed) % (x.max() + 1).clamp(min=1)).to(x.dtype)


def _first(x: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in axes:
        x = x.narrow(axis, 0, 1)
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


def _two(x: Tensor) -> Tensor:
    return x.repeat(2, *[1] * (x.dim() - 1))


def _export_once(front: Front, params: list[Tensor], inputs: list[Tensor], axes: list[Axes]):
    """Errors: `TraceError`, and those that lrpfunc raised on purpose in the function."""
    auto = torch.export.Dim.AUTO
    sizes = (*[None] * len(params), *(dict.fromkeys(opened, auto) if opened else None for opened in axes))
    try:
        with _quiet(), tracing_alone(), torch.no_grad(), all_sizes_alike():
            with recurrent_shapes():
                dynamic = {"tensors": sizes}
                exported = torch.export.export(front, (*params, *inputs), dynamic_shapes=dynamic, strict=False)
            return _without_vmap(exported)
    except Exception as error:
        cause = error.error if isinstance(error, _Failed) else error
        if isinstance(cause, LrpError):
            raise cause from None
        raise TraceError(failure(cause, front.named_modules())) from cause


def _without_vmap(exported):
    """An export with `vmap` written out, as masks of attention are made by it in transformers 4.

    As it is, and so refused later, where a layer is mapped, which becomes several equations; and where torch fails.
    """
    mapped = [node.target for node in mapped_nodes(exported.graph)]
    if not mapped or any(isinstance(f, Operator) and row_named(operator_name(f)).positions for f in mapped):
        return exported
    try:
        return exported.run_decompositions({})
    except Exception:  # of torch, which cannot map along another axis than the first, say
        return exported


@contextlib.contextmanager
def _quiet():
    """Keep what torch logs of a failing export in this thread to itself."""
    thread = threading.get_ident()

    def is_other(record: logging.LogRecord) -> bool:
        return record.thread != thread

    for name in LOGGERS:
        logging.getLogger(name).addFilter(is_other)
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(is_other)
