"""From a module or function to a program: the only user of `torch.export`.

The export stays on the training IR, which keeps `conv2d`, `linear`, `batch_norm` and the like whole. What is left to do
is to name equations, to turn in-place operations into functional ones, to inline sub-graphs, and to lift what
canonization must be able to change (epsilons and missing biases) into the parameters.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from lrpfunc.errors import InputError, LrpError, TraceError
from lrpfunc.operations import OPERATORS, UNKNOWN, batch_norm, frozen_batch_norm, overwrite, size
from lrpfunc.program import (
    DEVICE,
    DTYPE,
    NAMESPACE,
    PARAMETER,
    Equation,
    Leaf,
    Program,
    Variable,
    label_inputs,
    leaf_names,
    operator_name,
    rename,
    variables_in,
)

aten = torch.ops.aten

# Identities of a deterministic evaluation, and checks of what the program checks itself.
IDENTITIES = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "alias", "lift_fresh_copy", "lift_fresh"}
ASSERTIONS = {"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size", "sym_constrain_range"}
VIEWS_OF_INPUT = "Tensor(a)"


def functionalize(model: nn.Module, *example_inputs, **example_keywords) -> tuple[Program, dict[str, Tensor]]:
    """A module as a pure function and its parameters: `fmodel, params`, with fmodel(params, *inputs) == model(*inputs).

    Inputs are pytrees with tensors; only their shapes and dtypes matter. The first dimension of the tensors that share
    the first tensor's batch size may differ from call to call, unless the model itself fixes it. `params` is a flat dict
    {name: tensor} of what forward reads, detached, sharing the module's storage: parameters, buffers, constants, batch
    norms' eps (`"bn1.eps"`), and a zero bias for each layer without one that a batch norm could be folded into.

    Dropout is the identity. A value that the model detaches counts as a constant.
    Errors: `TraceError` for a model that cannot be exported, a batch norm in training mode, or an in-place write whose
    old value is read again.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(f"functionalize needs an nn.Module, but got {type(model).__name__}. Use lrpfunc.trace for functions.")
    _refuse_training(model)
    names, inputs = _named_inputs(model.forward, example_inputs, example_keywords)
    positional = len(example_inputs)

    def call(wrapper: nn.Module, inputs: tuple):
        return wrapper.model(*inputs[:positional], **dict(zip(names[positional:], inputs[positional:], strict=True)))

    capture = _capture(call, names, inputs, bool(example_keywords), model=model)
    return _lift(capture.program, dict(capture.params))


def trace(function: Callable, params, *example_inputs, **example_keywords) -> tuple[Program, Any]:
    """A pure function `f(params, *inputs)` as a program: `fmodel, params`, where params is any pytree of tensors.

    Where params is a flat dict, batch norms' eps and missing biases are lifted into it as `functionalize` does.
    Errors: `TraceError` as for `functionalize`.
    """
    names, inputs = _named_inputs(function, (params, *example_inputs), example_keywords)
    names, inputs = names[1:], inputs[1:]
    positional = len(example_inputs)

    def call(wrapper: nn.Module, both: tuple):
        params, *inputs = both
        return function(params, *inputs[:positional], **dict(zip(names[positional:], inputs[positional:], strict=True)))

    capture = _capture(call, names, inputs, bool(example_keywords), params=params)
    is_flat = isinstance(params, dict) and all(isinstance(leaf, Tensor) for leaf in params.values())
    return _lift(capture.program, dict(params)) if is_flat else (capture.program, params)


# -- inputs -----------------------------------------------------------------------------------------------------------


def _named_inputs(function: Callable, positional: tuple, keywords: dict) -> tuple[tuple[str, ...], tuple]:
    """The names and values of all inputs, positional ones first, as the function's signature calls them."""
    try:
        bound = inspect.signature(function).bind(*positional, **keywords)
    except TypeError as error:
        raise InputError(f"the example inputs do not fit the signature of forward: {error}.") from None
    names: list[str] = []
    for name in bound.arguments:
        kind = inspect.signature(function).parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{name}{i}" for i in range(len(positional) - len(names))]
        elif len(names) < len(positional):
            names.append(name)
    return (*names, *keywords), (*positional, *keywords.values())


def _flatten(tree) -> tuple[list, optree.PyTreeSpec]:
    """Flatten a pytree in which dataclasses (Hugging Face's outputs are some) count as nodes."""
    for node in _dataclasses_in(tree):
        _register(type(node))
    return optree.tree_flatten(tree, namespace=NAMESPACE)


def _dataclasses_in(tree) -> Iterator[Any]:
    def is_dataclass_instance(node):
        return is_dataclass(node) and not isinstance(node, type)

    for leaf in optree.tree_leaves(tree, is_leaf=is_dataclass_instance, namespace=NAMESPACE):
        if is_dataclass_instance(leaf):
            yield leaf
            yield from _dataclasses_in([getattr(leaf, f.name) for f in fields(leaf)])


def _register(kind: type) -> None:
    names = tuple(f.name for f in fields(kind))

    def flatten(node):
        present = tuple(name for name in names if getattr(node, name) is not None)
        return [getattr(node, name) for name in present], present, present

    def unflatten(present, children):
        return kind(**dict(zip(present, children, strict=True)))

    with contextlib.suppress(ValueError):  # registered already
        optree.register_pytree_node(kind, flatten, unflatten, namespace=NAMESPACE)


# -- export -----------------------------------------------------------------------------------------------------------


class _Capture(NamedTuple):
    program: Program
    params: dict[str, Tensor]


class _Wrapper(nn.Module):
    """A flat front for `torch.export`: tensors in, a list of tensors out; structures stay on our side."""

    def __init__(self, call, rebuild, record, model):
        super().__init__()
        self.call, self.rebuild, self.record = call, rebuild, record
        if model is not None:
            self.model = model

    def forward(self, *tensors):
        leaves, structure = _flatten(self.call(self, self.rebuild(tensors)))
        self.record(leaves, structure)
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _capture(call, names: tuple[str, ...], inputs: tuple, takes_keywords: bool, model=None, params=None) -> _Capture:
    param_leaves, param_structure = _flatten(params if model is None else ())
    param_names = leaf_names(params) if model is None else []
    for name, leaf in zip(param_names, param_leaves, strict=True):
        if not isinstance(leaf, Tensor):
            raise TraceError(f"leaf '{name}' of params must be a tensor, but is {type(leaf).__name__}.")
    leaves, structure = _flatten(inputs)
    is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
    if not any(is_tensor):
        raise TraceError("there is no tensor among the example inputs: give at least one.")
    recorded: dict[str, Any] = {}

    def rebuild(tensors: Sequence[Tensor]):
        tensors = iter(tensors)
        own = [next(tensors) for _ in param_leaves]
        filled = [next(tensors) if is_t else leaf for is_t, leaf in zip(is_tensor, leaves, strict=True)]
        rebuilt = optree.tree_unflatten(structure, filled)
        return rebuilt if model is not None else (optree.tree_unflatten(param_structure, own), *rebuilt)

    def record(output_leaves, output_structure):
        recorded.update(leaves=output_leaves, structure=output_structure)

    wrapper = _Wrapper(call, rebuild, record, model)
    wrapper.train(model.training) if model is not None else wrapper.eval()
    tensors = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
    exported = _export(wrapper, param_leaves, tensors)

    builder = _Builder(model)
    placeholders = iter(node for node in exported.graph.nodes if node.op == "placeholder")
    own_names = iter(param_names)
    input_variables: list[Variable] = []
    for spec in exported.graph_signature.input_specs:
        node = next(placeholders)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            builder.parameter(node, spec.target.removeprefix("model."), _fetch(wrapper, spec.target))
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            builder.parameter(node, spec.target.removeprefix("model."), exported.constants[spec.target])
        elif spec.kind is InputKind.USER_INPUT and (name := next(own_names, None)) is not None:
            builder.parameter(node, name, param_leaves[len(builder.params)])
        elif spec.kind is InputKind.USER_INPUT:
            input_variables.append(builder.input(node, len(input_variables)))
        else:
            raise TraceError(f"the model holds {spec.target}, a {spec.kind.name}, which is not a tensor.")
    builder.reference(input_variables)
    results = builder.inline(exported.graph, exported.graph_module)
    return builder.finish(exported, names, inputs, input_variables, results, recorded, takes_keywords, params)


def _fetch(wrapper: nn.Module, target: str) -> Tensor:
    module, _, name = target.rpartition(".")
    return getattr(wrapper.get_submodule(module), name).detach()


def _export(wrapper: nn.Module, params: list[Tensor], tensors: list[Tensor]):
    """Export with a dynamic batch size if the model allows one, else with the sizes of the example."""
    batch = next((tensor.shape[0] for tensor in tensors if tensor.dim()), None)
    batched = [bool(tensor.dim()) and tensor.shape[0] == batch for tensor in tensors]
    if batch is not None:
        # A size of one would be taken for a constant, so an example of one sample is traced as two.
        examples = [
            tensor.repeat(2, *[1] * (tensor.dim() - 1)) if is_batched and batch == 1 else tensor
            for tensor, is_batched in zip(tensors, batched, strict=True)
        ]
        dynamic = [{0: torch.export.Dim.AUTO} if is_batched else None for is_batched in batched]
        try:
            exported = _export_once(wrapper, params + examples, [None] * len(params) + dynamic)
            if batch != 1 or _is_dynamic(exported, len(tensors)):
                return exported
        except Exception:  # whatever is wrong shows again, in plainer words, without dynamic sizes
            pass
    try:
        return _export_once(wrapper, params + tensors, None)
    except LrpError:
        raise
    except Exception as error:
        raise TraceError(_explain_failure(error)) from error


def _export_once(wrapper: nn.Module, tensors: list[Tensor], dynamic: list | None):
    shapes = None if dynamic is None else {"tensors": tuple(dynamic)}
    with _quiet(), torch.no_grad():
        return torch.export.export(wrapper, tuple(tensors), dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def _quiet():
    """Keep torch's log of a failing export to itself: the error says it."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with open("/dev/null", "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logger.setLevel(level)


def _is_dynamic(exported, inputs: int) -> bool:
    nodes = [node for node in exported.graph.nodes if node.op == "placeholder"][-inputs:]
    return any(isinstance(n, torch.SymInt) for node in nodes for n in getattr(node.meta["val"], "shape", ()))


def _explain_failure(error: Exception) -> str:
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent), str(Path(optree.__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*ours, "<"))]
    where = f" at {frames[-1].filename}:{frames[-1].lineno} (`{frames[-1].line}`)" if frames else ""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    hint = ""
    if "data-dependent" in str(error):
        hint = " The model decides by a value that is only known when it runs: write it with torch.where or torch.cond."
    return f"the model cannot be exported{where}: {type(error).__name__}: {first}{hint}"


def _refuse_training(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise TraceError(_training_message(name))


def _training_message(name: str) -> str:
    return (
        f"batch norm '{name}' is in training mode, in which samples of a batch depend on each other. "
        "Call model.eval() first (and give it running statistics)."
    )


# -- from graph to equations ------------------------------------------------------------------------------------------


class _Draft(NamedTuple):
    """An equation before it has its final name."""

    scope: str
    path: str
    equation: Equation


class _Builder:
    """Goes through an exported graph once and keeps the equations, the value of each node, and what became stale."""

    def __init__(self, model: nn.Module | None):
        # A shared tensor goes by the first of its names, as in `named_parameters`.
        tensors = [] if model is None else [*model.named_parameters(), *model.named_buffers()]
        self.canonical_names = {id(tensor): name for name, tensor in reversed(tensors)}
        self.model = model
        self.params: dict[str, Tensor] = {}
        self.parameters: dict[str, Variable] = {}
        self.values: dict[Any, Any] = {}
        self.drafts: list[_Draft] = []
        self.stale: dict[Any, str] = {}
        self.symbols: dict[str, str] = {}
        self.traced: list[tuple[torch.device, torch.dtype]] = []

    # -- leaves

    def parameter(self, node, name: str, tensor: Tensor) -> None:
        if self.model is not None:
            module, _, leaf = name.rpartition(".")
            with contextlib.suppress(AttributeError):
                name = self.canonical_names.get(id(getattr(self.model.get_submodule(module), leaf)), name)
        self.params[name] = tensor
        self.parameters[name] = Variable(PARAMETER + name, tuple(tensor.shape), tensor.dtype)
        self.values[node] = self.parameters[name]

    def input(self, node, position: int) -> Variable:
        variable = self.variable(node, f"inputs.{position}")
        self.values[node] = variable
        return variable

    def reference(self, inputs: Sequence[Variable]) -> None:
        """The device and dtype of the trace: literals equal to them follow the call instead."""
        tensors = [p for p in self.params.values() if p.dim() and p.is_floating_point()]
        floating = [v.dtype for v in inputs if v.is_floating]
        self.dtype = tensors[0].dtype if tensors else next(iter(floating), None)

    def variable(self, node, name: str | None = None) -> Variable:
        value = node.meta.get("val") if hasattr(node, "meta") else node
        return self._variable(name or node.name, value)

    def _variable(self, name: str, value) -> Variable:
        if isinstance(value, Tensor):
            return Variable(name, tuple(self._size(n) for n in value.shape), value.dtype)
        return Variable(name)

    def _size(self, n) -> int | str:
        if isinstance(n, int):
            return n
        expression = str(n.node.expr)
        if expression.isidentifier():
            fresh = "batch" if not self.symbols else f"batch{len(self.symbols) + 1}"
            return self.symbols.setdefault(expression, fresh)
        for symbol, name in self.symbols.items():
            expression = expression.replace(symbol, name)
        return expression

    # -- nodes

    def inline(self, graph, owner) -> list:
        """Convert all nodes of a graph and return what it returns."""
        for node in graph.nodes:
            if node.op == "call_function":
                self._convert(node, owner)
            elif node.op == "get_attr":
                self.values[node] = getattr(owner, node.target)
            elif node.op == "output":
                return [self._read(argument, node) for argument in node.args[0]]
        raise AssertionError("a graph without an output")

    def _convert(self, node, owner) -> None:
        name = operator_name(node.target)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            self._inline_region(node, name)
        elif name in ASSERTIONS:
            return
        elif node.target.__name__ == "getitem" and not isinstance(node.target, torch._ops.OpOverload):
            source = self._read(node.args[0], node)
            self.values[node] = source[node.args[1]]
        elif name.removesuffix("_") in IDENTITIES or (name == "detach_"):
            self.values[node] = self._read(node.args[0], node)
        elif name in ("sym_size", "size") and len(node.args) == 2:
            self._emit(node, size, (self._read(node.args[0], node), node.args[1]), {})
        elif isinstance(node.target, torch._ops.OpOverload):
            self._convert_operator(node, name)
        else:  # arithmetic on sizes
            self._emit(node, node.target, tuple(self._read(a, node) for a in node.args), {})

    def _inline_region(self, node, name: str) -> None:
        """A region under no_grad or a disabled autocast is ordinary code."""
        values = [self._read(argument, node) for argument in node.args]
        position = next((i for i, v in enumerate(values) if isinstance(v, torch.fx.GraphModule)), None)
        if position is None or name == "wrap_with_autocast" and values[2] is not False:
            raise TraceError(f"'{name}' at {_source(node)} is not supported: remove it from forward.")
        region = values[position]
        inputs = iter(values[position + 1 :])
        for inner in region.graph.nodes:
            if inner.op == "placeholder":
                self.values[inner] = next(inputs)
        self.values[node] = self.inline(region.graph, region)

    def _convert_operator(self, node, name: str) -> None:
        arguments, keywords = _normalize(node.target, node.args, node.kwargs)
        arguments = [self._read(argument, node) for argument in arguments]
        keywords = {key: self._follow(key, self._read(value, node)) for key, value in keywords.items()}
        arguments = [self._follow("dtype", a) if isinstance(a, torch.dtype) else a for a in arguments]
        function = node.target
        if name == "batch_norm":
            x, weight, bias, mean, var, training, _, eps, _ = arguments
            if training:
                raise TraceError(_training_message(_scope(node)[1] or node.name))
            function, arguments = batch_norm, [x, weight, bias, mean, var, eps]
        if function is not batch_norm and node.target._schema.is_mutable:
            self._convert_inplace(node, name, arguments, keywords)
        else:
            self._emit(node, function, tuple(arguments), keywords)

    def _follow(self, key: str, value):
        """A device or dtype that was baked into the trace, as the one of the call."""
        if key == "device" and value is not None:
            return Variable(DEVICE)
        if key == "dtype" and value is not None and value == self.dtype:
            return Variable(DTYPE)
        return value

    def _convert_inplace(self, node, name: str, arguments: list, keywords: dict) -> None:
        written = node.all_input_nodes[0] if not isinstance(node.args[0], torch.fx.Node) else node.args[0]
        function, arguments = _functional_twin(node, name, arguments)
        result = self._emit(node, function, tuple(arguments), keywords)
        if (before := self.values[written]).dtype != result.dtype:
            result = self._emit(node, aten.to.dtype, (result, before.dtype), {})
        self._write(node, written, result)

    def _write(self, node, written, result: Variable) -> None:
        """Let every name of the written memory see the new value: the chain of views down to it gets it, others go stale."""
        chain = [written]
        while (base := _base_of(chain[-1])) is not None:
            chain.append(base)
        memory = _memory(written)
        for other in self.values:
            if other not in chain and isinstance(other, torch.fx.Node) and _memory(other) == memory is not None:
                self.stale[other] = _source(node)
        self.stale.pop(node, None)
        self.values[written] = self.values[node] = result
        for depth, base in enumerate(chain[1:], start=1):
            views = tuple(
                (view.target, *_literal_arguments(view)) for view in reversed(chain[:depth])
            )
            self.values[base] = self._emit(node, overwrite, (self.values[base], result, views), {}, like=base)

    def _read(self, argument, node):
        if isinstance(argument, torch.fx.Node):
            if argument in self.stale:
                raise TraceError(
                    f"'{argument.name}', read at {_source(node)}, is a view of memory that was overwritten at "
                    f"{self.stale[argument]}. Replace the in-place operation there by one that returns a new tensor."
                )
            return self.values[argument]
        if isinstance(argument, (list, tuple)):  # as plain ones: torch.compile does not take fx's immutable lists
            return (list if isinstance(argument, list) else tuple)(self._read(item, node) for item in argument)
        return argument

    def _emit(self, node, function: Callable, arguments: tuple, keywords: dict, like=None):
        value = (node if like is None else like).meta.get("val")
        several = isinstance(value, (list, tuple))
        name = f"{node.name}.{len(self.drafts)}"
        outputs = tuple(
            self._variable(f"{name}.{i}" if several else name, part) for i, part in enumerate(value if several else [value])
        )
        scope, path = _scope(node)
        path = path.removeprefix("model").removeprefix(".") if self.model is not None else path
        equation = Equation("", function, arguments, keywords, outputs, _source(node))
        self.drafts.append(_Draft(scope, path, equation))
        self.values[node] = list(outputs) if several else outputs[0]
        return self.values[node]

    # -- the program

    def finish(self, exported, names, inputs, variables, results, recorded, takes_keywords, params) -> _Capture:
        results, given = iter(results), iter(variables)
        values = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in optree.tree_leaves(inputs, namespace=NAMESPACE)]
        paths = optree.tree_paths(inputs, namespace=NAMESPACE)
        outputs = [next(results) if isinstance(leaf, Tensor) else leaf for leaf in recorded["leaves"]]
        tree = params if self.model is None else self.params
        program = Program(
            parameters={name: self.parameters[name] for name in leaf_names(tree)},
            parameter_paths=tuple(optree.tree_paths(tree, namespace=NAMESPACE)),
            input_names=names,
            input_leaves=tuple(map(Leaf, paths, label_inputs(names, inputs), values)),
            equations=tuple(draft.equation for draft in self.drafts),
            output=optree.tree_unflatten(recorded["structure"], outputs),
            size_ranges=self._ranges(exported),
            takes_keywords=takes_keywords,
        )
        program = _name(program, self.drafts)
        program = program.replace(equations=_fuse_frozen_batch_norms(program))
        return _Capture(program, self.params)

    def _ranges(self, exported) -> dict[str, tuple[int, int | None]]:
        ranges = {}
        for symbol, bounds in exported.range_constraints.items():
            name = self.symbols.get(str(symbol))
            high = int(bounds.upper) if bounds.upper < 2**31 else None
            low = int(bounds.lower) if int(bounds.lower) > 2 else 0  # two is what torch assumes of any dynamic size
            if name is not None and (low or high is not None):
                ranges[name] = (low, high)
        return ranges


def _normalize(target, args: tuple, kwargs: dict) -> tuple[list, dict]:
    """All arguments in the schema's order, defaults filled in; keyword-only ones apart, without those left at None."""
    positional, keywords = [], {}
    for i, argument in enumerate(target._schema.arguments):
        if argument.kwarg_only:
            if kwargs.get(argument.name) is not None:
                keywords[argument.name] = kwargs[argument.name]
        elif i < len(args):
            positional.append(args[i])
        else:
            positional.append(kwargs.get(argument.name, argument.default_value))
    return positional, keywords


def _functional_twin(node, name: str, arguments: list) -> tuple[Callable, list]:
    overload = node.target._overloadname
    twin = name.removesuffix("_")
    packet = getattr(aten, twin, None)
    if packet is None or overload not in packet.overloads():
        raise TraceError(f"the in-place operation '{name}' at {_source(node)} has no functional twin: write it as one.")
    return getattr(packet, overload), arguments


def _base_of(node):
    """The node that a view shows, None if the node owns its memory."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], torch.fx.Node):
        return None
    is_inplace = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    return node.args[0] if not is_inplace and _memory(node.args[0]) == _memory(node) is not None else None


def _literal_arguments(view) -> tuple[tuple, dict]:
    return tuple(view.args[1:]), dict(view.kwargs)


def _memory(node):
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def _scope(node) -> tuple[str, str]:
    """The call (as a key) and the path of the innermost module that made a node."""
    stack = [(key, path) for key, (path, _) in node.meta.get("nn_module_stack", {}).items() if isinstance(path, str)]
    return stack[-1] if stack else ("", "")


def _source(node) -> str:
    """The user's line that made a node: the innermost one outside torch."""
    lines = node.meta.get("stack_trace", "").splitlines()
    places = [line.strip() for line in lines if line.strip().startswith("File ")]
    outside = [p for p in places if str(Path(torch.__file__).parent) not in p and str(Path(__file__).parent) not in p]
    return outside[-1] if outside else f"operation '{node.name}'"


# -- names ------------------------------------------------------------------------------------------------------------


def _name(program: Program, drafts: Sequence[_Draft]) -> Program:
    """Name each equation after the module that made it if it is that call's only one, else after the parameter it reads.

    A module called twice gives `name` and `name:1`; anything else is called after its module and operation.
    """
    is_active = [any(v.name in program.active for v in equation.outputs) for equation in program.equations]
    calls = Counter(draft.scope for draft, active in zip(drafts, is_active, strict=True) if active)
    parents = {p for draft, active in zip(drafts, is_active, strict=True) if active for p in _parents(draft.path)}
    used: Counter[str] = Counter()
    named = []
    for draft, active in zip(drafts, is_active, strict=True):
        equation = draft.equation
        if active and draft.path and draft.path not in parents and calls[draft.scope] == 1:
            name = draft.path
        else:
            name = _parameter_name(equation) or ".".join(filter(None, (draft.path, equation.operator)))
        used[name] += 1
        unique = name if used[name] == 1 else f"{name}:{used[name] - 1}"
        named.append(replace(equation, name=unique))
    return program.replace(equations=tuple(named))


def _parents(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _parameter_name(equation: Equation) -> str | None:
    layout = OPERATORS.get(equation.operator, UNKNOWN).layout
    weights = [] if layout is None else list(variables_in(equation.arguments[: layout.weight + 1]))
    leaves = [v.name.removeprefix(PARAMETER) for v in weights if v.name.startswith(PARAMETER)]
    return leaves[-1].removesuffix(".weight") if leaves and leaves[-1] != "weight" else None


# -- recognized patterns ----------------------------------------------------------------------------------------------


def _fuse_frozen_batch_norms(program: Program) -> tuple[Equation, ...]:
    """Put `x * s + (b - m * s)` with `s = w * rsqrt(v + eps)` over parameters, as FrozenBatchNorm2d writes it, into one."""
    fused = {}
    for equation in program.equations:
        if match := _match_frozen_batch_norm(program, equation):
            product, arguments = match
            name = product.name.rpartition(".mul")[0] or product.name
            fused[equation.outputs[0].name] = replace(
                equation, name=name, function=frozen_batch_norm, arguments=arguments, keywords={}
            )
    return tuple(fused.get(e.outputs[0].name, e) for e in program.equations)


def _match_frozen_batch_norm(program: Program, equation: Equation):
    def made_by(value, operator: str) -> Equation | None:
        maker = program.producers.get(value.name) if isinstance(value, Variable) else None
        return maker if maker is not None and maker.operator == operator else None

    def parameter(value) -> Variable | None:
        """The one-dimensional parameter under reshapes."""
        while maker := made_by(value, "reshape") or made_by(value, "view"):
            value = maker.arguments[0]
        is_leaf = isinstance(value, Variable) and value.name.startswith(PARAMETER) and len(value.shape) == 1
        return value if is_leaf else None

    if equation.operator != "add" or equation.keywords:
        return None
    product, shift = (made_by(a, o) for a, o in zip(equation.arguments, ("mul", "sub"), strict=False))
    if product is None or shift is None or product.arguments[0].name not in program.active:
        return None
    x, scale = product.arguments
    scaled, shifted = made_by(scale, "mul"), made_by(shift.arguments[1], "mul")
    if scaled is None or shifted is None or shifted.arguments[1] is not scale:
        return None
    root = made_by(scaled.arguments[1], "rsqrt")
    total = root and made_by(root.arguments[0], "add")
    if total is None:
        return None
    leaves = [parameter(v) for v in (scaled.arguments[0], shift.arguments[0], shifted.arguments[0], total.arguments[0])]
    eps = total.arguments[1]
    return None if None in leaves or not isinstance(eps, float) else (product, (x, *leaves, eps))


# -- lifting ----------------------------------------------------------------------------------------------------------


def _lift(program: Program, params: dict[str, Tensor]) -> tuple[Program, dict[str, Tensor]]:
    """Make leaves of what folding changes: batch norms' eps, and the bias of layers without one in front of them."""
    read = {v.name for e in program.equations for v in e.reads} | {v.name for v in variables_in(program.output_leaves)}
    lifted: dict[str, Variable] = {}
    equations = {e.outputs[0].name: e for e in program.equations}

    def leaf(name: str, tensor: Tensor) -> Variable:
        params.setdefault(name, tensor)
        return lifted.setdefault(name, Variable(PARAMETER + name, tuple(tensor.shape), tensor.dtype))

    for equation in program.equations:
        if equation.function not in (batch_norm, frozen_batch_norm):
            continue
        *rest, mean, var, eps = equation.arguments
        if not isinstance(eps, Variable):
            # float64 keeps 1e-5 what it is; a 0-d tensor does not change the dtype of what it is added to.
            device = params[var.name.removeprefix(PARAMETER)].device if var.name.startswith(PARAMETER) else None
            name = f"{var.name.removeprefix(PARAMETER).rpartition('.')[0] or equation.name}.eps"
            value = leaf(name, torch.tensor(eps, dtype=torch.float64, device=device))
            equations[equation.outputs[0].name] = replace(equation, arguments=(*rest, mean, var, value))
        layer = program.producers.get(rest[0].name)
        operator = OPERATORS.get(layer.operator, UNKNOWN) if layer is not None else UNKNOWN
        layout = operator.layout
        if layout is None or layout.bias is None or layer.arguments[layout.bias] is not None:
            continue
        weight = layer.arguments[layout.weight]
        if isinstance(weight, Variable) and weight.name.startswith(PARAMETER):
            tensor = params[weight.name.removeprefix(PARAMETER)]
            name = f"{weight.name.removeprefix(PARAMETER).removesuffix('.weight')}.bias"
            arguments = list(layer.arguments)
            arguments[layout.bias] = leaf(name, torch.zeros(_channels(var), dtype=tensor.dtype, device=tensor.device))
            equations[layer.outputs[0].name] = replace(layer, arguments=tuple(arguments))
    params = {name: tensor for name, tensor in params.items() if name in lifted or PARAMETER + name in read}
    variables = {**program.parameters, **lifted}
    return (
        program.replace(
            equations=tuple(equations[e.outputs[0].name] for e in program.equations),
            parameters={name: variables[name] for name in leaf_names(params)},
            parameter_paths=tuple(optree.tree_paths(params, namespace=NAMESPACE)),
        ),
        params,
    )


def _channels(variable: Variable) -> int:
    return variable.shape[0]
