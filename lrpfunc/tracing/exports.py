"""What `torch.export` makes of a function: a graph with sizes left open, and for which sizes it holds.

The only user of `torch.export`. A graph is exported with as many open sizes as the model allows; what the model asks
about them is then read off its guards as ranges and equalities, which a program checks when it is called.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.overrides import TorchFunctionMode

from lrpfunc.errors import LrpError, TraceError
from lrpfunc.tracing.graphs import is_symbolic
from lrpfunc.tracing.source_lines import INTERNAL, TORCH, source_line

Axes = tuple[int, ...]  # of one input, along which it may have any size
Ranges = dict[str, tuple[int, int | None]]  # by symbolic size


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
        with torch.fx.traceback.preserve_node_meta(), _Lines():
            return self.function(tensors)


class _Lines(TorchFunctionMode):
    """Notes the user's line on each node; torch.export itself notes only lines of functions called `forward`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(INTERNAL):
            frame = frame.f_back
        torch.fx.traceback.set_stack_trace([f'File "{frame.f_code.co_filename}", line {frame.f_lineno}'])
        return function(*args, **(kwargs or {}))


def export(front: Front, params: list[Tensor], inputs: list[Tensor], axes: Sequence[Axes] | None) -> Export:
    """Export with sizes left open along axes of each input where the model allows it, else with those given.

    Without `axes` these are the batch of all inputs that have the first one's batch size, and their sequence length.
    """
    for opened in _attempts(inputs, axes):
        exported = _export_open(front, params, inputs, opened, has_data=axes is None)
        if exported is not None:
            return exported
    try:
        return Export(_export_once(front, params, inputs, [()] * len(inputs)), {}, {})
    except LrpError:
        raise
    except Exception as error:
        raise TraceError(_explain_failure(error)) from error


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
        # A size of one would be taken for a constant, so an example of one sample is traced as two.
        examples = [_two(x) if 0 in opened and batch == 1 else x for x, opened in zip(inputs, axes, strict=True)]
        try:
            exported = _export_once(front, params, examples, axes)
        except Exception:  # whatever is wrong shows again, in plainer words, without dynamic sizes
            return None
        found = _ranges(exported, len(inputs))
        if found is None:
            return None
        ranges, same = found
        shapes = _shapes(exported, len(inputs))
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
    shapes = _shapes(exported, len(examples))
    sizes = {size, *(other for other, one in same.items() if one == size)}
    axes = [[axis for axis, n in enumerate(shape) if str(n) in sizes] for shape in shapes]
    # Zeros, as some models begin with, would hide what they are multiplied by.
    own = {name: _other(p, 2) for name, p in front.named_parameters() if _is_zero(p)}
    state = own | {name: buffer.clone() for name, buffer in front.named_buffers()}  # which forward might write to
    given = [_other(p, 3) if _is_zero(p) else p for p in params]
    try:
        with torch.no_grad(), _quiet():
            seen = []
            for seed in (0, 1):
                inputs = [_first(_other(x, seed), along) for x, along in zip(examples, axes, strict=True)]
                made = torch.func.functional_call(front, state, (*given, *inputs))
                expected = [leaf for leaf in made if isinstance(leaf, Tensor)]
                found = [leaf for leaf in _run(exported, own, given, inputs) if isinstance(leaf, Tensor)]
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


def _run(exported, own: Mapping[str, Tensor], params: Sequence[Tensor], inputs: Sequence[Tensor]) -> list:
    """The outputs of an exported graph, whose own checks of sizes it does without. `own`: other parameters of its."""
    user = iter((*params, *inputs))
    arguments = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            arguments.append(next(user))
        else:
            kept = exported.state_dict.get(spec.target, exported.constants.get(spec.target))
            arguments.append(kept.detach().clone() if spec.kind is InputKind.BUFFER else own.get(spec.target, kept))
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
    import torch.fx.experimental._config as config

    auto = torch.export.Dim.AUTO
    sizes = (*[None] * len(params), *(dict.fromkeys(opened, auto) if opened else None for opened in axes))
    # backed_size_oblivious: the sizes 0 and 1 are nothing special, so that what a model asks about them is on record.
    with _quiet(), torch.no_grad(), config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(front, (*params, *inputs), dynamic_shapes={"tensors": sizes}, strict=False)


@contextlib.contextmanager
def _quiet():
    """Keep torch's account of a failing export, and its advice on attributes that forward assigns, to itself."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.filterwarnings("ignore", "The tensor attribute")
            yield
    finally:
        logger.setLevel(level)


def _explain_failure(error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(INTERNAL)]
    where = f" at {source_line(frames[-1].filename, frames[-1].lineno or 0)}" if frames else ""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    hint = ""
    if "data-dependent" in str(error):
        hint = " The model decides by a value that is only known when it runs: write it with torch.where."
        if "expert" in (frames[-1].line or "" if frames else ""):
            hint = (
                " The experts are called one by one, as tokens choose them: make the model with "
                'experts_implementation="batched_mm", which transformers\' configurations and from_pretrained take.'
            )
    return f"the model cannot be exported{where}: {type(error).__name__}: {first}{hint}"


# -- sizes ------------------------------------------------------------------------------------------------------------


def _shapes(exported, inputs: int) -> list[torch.Size]:
    return [node.meta["val"].shape for node in exported.graph.find_nodes(op="placeholder")[-inputs:]]


def _ranges(exported, inputs: int) -> tuple[Ranges, dict[str, str]] | None:
    """The sizes for which a trace holds, by symbol, and which of them must agree; None where the model asks for more
    than that."""
    given: list[Any] = [n for shape in _shapes(exported, inputs) for n in shape if is_symbolic(n)]
    sizes = [n.node for n in given]
    if not sizes:
        return {}, {}
    environment, hints = sizes[0].shape_env, {node.expr: node.hint for node in sizes}
    guards = [environment.simplify(guard.expr) for guard in environment.guards if _is_asked_by_model(guard)]
    same = _agreeing(guards, hints)
    if same is None:
        return None
    guards = [guard.subs(same) for guard in guards]
    ranges: Ranges = {}
    for node in sizes:
        symbol = node.expr
        bounds = exported.range_constraints.get(symbol)  # there are none for what follows from another size
        if symbol in same:
            continue
        asked = [guard for guard in guards if symbol in guard.free_symbols]
        found = _range(symbol, bounds, asked, node.hint) if bounds is not None else None
        if found is None:
            return None
        ranges[str(symbol)] = found
    return ranges, {str(one): str(other) for one, other in same.items()}


def _agreeing(guards: list, hints: Mapping) -> dict | None:
    """The sizes, by others equal in the example, that must agree with them for what a model asked of both to hold.

    What is asked of two sizes is more than ranges can say, but for equal ones it is asked of one, if of any. None where
    that does not help.
    """
    same: dict = {}
    for guard in guards:
        mixed = sorted(guard.subs(same).free_symbols & hints.keys(), key=str)
        while len(mixed) > 1:
            pairs = [(a, b) for i, a in enumerate(mixed) for b in mixed[i + 1 :] if hints[a] == hints[b]]
            if not pairs:
                return None
            one, other = pairs[0]
            same = {key: one if value == other else value for key, value in same.items()} | {other: one}
            mixed = sorted(guard.subs(same).free_symbols & hints.keys(), key=str)
    return same


def _is_asked_by_model(guard) -> bool:
    """Whether Python code that builds the graph decided on a size, and not a kernel on the layout of its memory."""
    file = getattr(guard.sloc.framework_loc, "filename", "")
    return not file.startswith(TORCH) or file.startswith(TORCH + "nn" + os.sep)


def _range(symbol, bounds, guards: list, traced: int) -> tuple[int, int | None] | None:
    from sympy import Ne
    from sympy.core.relational import Relational

    low, high = int(bounds.lower), int(bounds.upper) if bounds.upper < 2**31 else None
    for guard in guards:
        sides = guard.args
        if not isinstance(guard, Relational) or symbol not in sides or not any(side.is_Integer for side in sides):
            return None
        if isinstance(guard, Ne):
            excluded = int(next(side for side in sides if side.is_Integer))
            low = max(low, excluded + 1) if excluded < traced else low
            high = min(excluded - 1, high or excluded) if excluded > traced else high
    if low <= 2:  # which kernels ask for, and any size that a range excludes fails in them
        low = next(n for n in range(3) if all(guard.subs(symbol, m) for guard in guards for m in range(n, 2)))
    return low, high
