"""From an exported graph to equations: the value of each of its nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lrpfunc.compat import HigherOrderOperator, Operator, schema_of
from lrpfunc.errors import ProgramError, TraceError
from lrpfunc.operations import SPELLINGS, WRITTEN_OUT, row_named
from lrpfunc.program import (
    PARAMETER,
    Equation,
    Variable,
    batch_norm,
    embedding,
    operator_name,
    size,
    spelled,
    standardize,
    substitute,
    variables_in,
    with_names,
)
from lrpfunc.tracing.graphs import (
    Origin,
    functional_twin,
    is_into,
    is_symbolic,
    normalize,
    origin,
    unsupported_message,
    usual,
    word_for,
    written,
)
from lrpfunc.tracing.source_lines import line_of
from lrpfunc.tracing.writes import Writes

aten = torch.ops.aten


class Builder:
    """Goes through an exported graph once and collects its equations and the value of each of its nodes.

    Leaves come first: `parameter`, `literal`, `input`. A model's tensor goes by the first of its names.
    """

    def __init__(self, model: nn.Module | None, same: Mapping[str, str], words: Mapping[str, str]):
        self.same = same  # symbolic sizes that must agree with another one
        self.words = words  # what to call some of them
        learned = {} if model is None else dict(model.named_parameters())
        kept = {} if model is None else dict(model.named_buffers())
        self.first_names = {id(tensor): name for name, tensor in reversed([*learned.items(), *kept.items()])}
        self.buffers = {self.first_names[id(tensor)] for tensor in kept.values()} - learned.keys()
        self.params: dict[str, Tensor] = {}
        self.parameters: dict[str, Variable] = {}
        self.values: dict[Any, Any] = {}
        self.equations: list[Equation] = []
        self.origins: dict[str, Origin] = {}  # by an equation's first output
        self.symbols: dict[str, str] = {}  # names of symbolic sizes
        self.varying: set[str] = set()  # what depends on an input, by variables' names
        self.writes = Writes(self)

    # -- leaves

    def parameter(self, node, name: str, tensor: Tensor) -> None:
        name = self.first_names.get(id(tensor), name)
        self.params[name] = tensor
        self.values[node] = self.parameters[name] = Variable(PARAMETER + name, tuple(tensor.shape), tensor.dtype)

    def literal(self, node, tensor: Tensor) -> None:
        keywords = {"dtype": tensor.dtype, "device": tensor.device}
        self.values[node] = self.emit(node, aten._to_copy.default, (tensor.detach(),), keywords)

    def input(self, node, name: str) -> Variable:
        for axis, n in enumerate(node.meta["val"].shape):
            if is_symbolic(n):
                symbol = str(n.node.expr)
                word = self.words.get(symbol, word_for(axis, len(node.meta["val"].shape)))
                count = len({given for given in self.symbols.values() if given.startswith(word)})
                first = self.same.get(symbol, symbol)
                name_of_first = self.symbols.setdefault(first, f"{word}{count + 1}" if count else word)
                self.symbols[symbol] = name_of_first
        self.values[node] = self._variable(name, node.meta["val"])
        self.varying.add(name)
        return self.values[node]

    def _variable(self, name: str, value) -> Variable:
        if not isinstance(value, Tensor):
            return Variable(name)
        return Variable(name, tuple(self._size(n) if is_symbolic(n) else int(n) for n in value.shape), value.dtype)

    def _size(self, n) -> str:
        return self.in_words(str(n.node.expr))

    def in_words(self, expression: str) -> str:
        """An expression of symbols in the names of these sizes."""
        named = with_names(expression, self.symbols)
        try:
            return spelled(named)
        except ValueError:  # of functions that only torch knows
            return named

    # -- nodes

    def inline(self, graph, owner) -> list:
        """Convert all nodes of a graph and return what it returns."""
        self.writes.watch(graph.nodes)
        for node in graph.nodes:
            if node.op == "call_function":
                self._convert(node)
            elif node.op == "get_attr":
                self.values[node] = getattr(owner, node.target)
            elif node.op == "output":
                return self.read(list(node.args[0]), node)
        raise AssertionError("a graph without an output")

    def read(self, argument, node):
        """The value of a node's argument, with plain lists and tuples in place of fx's own, for torch.compile."""
        if isinstance(argument, (list, tuple)):
            return (list if isinstance(argument, list) else tuple)(self.read(item, node) for item in argument)
        if not isinstance(argument, torch.fx.Node):
            return argument
        self.writes.refuse_stale(argument, node)
        return self.values[argument]

    def _convert(self, node) -> None:
        name = operator_name(node.target)
        row = row_named(name)
        if name == "cond":
            self._inline_branches(node)
        elif name == "scan":
            self._unroll(node, *node.args)
        elif name == "map_impl":
            self._unroll(node, node.args[0], [], *node.args[1:])
        elif isinstance(node.target, HigherOrderOperator):
            self._inline_region(node, name)
        elif is_into(node):
            self._convert_into(node)
        elif row.is_assertion:
            return
        elif node.target is operator.getitem:
            self.values[node] = self.read(node.args[0], node)[node.args[1]]
        elif row.is_identity or (name.removesuffix("_") == "detach" and self._is_parameter(node.args[0])):
            self.values[node] = self.read(node.args[0], node)
        elif name == "sym_size":
            self.values[node] = self.emit(node, size, tuple(self.read(node.args, node)))
        elif isinstance(node.target, Operator):
            self._convert_operator(node, name)
        else:  # arithmetic on sizes
            self.values[node] = self.emit(node, node.target, self.read(node.args, node))

    def _is_parameter(self, node) -> bool:
        return self.values[node].name.startswith(PARAMETER)

    def _inline_region(self, node, name: str) -> None:
        """A region under no_grad or a disabled autocast is ordinary code."""
        values = self.read(node.args, node)
        position = next((i for i, value in enumerate(values) if isinstance(value, torch.fx.GraphModule)), None)
        is_plain = name == "wrap_with_set_grad_enabled" or (name == "wrap_with_autocast" and not values[2])
        if position is None or not is_plain:
            raise TraceError(unsupported_message(name, line_of(node)))
        self.values[node] = self._inline(values[position], node.args[position + 1 :], node)

    def _inline(self, region, operands: Sequence, node) -> list:
        for inner, outer in zip(region.graph.find_nodes(op="placeholder"), operands, strict=True):
            self.writes.outer[inner] = outer
            self.values[inner] = self.read(outer, node)
        return self.inline(region.graph, region)

    def _inline_branches(self, node) -> None:
        """`torch.cond` as both of its branches, of which the condition takes one: no relevance comes to the other."""
        condition, *branches = self.read(node.args[:3], node)
        if not isinstance(condition, Variable) or not condition.is_tensor:
            condition = self.emit(node, aten.scalar_tensor.default, (condition,), like=Variable("", (), torch.float32))
        if condition.shape != () or condition.dtype != torch.bool:
            flat = Variable("", (), condition.dtype)
            condition = self.emit(node, aten.reshape.default, (condition, []), like=flat)
            condition = self.emit(node, aten.ne.Scalar, (condition, 0), like=replace(flat, dtype=torch.bool))
        taken, other = (self._inline(branch, node.args[3], node) for branch in branches)
        self.values[node] = [
            self.emit(node, aten.where.self, (condition, one, two), like=self._variable("", value))
            for one, two, value in zip(taken, other, node.meta["val"], strict=True)
        ]

    def _unroll(self, node, region, carried, along, others) -> None:
        """A scan, or a map, which carries nothing from step to step, as its steps one after another."""
        region, carried, along, others = (self.read(given, node) for given in (region, carried, along, others))
        steps, count = along[0].shape[0], len(carried)
        if not isinstance(steps, int):
            raise ProgramError(f"{line_of(node)} has one step for each '{steps}', so their number cannot stay open.")
        made = []
        for step in range(steps):
            rows = [self.emit(node, aten.select.int, (x, 0, step), like=_without_first_axis(x)) for x in along]
            results = self._run(region, [*carried, *rows, *others])
            carried = results[:count]
            made.append(results[count:])
        self.values[node] = [*carried, *(self._stacked(node, parts) for parts in zip(*made, strict=True))]

    def _stacked(self, node, parts: Sequence[Variable]) -> Variable:
        like = Variable("", (len(parts), *parts[0].shape), parts[0].dtype)
        return self.emit(node, aten.stack.default, (list(parts),), like=like)

    def _run(self, region, values: Sequence) -> list:
        for node in region.graph.nodes:  # a step before this one may have left its values there
            self.values.pop(node, None)
        self.values.update(zip(region.graph.find_nodes(op="placeholder"), values, strict=True))
        return self.inline(region.graph, region)

    def _convert_operator(self, node, name: str) -> None:
        names, arguments, keywords = normalize(node)
        arguments = self.read(arguments, node)
        keywords = {key: self.read(value, node) for key, value in keywords.items()}
        if name == "batch_norm":
            x, weight, bias, mean, var, training, _, eps, _ = arguments
            if training and not self._is_varying((x, weight, bias)):
                self.values[node] = self.emit(node, standardize, (x, weight, bias, eps))
                return
            if training or mean is None:
                raise TraceError(
                    f"batch norm '{origin(node).path or node.name}' is in training mode, in which samples of a batch "
                    "depend on each other. Call model.eval() first (and give it running statistics)."
                )
            self.values[node] = self.emit(node, batch_norm, (x, weight, bias, mean, var, eps))
            return
        if name == "instance_norm" and arguments[names.index("use_input_stats")]:
            arguments[3:5] = None, None  # running statistics, which it would only update
        deterministic = row_named(name).deterministic
        if deterministic is not None:
            arguments = [deterministic.get(key, value) for key, value in zip(names, arguments, strict=True)]
        spelled = SPELLINGS[name](arguments) if name in SPELLINGS and _is_single(node) else None
        if spelled is not None:
            self._emit_spelled(node, *spelled)
            return
        is_mutable = schema_of(node.target).is_mutable
        if name.removesuffix("_") == "copy":
            self._convert_copy(node, *arguments[:2])
            return
        plain = name.removesuffix("_") if is_mutable else name
        result = self._write_out(node, WRITTEN_OUT[plain], arguments, keywords) if plain in WRITTEN_OUT else None
        if result is not None:
            self._note(node, result, is_mutable)
            return
        function: Callable = usual(functional_twin(node) if is_mutable else node.target)
        if name == "embedding":
            function = embedding
        shape_giver = row_named(operator_name(function)).shape_giver
        if shape_giver is not None:
            arguments[shape_giver] = self._detached(node, arguments[shape_giver])
        if is_mutable and torch.Tag.inplace_view not in node.target.tags:
            twin = replace(self._variable("", node.meta["val"]), dtype=self.writes.twin_dtype(node))
            self.writes.write(node, node.args[0], self.emit(node, function, tuple(arguments), keywords, like=twin))
        else:
            self.values[node] = self.emit(node, function, tuple(arguments), keywords)

    def _convert_into(self, node) -> None:
        """`add(x, y, out=z)` is `add(x, y)`, which is then written to z."""
        twin = functional_twin(node)
        keywords = {name: value for name, value in node.kwargs.items() if value not in written(node)}
        arguments, named = torch.fx.map_arg((node.args, keywords), lambda argument: argument.meta["val"])
        plain = node.graph.call_function(twin, node.args, keywords)
        try:
            plain.meta = {**node.meta, "val": twin(*arguments, **named)}
        except RuntimeError as error:  # torch has no shape of it, as of matrices without elements
            reason = str(error).splitlines()[0][:200]
            raise TraceError(
                f"'{operator_name(twin)}' with out= at {line_of(node)} has no shape that torch could tell: {reason}. "
                "Replace it by one that returns a new tensor."
            ) from error
        self._convert(plain)
        node.graph.erase_node(plain)
        self.writes.write_into(node, _listed(self.values.pop(plain)))

    def _emit_spelled(self, node, function: Callable, arguments: tuple) -> None:
        """The equation of a core-ATen spelling under the name that the table has, of its first output alone."""
        value = node.meta["val"]
        first = self._variable("", value[0] if isinstance(value, (list, tuple)) else value)
        self._note(node, self.emit(node, function, arguments, like=first), is_mutable=False)

    def _convert_copy(self, node, base, source) -> None:
        """What is copied into a tensor takes its shape and dtype, and none of its values."""
        if source.shape != base.shape:
            like = Variable("", base.shape, source.dtype)
            source = self.emit(node, aten.expand_as.default, (source, self._detached(node, base)), like=like)
        if operator_name(node.target) == "copy_":
            self.writes.write(node, node.args[0], source)
        else:
            same = source.dtype == base.dtype
            self.values[node] = source if same else self.emit(node, aten.to.dtype, (source, base.dtype))

    def _note(self, node, result: Variable | list, is_mutable: bool) -> None:
        """Give a node the values of its outputs, or of the first one alone, or write it where the operation writes."""
        value = node.meta["val"]
        if isinstance(result, list):
            self.values[node] = result
        elif is_mutable:
            self.writes.write(node, node.args[0], result)
        else:
            self.values[node] = [result, *value[1:]] if isinstance(value, (list, tuple)) else result

    def _write_out(self, node, write: Callable, arguments: list, keywords: dict) -> Variable | list | None:
        """The results of an operation that is written out in others, see `written_out`, None if this one is not.

        Their shapes are found on fake tensors, by the function itself or by `like`.
        """
        fakes = {
            self.values[n].name: n.meta["val"] for n in node.all_input_nodes if isinstance(self.values[n], Variable)
        }

        def call(function, *given, like=None):
            made = (like or function)(*substitute(given, fakes))
            result = self.emit(node, function, given, like=made)
            fakes.update({v.name: m for v, m in zip(variables_in(result), _listed(made), strict=True)})
            return result

        def depends(argument) -> bool:
            return self._is_varying((argument,))

        try:
            return write(call, depends, *arguments, **keywords)
        except TraceError as error:
            raise TraceError(f"layer '{origin(node).path or node.name}' {error}") from None

    def _is_varying(self, arguments: tuple) -> bool:
        return any(variable.name in self.varying for variable in variables_in(arguments))

    def _detached(self, node, argument):
        """An argument of which the values do not matter: nothing flows back to it."""
        is_floating = isinstance(argument, Variable) and argument.is_floating
        return self.emit(node, aten.detach.default, (argument,), like=argument) if is_floating else argument

    def emit(self, node, function: Callable, arguments: tuple, keywords: dict | None = None, like: Any = None):
        """The value of a new equation: a variable, or a list of them, like what a node has (or `like` is)."""
        value = node.meta.get("val") if like is None else like
        name = f"{node.name}.{len(self.equations)}"
        result: Any
        if isinstance(like, Variable):
            result = Variable(name, like.shape, like.dtype)
        elif isinstance(value, (list, tuple)):
            if any(isinstance(part, (list, tuple)) for part in value):
                raise TraceError(f"'{operator_name(function)}' at {line_of(node)} returns lists in a tuple: remove it.")
            result = [self._variable(f"{name}.{i}", part) for i, part in enumerate(value)]
        else:
            result = self._variable(name, value)
        outputs = tuple(result) if isinstance(result, list) else (result,)
        if self._is_varying((arguments, tuple((keywords or {}).values()))):
            self.varying.update(variable.name for variable in outputs)
        self.equations.append(Equation("", function, arguments, keywords or {}, outputs, line_of(node)))
        self.origins[outputs[0].name] = origin(node)
        return result


def _without_first_axis(x: Variable) -> Variable:
    return Variable("", x.shape[1:], x.dtype)


def _listed(made) -> list:
    return list(made) if isinstance(made, (list, tuple)) else [made]


def _is_single(node) -> bool:
    """Whether nobody reads but the first of an operation's outputs."""
    if not isinstance(node.meta.get("val"), (list, tuple)):
        return True
    return all(user.target is operator.getitem and (user.args[1] == 0 or not user.users) for user in node.users)
