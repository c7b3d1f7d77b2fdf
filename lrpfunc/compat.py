"""What lrpfunc takes of torch that is private or not the same in every version: nothing else imports such things.

| torch | what differs |
|---|---|
| below 2.8 | not supported, see `MINIMUM` |
| below 2.9 | `torch.export` gives all nodes one module stack, empty in the end: `tracing_alone` |
| below 2.12 | `torch.func.vjp` gives zeros under `inference_mode`: `outside_inference` |
| below 2.14 | the states that an LSTM ends with have wrong shapes while they are traced: `recurrent_shapes` |
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import optree
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher as enable_python_dispatcher
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import _ModuleStackTracer
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

from lrpfunc.errors import VersionError

MINIMUM = (2, 8)

Operator = torch._ops.OpOverload
HigherOrderOperator = torch._ops.HigherOrderOperator
# What is raised of a device that failed; older torch has no class for it.
FAILED_DEVICE: type[Exception] = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)

LOGGERS = (  # that torch tells of failing exports
    "torch.fx.experimental.symbolic_shapes",
    "torch.fx.experimental.recording",
    "torch._subclasses.fake_tensor",
    "torch.export._trace",
    "torch._export.non_strict_utils",
)


def is_older(version: str, than: tuple[int, int]) -> bool:
    """Whether a version, such as 2.8.0+cpu, is older than another one."""
    return tuple(map(int, re.findall(r"\d+", version)[:2])) < than


def check_version(version: str) -> None:
    """Errors: `VersionError` for a torch that is too old."""
    if is_older(version, MINIMUM):
        needed = ".".join(map(str, MINIMUM))
        raise VersionError(
            f"lrpfunc needs torch {needed} or newer, but this is {version}: pip install 'torch>={needed}'"
        )


# -- operators --------------------------------------------------------------------------------------------------------


def schema_of(operator: Operator) -> Any:
    """What arguments an operator takes, and which of them it writes to or shows again."""
    return operator._schema


def overload_name(operator: Operator) -> str:
    """Which of the operators of one name it is: "Tensor" of `add.Tensor`."""
    return operator._overloadname


def is_assertion(function: Callable) -> bool:
    """Whether a function of torch does nothing but refuse what is false."""
    return function is torch._assert


# -- what watches a tensor --------------------------------------------------------------------------------------------


class Onlooker(TorchDispatchMode):
    """Where `see` is told the result of every operation, and nothing else is done."""

    def __init__(self, see: Callable[[Any], None]):
        super().__init__()
        self.see = see

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.see(result)
        return result


def is_intercepted() -> bool:
    """Whether some mode sees every operation and may change it: a trace, or fake tensors."""
    mode = _get_current_dispatch_mode()
    return mode is not None and not isinstance(mode, Onlooker)


def is_inside_forward_ad() -> bool:
    """Whether a forward-mode derivative is being taken."""
    return forward_ad._current_level >= 0


def is_transforming() -> bool:
    """Whether a transform of torch.func runs."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a transform of torch.func follows a tensor."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def is_differentiated(tensor: Tensor) -> bool:
    """Whether autograd, or a derivative of torch.func at any level, follows a tensor."""
    while is_wrapped(tensor):
        if torch._C._functorch.is_gradtrackingtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.requires_grad


def innermost(tensor: Tensor) -> Tensor:
    """A tensor without all that transforms of torch.func wrap it in."""
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def outside_transforms() -> AbstractContextManager:
    """Where tensors are made that no transform of torch.func knows."""
    return torch._C._DisableFuncTorch()


def outside_inference(namespace: str) -> Callable[[Callable], Callable]:
    """A function of pytrees that runs outside of `inference_mode`, in which nothing has a derivative, where it must.

    `namespace`: of optree, for the pytrees.
    """

    def usual(leaf):
        return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf

    def decorate(function: Callable) -> Callable:
        if not is_older(torch.__version__, (2, 12)):
            return function

        @functools.wraps(function)
        def run(*arguments, **keywords):
            if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
                return function(*arguments, **keywords)
            with torch.inference_mode(False), torch.no_grad():
                given = optree.tree_map(usual, (arguments, keywords), namespace=namespace)
                return function(*given[0], **given[1])

        return run

    return decorate


def is_counted(value: Any) -> bool:
    """Whether it is a tensor of which torch counts how many times it is written to."""
    return isinstance(value, Tensor) and not value.is_inference()


def writes_to(tensor: Tensor) -> int:
    """How many times a tensor, or what it is a view of, was written to."""
    return tensor._version


def memory_of(tensor: Tensor) -> int:
    """A key of a tensor's memory. Errors: `NotImplementedError` for tensors without any."""
    return tensor.untyped_storage()._cdata


def register_pytree(kind: type, flatten: Callable, unflatten: Callable) -> None:
    """Make a class a node of torch's pytrees, so that functions that torch transforms take and return it."""
    from torch.utils import _pytree

    _pytree.register_pytree_node(kind, flatten, unflatten)


def has_hooks(module: nn.Module) -> bool:
    """Whether code that is not the module's own runs before or after its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def hooks_before(module: nn.Module) -> list[Callable]:
    """The hooks that run before a module's forward."""
    return list(module._forward_pre_hooks.values())


# -- oneDNN -----------------------------------------------------------------------------------------------------------


PACKED = (
    "_reorder_convolution_weight",
    "_convolution_pointwise",
    "_reorder_convolution_transpose_weight",
    "_convolution_transpose_pointwise",
)


def has_packed_convolutions() -> bool:
    """Whether oneDNN is there and on, and takes weights that were laid out beforehand."""
    return torch._C._get_mkldnn_enabled() and _knows_packed_convolutions()


@functools.cache
def _knows_packed_convolutions() -> bool:
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in PACKED)


def pack_convolution(weight: Tensor, padding, stride, dilation, groups: int, size: Sequence[int]) -> Tensor:
    """A weight in the layout in which oneDNN convolves inputs of a size with it."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, size)


def packed_convolution(x: Tensor, packed: Tensor, bias, padding, stride, dilation, groups: int) -> Tensor:
    """`conv2d` with a weight of `pack_convolution`; the result has channels last."""
    operator = torch.ops.mkldnn._convolution_pointwise
    return operator(x, packed, bias, padding, stride, dilation, groups, "none", [], "")


def pack_transposed(weight: Tensor, padding, left_over, stride, dilation, groups: int, size: Sequence[int]) -> Tensor:
    """As `pack_convolution`, for `conv_transpose2d`."""
    operator = torch.ops.mkldnn._reorder_convolution_transpose_weight
    return operator(weight, padding, left_over, stride, dilation, groups, size)


def packed_transposed(x: Tensor, packed: Tensor, bias, padding, left_over, stride, dilation, groups: int) -> Tensor:
    """`conv_transpose2d` with a weight of `pack_transposed`; the result has channels last."""
    operator = torch.ops.mkldnn._convolution_transpose_pointwise
    return operator(x, packed, bias, padding, left_over, stride, dilation, groups, "none", [], "")


class TensorTable(WeakTensorKeyDictionary):
    """Values by tensors, which the table does not keep alive. It is copied and pickled empty."""

    def __deepcopy__(self, memo):
        return type(self)()

    def __reduce__(self):
        return type(self), ()


# -- compiling and exporting ------------------------------------------------------------------------------------------


def constant_in_compiled_code(function: Callable) -> Callable:
    """A function that torch.compile calls while it compiles, as it cannot look into it.

    This is all that torch.compiler.assume_constant_result does, but for importing torch._dynamo, which takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def as_plain_operations(function: Callable, *arguments) -> Callable:
    """A function of tensors as the operations that it is made of, while torch.export traces around it."""
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx  # slow to import

    with disable_proxy_modes_tracing(), torch._C.DisableTorchFunction():
        return make_fx(function)(*arguments)


def traced_operations(function: Callable, *arguments) -> Callable:
    """A function of tensors as the graph of operations that it is made of for arguments of these shapes."""
    from torch.fx.experimental.proxy_tensor import make_fx  # slow to import

    return make_fx(function)(*arguments)


def all_sizes_alike() -> AbstractContextManager:
    """Where exports take sizes 0 and 1 for nothing special, so that what a model asks about them is on record."""
    import torch.fx.experimental._config as config

    return config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


@contextlib.contextmanager
def without_layouts() -> Iterator[None]:
    """Where exports in this thread do not find out in which layout each value lies: a third of their time, where sizes
    are open."""
    from torch.fx.experimental import proxy_tensor

    thread, before = threading.get_ident(), proxy_tensor._extract_tensor_metadata

    def metadata_of(value: Tensor):
        return before(value, include_contiguity=threading.get_ident() != thread)

    proxy_tensor._extract_tensor_metadata = metadata_of  # type: ignore[assignment]
    try:
        yield
    finally:
        proxy_tensor._extract_tensor_metadata = before


@contextlib.contextmanager
def recurrent_shapes() -> Iterator[None]:
    """Where this thread traces recurrent layers by their shapes alone, for any number of steps: torch would go through
    the example's. Before 2.14 it would also give the states of an LSTM wrong shapes."""
    from torch._decomp import decompositions

    thread = threading.get_ident()

    def one_layer_lstm(x: Tensor, hidden, *_, **__):
        return x.new_full((*x.shape[:-1], hidden[0].shape[-1]), float("nan")), hidden

    def one_layer_rnn(x: Tensor, hidden: Tensor, *_, **__):
        return x.new_full((*x.shape[:-1], hidden.shape[-1]), float("nan")), hidden

    def in_this_thread(of_shapes: Callable, original: Callable) -> Callable:
        def run(*args, **kwargs):
            return (of_shapes if threading.get_ident() == thread else original)(*args, **kwargs)

        return run

    replaced = {
        "one_layer_lstm": one_layer_lstm,
        "mkldnn_one_layer_lstm": one_layer_lstm,
        "one_layer_rnn": one_layer_rnn,
    }
    before = {name: getattr(decompositions, name) for name in replaced}
    for name, of_shapes in replaced.items():
        setattr(decompositions, name, in_this_thread(of_shapes, before[name]))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(decompositions, name, function)


@contextlib.contextmanager
def tracing_alone() -> Iterator[None]:
    """Leave the modules of other threads out of a trace: torch.fx patches `nn.Module` itself, for the whole process."""
    thread, tracer_class = threading.get_ident(), _ModuleStackTracer
    names = ("call_module", "getattr", "create_node")
    before = {name: getattr(tracer_class, name) for name in names}

    def call_module(tracer, module, forward, args, kwargs):
        if threading.get_ident() != thread:
            return forward(*args, **kwargs)
        return before["call_module"](tracer, module, forward, args, kwargs)

    def get(tracer, name, value, cache):
        return before["getattr"](tracer, name, value, cache) if threading.get_ident() == thread else value

    def create_node(tracer, *args, **kwargs):
        node = before["create_node"](tracer, *args, **kwargs)
        if node.meta.get("nn_module_stack") is tracer.module_stack:  # which goes on changing
            node.meta["nn_module_stack"] = tracer.module_stack.copy()
        return node

    for name, function in zip(names, (call_module, get, create_node), strict=True):
        setattr(tracer_class, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(tracer_class, name, function)


def mapped_nodes(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    """What a graph computes inside of `torch.vmap`, on values that have no memory of their own."""
    depth, found = 0, []
    for node in graph.nodes:
        name = getattr(node.target, "__name__", "")
        depth += (name == "_vmap_increment_nesting") - (name == "_vmap_decrement_nesting")
        if depth:
            found.append(node)
    return found


@contextlib.contextmanager
def quiet():
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


check_version(torch.__version__)
