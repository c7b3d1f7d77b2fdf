"""From an exported graph to equations: the value of each node, in-place operations made functional.

It knows `torch.fx` graphs on `torch.export`'s training IR, and nothing of how they were made.
"""

from __future__ import annotations

import contextlib
import linecache
import operator
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn

from lrpfunc.errors import TraceError
from lrpfunc.program import PARAMETER, Equation, Variable, batch_norm, einsum, embedding, operator_name, overwrite, size

aten = torch.ops.aten


# -- places in the user's code ----------------------------------------------------------------------------------------

TORCH = os.path.dirname(torch.__file__) + os.sep
INTERNAL = (TORCH, *(os.path.dirname(file) + os.sep for file in (optree.__file__, __file__)), contextlib.__file__, "<")


def source(node) -> str:
    """The user's line that made a node: the innermost one outside torch."""
    frames = re.findall(r'File "(.*?)", line (\d+)', node.meta.get("stack_trace", ""))
    places = [(file, int(line)) for file, line in frames if os.path.isabs(file) and not file.startswith(INTERNAL)]
    return place(*places[-1]) if places else f"operation '{node.name}'"


def place(file: str, line: int) -> str:
    """A line of source for messages, with its code where that can be read."""
    code = linecache.getline(file, line).strip()
    return f"{file}:{line} (`{code}`)" if code else f"{file}:{line}"


# -- what operations need ---------------------------------------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What is the identity in a deterministic evaluation, and what checks only what a program checks itself.
IDENTITIES = _words(
    "dropout dropout_ feature_dropout feature_dropout_ alpha_dropout alpha_dropout_ feature_alpha_dropout "
    "feature_alpha_dropout_ alias lift_fresh lift_fresh_copy"
)
ASSERTIONS = _words(
    "_assert_tensor_metadata _assert_scalar _assert_async sym_constrain_range sym_constrain_range_for_size"
)

# Operations that are random in training only, and the arguments by which they are not.
RANDOM_IN_TRAINING = _words("scaled_dot_product_attention lstm gru rnn_tanh rnn_relu rrelu")
DETERMINISTIC = {"dropout_p": 0.0, "dropout": 0.0, "train": False, "training": False}

# Operations of which one argument gives a shape and no values, with its position.
SHAPE_GIVING = {
    **dict.fromkeys(_words("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty"), 0),
    **dict.fromkeys(_words("fill zero copy"), 0),
    **dict.fromkeys(_words("expand_as view_as reshape_as type_as"), 1),
}

# Operations that return the tensor they were given where nothing is to be done.
WHOLE = IDENTITIES | {"contiguous", "to", "type_as", "detach"}

# One name for what has several. A view fails for some memory layouts, where a reshape does not.
SYNONYMS = {
    "view": "reshape", "_unsafe_view": "reshape", "concat": "cat", "concatenate": "cat", "clip": "clamp",
    "multiply": "mul", "divide": "div", "true_divide": "div", "subtract": "sub", "negative": "neg", "absolute": "abs",
    "moveaxis": "movedim",
}  # fmt: skip


def is_symbolic(n) -> bool:
    """Whether a size may differ from call to call."""
    return isinstance(n, torch.SymInt) and not n.node.expr.is_number


class Origin(NamedTuple):
    """The call (as a key) and the path of the innermost module that made an equation."""

    call: str
    path: str


class Builder:
    """Goes through an exported graph once and collects its equations and the value of each of its nodes.

    Leaves come first: `parameter`, `constant`, `input`. A model's tensor goes by the first of its names.
    """

    def __init__(self, model: nn.Module | None, same: Mapping[str, str]):
        self.same = same  # symbolic sizes that must agree with another one
        tensors = [] if model is None else [*model.named_parameters(), *model.named_buffers()]
        self.first_names = {id(tensor): name for name, tensor in reversed(tensors)}
        self.params: dict[str, Tensor] = {}
        self.parameters: dict[str, Variable] = {}
        self.values: dict[Any, Any] = {}
        self.equations: list[Equation] = []
        self.origins: dict[str, Origin] = {}  # by an equation's first output
        self.symbols: dict[str, str] = {}  # names of symbolic sizes
        self.sharing: dict[Any, list] = {}  # nodes by the memory that they show
        self.stale: dict[Any, str] = {}  # nodes whose memory was overwritten under another name, and where
        self.outer: dict[Any, Any] = {}  # placeholders of inlined regions, and what they stand for
        self.twin_dtypes: dict[str, torch.dtype] = {}  # of functional twins, by what rules them

    # -- leaves

    def parameter(self, node, name: str, tensor: Tensor) -> None:
        name = self.first_names.get(id(tensor), name)
        self.params[name] = tensor
        self.values[node] = self.parameters[name] = Variable(PARAMETER + name, tuple(tensor.shape), tensor.dtype)

    def constant(self, node, tensor: Tensor) -> None:
        keywords = {"dtype": tensor.dtype, "device": tensor.device}
        self.values[node] = self._emit(node, aten._to_copy.default, (tensor.detach(),), keywords)

    def input(self, node, name: str) -> Variable:
        for axis, n in enumerate(node.meta["val"].shape):
            if is_symbolic(n):
                word = "batch" if axis == 0 else "length"
                count = len({given for given in self.symbols.values() if given.startswith(word)})
                symbol = str(n.node.expr)
                first = self.same.get(symbol, symbol)
                name_of_first = self.symbols.setdefault(first, f"{word}{count + 1}" if count else word)
                self.symbols[symbol] = name_of_first
        self.values[node] = self._variable(name, node.meta["val"])
        return self.values[node]

    def _variable(self, name: str, value) -> Variable:
        if not isinstance(value, Tensor):
            return Variable(name)
        return Variable(name, tuple(self._size(n) if is_symbolic(n) else int(n) for n in value.shape), value.dtype)

    def _size(self, n) -> str:
        return re.sub(r"[a-z]\w*", lambda match: self.symbols.get(match[0], match[0]), str(n.node.expr))

    # -- nodes

    def inline(self, graph, owner) -> list:
        """Convert all nodes of a graph and return what it returns."""
        for node in graph.nodes:
            self.sharing.setdefault(_memory(node), []).append(node)
        for node in graph.nodes:
            if node.op == "call_function":
                self._convert(node)
            elif node.op == "get_attr":
                self.values[node] = getattr(owner, node.target)
            elif node.op == "output":
                return self._read(list(node.args[0]), node)
        raise AssertionError("a graph without an output")

    def _read(self, argument, node):
        """The value of a node's argument, with plain lists and tuples in place of fx's own, for torch.compile."""
        if isinstance(argument, (list, tuple)):
            return (list if isinstance(argument, list) else tuple)(self._read(item, node) for item in argument)
        if not isinstance(argument, torch.fx.Node):
            return argument
        if argument in self.stale:
            where = "returned by forward" if node.op == "output" else f"read at {source(node)}"
            raise TraceError(
                f"'{argument.name}', {where}, shares memory that was overwritten under another name at "
                f"{self.stale[argument]}. Replace the in-place operation there by one that returns a new tensor."
            )
        return self.values[argument]

    def _convert(self, node) -> None:
        name = operator_name(node.target)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            self._inline_region(node, name)
        elif name in ASSERTIONS:
            return
        elif node.target is operator.getitem:
            self.values[node] = self._read(node.args[0], node)[node.args[1]]
        elif name in IDENTITIES or (name in ("detach", "detach_") and self._is_parameter(node.args[0])):
            self.values[node] = self._read(node.args[0], node)
        elif name == "sym_size":
            self.values[node] = self._emit(node, size, tuple(self._read(node.args, node)))
        elif isinstance(node.target, torch._ops.OpOverload):
            self._convert_operator(node, name)
        else:  # arithmetic on sizes
            self.values[node] = self._emit(node, node.target, self._read(node.args, node))

    def _is_parameter(self, node) -> bool:
        return self.values[node].name.startswith(PARAMETER)

    def _inline_region(self, node, name: str) -> None:
        """A region under no_grad or a disabled autocast is ordinary code."""
        values = self._read(node.args, node)
        position = next((i for i, value in enumerate(values) if isinstance(value, torch.fx.GraphModule)), None)
        is_plain = name == "wrap_with_set_grad_enabled" or (name == "wrap_with_autocast" and not values[2])
        if position is None or not is_plain:
            raise TraceError(f"'{name}' at {source(node)} is not supported: remove it from forward.")
        region = values[position]
        for inner, outer in zip(region.graph.find_nodes(op="placeholder"), node.args[position + 1 :], strict=True):
            self.outer[inner] = outer
            self.values[inner] = self._read(outer, node)
        self.values[node] = self.inline(region.graph, region)

    def _convert_operator(self, node, name: str) -> None:
        names, arguments, keywords = _normalize(node)
        arguments = self._read(arguments, node)
        keywords = {key: self._read(value, node) for key, value in keywords.items()}
        if name == "batch_norm":
            x, weight, bias, mean, var, training, _, eps, _ = arguments
            if training:
                raise TraceError(
                    f"batch norm '{_origin(node).path or node.name}' is in training mode, in which samples of a batch "
                    "depend on each other. Call model.eval() first (and give it running statistics)."
                )
            self.values[node] = self._emit(node, batch_norm, (x, weight, bias, mean, var, eps))
            return
        if name == "instance_norm" and arguments[names.index("use_input_stats")]:
            arguments[3:5] = None, None  # running statistics, which it would only update
        if name in RANDOM_IN_TRAINING:
            arguments = [DETERMINISTIC.get(key, value) for key, value in zip(names, arguments, strict=True)]
        is_mutable = node.target._schema.is_mutable
        function: Callable = _usual(_functional_twin(node) if is_mutable else node.target)
        if name == "embedding":
            function = embedding
        if name == "einsum" and len(arguments[1]) == 2:
            function, arguments = einsum, [arguments[0], *arguments[1]]
        shape_giving = SHAPE_GIVING.get(operator_name(function))
        if shape_giving is not None:
            arguments[shape_giving] = self._detached(node, arguments[shape_giving])
        result = self._emit(node, function, tuple(arguments), keywords)
        if is_mutable and torch.Tag.inplace_view not in node.target.tags:
            self._write(node, result)
        else:
            self.values[node] = result

    def _detached(self, node, argument):
        """An argument of which the values do not matter: nothing flows back to it."""
        is_floating = isinstance(argument, Variable) and argument.is_floating
        return self._emit(node, aten.detach.default, (argument,), like=argument) if is_floating else argument

    def _emit(self, node, function: Callable, arguments: tuple, keywords: dict | None = None, like: Any = None):
        """The value of a new equation: a variable, or a list of them, like what a node has (or another variable)."""
        value = node.meta.get("val")
        name = f"{node.name}.{len(self.equations)}"
        result: Any
        if isinstance(like, Variable):
            result = Variable(name, like.shape, like.dtype)
        elif isinstance(value, (list, tuple)):
            result = [self._variable(f"{name}.{i}", part) for i, part in enumerate(value)]
        else:
            result = self._variable(name, value)
        outputs = tuple(result) if isinstance(result, list) else (result,)
        self.equations.append(Equation("", function, arguments, keywords or {}, outputs, source(node)))
        self.origins[outputs[0].name] = _origin(node)
        return result

    # -- writes

    def _write(self, node, result: Variable) -> None:
        """Let the memory that a node writes to have a new value.

        torch.export lets all later reads of the written tensor itself read this node. The tensors that it is a view of
        get the new value written into theirs. Whatever else shares the memory goes stale.
        """
        written, before = node.args[0], self.values[node.args[0]]
        if self._twin_dtype(node) != before.dtype:
            result = self._emit(node, aten.to.dtype, (result, before.dtype))
        self.values[node] = self.values[written] = result
        views: tuple = ()
        known, base = {node, written}, self._base(written, node)
        while base is not None:
            views = (*base.views, *views)
            value = self._read(base.node, node)
            overwritten = self._emit(node, overwrite, (value, result, views), like=value) if views else result
            self.values[base.node] = overwritten
            known.add(base.node)
            base = self._base(base.node, node)
        for other in self.sharing[_memory(written)]:
            if other in self.values and other not in known:
                self.stale[other] = source(node)

    def _twin_dtype(self, node) -> torch.dtype:
        """The dtype of an in-place operation's functional twin, found on fake tensors: `lt` gives bools, sums promote.

        That is slow on symbolic sizes, and only dtypes, ranks and what is no tensor can matter.
        """
        key = str((node.target, *torch.fx.map_arg((node.args, node.kwargs), _dtype_and_rank)))
        if key not in self.twin_dtypes:
            arguments, keywords = torch.fx.map_arg((node.args, node.kwargs), lambda argument: argument.meta["val"])
            self.twin_dtypes[key] = _functional_twin(node)(*arguments, **keywords).dtype
        return self.twin_dtypes[key]

    def _base(self, node, writer) -> _Base | None:
        """The node that a node is a view of, None if it has memory of its own (or nobody knows whose)."""
        if node in self.outer:
            return _Base(self.outer[node], ())
        maker = node.args[0] if node.target is operator.getitem else node  # of one tensor or a list of them
        if not isinstance(maker.target, torch._ops.OpOverload) or _memory(maker.args[0]) != _memory(node):
            return None
        base, name = maker.args[0], operator_name(maker.target)
        if name.startswith("as_strided") or base.meta["val"].dtype != node.meta["val"].dtype:
            raise TraceError(
                f"the in-place operation at {source(writer)} writes through '{name}', which lrpfunc cannot follow. "
                "Replace it by one that returns a new tensor."
            )
        is_inplace = maker.target._schema.is_mutable
        if name in WHOLE or (is_inplace and torch.Tag.inplace_view not in maker.target.tags):
            return _Base(base, ())
        function = _usual(_functional_twin(maker) if is_inplace else maker.target)
        arguments = tuple(self._read(_normalize(maker)[1][1:], writer))
        if maker is not node:
            function, arguments = _part, (node.args[1], function, *arguments)
        return _Base(base, ((function, arguments),))


class _Base(NamedTuple):
    """A node with the functions and arguments that lead to a view of it; none if the view is all of it."""

    node: Any
    views: tuple[tuple[Callable, tuple], ...]


def _part(x: Tensor, position: int, split: Callable, *arguments) -> Tensor:
    """One of the views that `chunk`, `split` or `unbind` give."""
    return split(x, *arguments)[position]


def _normalize(node) -> tuple[list[str], list, dict[str, Any]]:
    """The names and values of the arguments in the schema's order, defaults filled in; keyword-only ones apart."""
    names, positional, keywords = [], [], {}
    for i, argument in enumerate(node.target._schema.arguments):
        if not argument.kwarg_only:
            names.append(argument.name)
            given = node.args[i : i + 1] or [node.kwargs.get(argument.name, argument.default_value)]
            positional.append(given[0])
        elif node.kwargs.get(argument.name) is not None:
            keywords[argument.name] = node.kwargs[argument.name]
    return names, positional, keywords


def _usual(function):
    """The operation under its usual name."""
    packet = getattr(aten, SYNONYMS.get(operator_name(function), ""), None)
    return getattr(packet, function._overloadname, function)


def _functional_twin(node) -> Callable:
    """What gives as a new tensor (or, for `unsqueeze_` and the like, a view) what an in-place operation writes."""
    name, schema = operator_name(node.target), node.target._schema
    packet = getattr(aten, name.removesuffix("_"), None) if node.target.namespace == "aten" else None
    twin = getattr(packet, node.target._overloadname, None)
    written = [argument.name for argument in schema.arguments if argument.is_write]
    is_view = torch.Tag.inplace_view in node.target.tags
    if twin is None or twin._schema.is_mutable or written != [schema.arguments[0].name] or is_view != _is_view(twin):
        if is_random(node.target):
            raise TraceError(random_message(name, source(node)))
        raise TraceError(
            f"the in-place operation '{name}' at {source(node)} has no functional twin. "
            "Replace it by one that returns a new tensor."
        )
    return twin


def _is_view(function) -> bool:
    return any(result.alias_info is not None for result in function._schema.returns)


def _dtype_and_rank(node) -> str:
    value = node.meta["val"]
    return f"{value.dtype} of rank {value.dim()}" if isinstance(value, Tensor) else type(value).__name__


def _memory(node):
    value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def _origin(node) -> Origin:
    """The call (as a key) and the path of the innermost module that made a node."""
    stack = node.meta.get("nn_module_stack", {}).items()
    inside = [(key, path) for key, (path, _) in stack if isinstance(path, str) and path.startswith("model")]
    key, path = inside[-1] if inside else ("", "")
    return Origin(key, path.removeprefix("model").removeprefix("."))


def is_random(function) -> bool:
    """Whether a function draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(function, "tags", ())


def random_message(name: str, source: str) -> str:
    """Why a model that draws random numbers is refused, and the way out."""
    return (
        f"'{name}' at {source} draws random numbers, but a program is a function: "
        "make them an input, or call model.eval() if only training needs them."
    )
