"""What `torch.export` makes of a function: a graph with sizes left open, and for which sizes it holds.

The only user of `torch.export`. A graph is exported with as many open sizes as the model allows; what the model asks
about them is then read off its guards as ranges and equalities, which a program checks when it is called.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lrpfunc.compat import (
    Operator,
    all_sizes_alike,
    is_assertion,
    mapped_nodes,
    quiet,
    recurrent_shapes,
    tracing_alone,
    without_layouts,
)
from lrpfunc.errors import LrpError, TraceError
from lrpfunc.operations import row_named
from lrpfunc.program import operator_name, with_names
from lrpfunc.tracing.axes import Axes, Opening, batch_of
from lrpfunc.tracing.graphs import is_symbolic
from lrpfunc.tracing.refusals import failure
from lrpfunc.tracing.sizes import Sizes, is_worth, open_sizes, refusing, shapes_of_inputs, sizes_of
from lrpfunc.tracing.source_lines import INTERNAL, source_line
from lrpfunc.tracing.trials import holds_elsewhere, with_ones

LONGEST = 200  # of what may be asked of sizes that nobody asked for

LOCK = threading.RLock()  # torch.export has state of the process: one thread traces at a time


class Export(NamedTuple):
    """An exported program, and for which sizes it holds."""

    program: Any
    sizes: Sizes


class _Closed(Exception):
    """Why sizes cannot stay open."""


class Watch:
    """What becomes of sizes while a function is traced: the user's lines after which those asked for were fixed.

    `limit`: how long what is asked of sizes may be. Windows and paddings make it so long that tracing takes ten times
    as long; who asks for open sizes by name waits for it.
    """

    def __init__(self) -> None:
        self.sizes: dict[tuple[int, int], tuple[Any, Any]] = {}
        self.lines: dict[tuple[int, int], str] = {}
        self.environment: Any = None
        self.seen, self.limit = 0, 0

    def begin(self, inputs: Sequence[Tensor], asked: Sequence[Axes]) -> None:
        places = [(i, axis) for i, axes in enumerate(asked) for axis in axes]
        sizes: dict[tuple[int, int], Any] = {(i, axis): inputs[i].shape[axis] for i, axis in places}
        self.sizes = {place: (n, n.node.expr) for place, n in sizes.items() if is_symbolic(n)}
        self.environment = next((n.node.shape_env for n in open_sizes([x.shape for x in inputs])), None)
        self.seen = 0

    def look(self, file: str, line: int) -> None:
        for place, (n, _) in self.sizes.items():
            if place not in self.lines and not is_symbolic(n):
                self.lines[place] = source_line(file, line)
        guards = self.environment.guards if self.limit and self.environment is not None else ()
        if any(len(str(guard.expr)) > self.limit for guard in guards[self.seen :]):
            raise _Closed("what the model asks of them is too long.")
        self.seen = len(guards)

    def line(self, place: tuple[int, int]) -> str:
        """The line that fixed a size: where Python did, or of the operation after which it was fixed."""
        if place not in self.sizes:
            return ""
        found = self.environment.replacements_slocs.get(self.sizes[place][1])
        frame = None if found is None else found.framework_loc
        if frame is not None and not getattr(frame, "filename", "<").startswith(INTERNAL):
            return source_line(frame.filename, frame.lineno)
        return self.lines.get(place, "")


class Front(nn.Module):
    """What `torch.export` sees of a function: tensors in, a list of tensors and sizes out.

    `asked`: for each of the last tensors, which are the inputs, the axes whose sizes should stay open.
    """

    def __init__(
        self, function: Callable[[Sequence[Tensor]], list], model: nn.Module | None, asked: Sequence[Axes] = ()
    ):
        super().__init__()
        self.function, self.asked, self.watch = function, asked, Watch()
        if model is not None:
            self.model = model

    def forward(self, *tensors):
        self.watch.begin(tensors[len(tensors) - len(self.asked) :], self.asked)
        try:
            with _untouched(self), torch.fx.traceback.preserve_node_meta(), _Lines(self.watch):
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

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if torch.compiler.is_dynamo_compiling():  # the branches of torch.cond, say
            return function(*args, **(kwargs or {}))
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(INTERNAL):
            frame = frame.f_back
        file, line = frame.f_code.co_filename, frame.f_lineno
        torch.fx.traceback.set_stack_trace([f'File "{file}", line {line}'])
        if is_assertion(function):  # decided here, what a model asks of a size is seen to be its own question
            bool(args[0])
        result = function(*args, **(kwargs or {}))
        self.watch.look(file, line)
        return result


def exports(front: Front, params: list[Tensor], inputs: list[Tensor], given: Opening) -> Iterator[Export]:
    """Exports with sizes left open along axes of each input where the model allows it, the most first; last with none,
    unless some were asked for.

    Errors: `TraceError` if what was asked for cannot stay open.
    """
    reason = ""
    for opened in given.attempts(inputs):
        try:
            yield _export_open(front, params, inputs, opened, given)
        except _Closed as error:
            reason = str(error)
    if not any(given.asked):
        yield Export(_export_once(front, params, inputs, [()] * len(inputs)), Sizes({}, {}, ()))
    elif reason:
        raise TraceError(f"the sizes that lrpfunc.varying asks for cannot stay open: {reason}")


def _export_open(front: Front, params: list[Tensor], inputs: list[Tensor], axes: list[Axes], given: Opening) -> Export:
    """The export with open sizes. Errors: `_Closed` if it fails, or nobody can say for which sizes it holds."""
    batch = batch_of(inputs)
    conditioned = given.conditioned(inputs, axes)
    front.watch.limit = LONGEST if any(given.found(conditioned)) else 0
    while any(axes):
        # A size of one would be baked in, so an example of one sample is traced as two.
        pairs = zip(inputs, axes, strict=True)
        examples = [_two(x) if 0 in opened and x.shape[0] == batch == 1 else x for x, opened in pairs]
        try:
            exported = _export_once(front, params, examples, axes)
        except Exception as error:  # whatever is wrong shows again, in plainer words, without dynamic sizes
            raise _Closed(str(error)) from error
        if _is_misled(exported):
            raise _Closed("torch takes what unbind gives along an open size for slices.")
        shapes = shapes_of_inputs(exported, len(inputs))
        _refuse_fixed(front, shapes, inputs, given)
        sizes = sizes_of(exported, shapes, conditioned)
        if sizes is None:
            raise _Closed("the model asks more of them than ranges and conditions can say.")
        if not is_worth(sizes, shapes, given.found(conditioned)):
            raise _Closed("the model takes next to no other sizes.")
        if condition := refusing(sizes, shapes, given.asked):
            raise _Closed(f"the model takes no other ones, as it needs {with_names(condition, given.places(shapes))}.")
        stayed = [tuple(a for a in opened if is_symbolic(n[a])) for opened, n in zip(axes, shapes, strict=True)]
        has_batch = [0 in before and 0 not in after for before, after in zip(axes, stayed, strict=True)]
        if batch == 1 and any(has_batch):
            axes = stayed
            continue
        if given.axes is None:
            sizes = with_ones(front, exported, params, examples, sizes)
            if not holds_elsewhere(front, exported, params, examples, sizes, conditioned):
                raise _Closed("at other sizes the model was not seen to do what was traced at the example's.")
        excludes_example = [
            s for s, (low, _) in sizes.ranges.items() if batch == 1 and low > 1 and _is_batch(shapes, s)
        ]
        if not excludes_example:
            return Export(exported, sizes)
        axes = [tuple(axis for axis in opened if axis != 0) for opened in axes]
    raise _Closed("the example has a batch of one, for which the model does something else.")


def _refuse_fixed(front: Front, shapes: Sequence[torch.Size], inputs: Sequence[Tensor], given: Opening) -> None:
    """Errors: `TraceError` for a size that was asked for and that the model fixes."""
    for i, axes in enumerate(given.asked):
        for axis in axes:
            if is_symbolic(shapes[i][axis]):
                continue
            what = f"axis {axis} of input '{given.labels[i]}'"
            if inputs[i].shape[axis] == 1:
                raise TraceError(f"{what} is of size 1, which torch fixes: lrpfunc.varying needs a larger example.")
            line = front.watch.line((i, axis))
            raise TraceError(
                f"{what} cannot vary, as lrpfunc.varying asks: the model fixes its size at {inputs[i].shape[axis]}"
                f"{f', at {line}' if line else ''}. Leave this axis out, or change the model there."
            )


def _is_misled(exported) -> bool:
    """Whether torch took what `unbind` gives along an open size for slices that keep their dimension, as 2.15 does."""
    nodes = exported.graph.find_nodes(op="call_function", target=torch.ops.aten.unbind.int)
    return any(part.dim() == node.args[0].meta["val"].dim() for node in nodes for part in node.meta["val"])


def _is_batch(shapes: Sequence[torch.Size], size: str) -> bool:
    return any(len(shape) > 0 and str(shape[0]) == size for shape in shapes)


def _two(x: Tensor) -> Tensor:
    return x.repeat(2, *[1] * (x.dim() - 1))


def _export_once(front: Front, params: list[Tensor], inputs: list[Tensor], axes: list[Axes]):
    """Errors: `TraceError`, and those that lrpfunc raised on purpose in the function."""
    auto = torch.export.Dim.AUTO
    sizes = (*[None] * len(params), *(dict.fromkeys(opened, auto) if opened else None for opened in axes))
    try:
        with quiet(), tracing_alone(), without_layouts(), torch.no_grad(), all_sizes_alike():
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
