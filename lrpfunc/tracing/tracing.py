"""From a module or function to a program.

The export stays on the training IR, which keeps `conv2d`, `linear`, `batch_norm` and the like whole. What is left to do
is to turn in-place operations into functional ones, to inline sub-graphs, to name equations, and to lift what
canonization must be able to change (epsilons and missing biases) into the parameters.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind

from lrpfunc.errors import InputError, TraceError
from lrpfunc.operations import Immovable, batch_norms, facts, is_active, leftwards, positions, row_of, takes_scale
from lrpfunc.program import (
    DEVICE,
    DTYPE,
    NAMESPACE,
    PARAMETER,
    Equation,
    Leaf,
    Program,
    Variable,
    batch_norm,
    frozen_batch_norm,
    label_inputs,
    leaf_names,
    size,
    variables_in,
)
from lrpfunc.tracing.exports import Axes, Front, Ranges, export
from lrpfunc.tracing.graphs import (
    RANDOM_IN_TRAINING,
    Builder,
    Origin,
    is_random,
    random_message,
)

aten = torch.ops.aten

Parameters = dict[str, Tensor]


def functionalize(model: nn.Module, /, *example_inputs, **example_keywords) -> tuple[Program, Parameters]:
    """A module as a pure function and its parameters: `fmodel, params`, with fmodel(params, *inputs) == model(*inputs).

    Inputs are pytrees with tensors; only their shapes and dtypes matter. The first dimension of the tensors that share
    the first tensor's batch size may differ from call to call, unless the model itself fixes it. `params` is a flat
    dict {name: tensor} of what forward reads, detached, sharing the module's storage: parameters, buffers, constants,
    batch norms' eps (`"bn1.eps"`), and a zero bias for each layer without one that a batch norm could be folded into.

    Where token ids (batch, length), masks like them or embeddings (batch, length, width) come in, the length may differ
    as well. Objects in the output that are no pytrees of tensors (caches) come back as None.

    Dropout is the identity. A value that the model detaches counts as a constant.
    Errors: `TraceError` for a model that cannot be exported, a batch norm in training mode, random numbers, or an
    in-place write whose memory is read again under another name; `InputError` for inputs that forward does not take.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"functionalize needs an nn.Module, but got {type(model).__name__}. Use lrpfunc.trace for functions."
        )
    inputs = _Inputs.of(model.forward, example_inputs, example_keywords)
    with _untouched(model):
        program, params = _capture(_Boundary(lambda _, *values: inputs.call(model, values), (), inputs), model)
    read = {v.name for e in program.equations for v in e.reads} | {v.name for v in variables_in(program.output_leaves)}
    params = {name: tensor.detach() for name, tensor in params.items() if PARAMETER + name in read}
    return _lift(program.with_parameters(program.parameters, params), params)


def trace(function: Callable, params, /, *example_inputs, **example_keywords) -> tuple[Program, Any]:
    """A pure function `f(params, *inputs)` as a program: `fmodel, params`, where params is any pytree of tensors.

    Where params is a flat dict, constants, batch norms' eps and missing biases become leaves of it, as `functionalize`
    has them.
    Errors: `TraceError` as for `functionalize`, and for leaves of params that are no tensors.
    """
    if not callable(function):
        raise TraceError(f"trace needs a function f(params, *inputs), but got {type(function).__name__}.")
    inputs = _Inputs.of(function, (params, *example_inputs), example_keywords).without_first()
    return _trace(function, params, inputs, axes=None)


def trace_along(function: Callable, params, inputs: Sequence[Tensor], axes: Sequence[Axes]) -> tuple[Program, Any]:
    """As `trace` of examples without data, with the axes of each input that may have any size."""
    return _trace(function, params, _Inputs.of(function, (params, *inputs), {}).without_first(), axes)


def _trace(function: Callable, params, inputs: _Inputs, axes: Sequence[Axes] | None) -> tuple[Program, Any]:
    boundary = _Boundary(lambda own, *values: inputs.call(function, values, own), params, inputs, axes)
    program, captured = _capture(boundary, None)
    return _lift(program, captured) if boundary.is_flat else (program, params)


# -- inputs and outputs -----------------------------------------------------------------------------------------------


class _Inputs(NamedTuple):
    """All inputs with the names that the signature gives them; the first `positional` ones are passed by position."""

    names: tuple[str, ...]
    values: tuple
    positional: int

    @classmethod
    def of(cls, function: Callable, positional: tuple, keywords: Mapping[str, Any]) -> _Inputs:
        names = _positional_names(function, positional, keywords)
        return cls((*names, *keywords), (*positional, *keywords.values()), len(positional))

    def without_first(self) -> _Inputs:
        return _Inputs(self.names[1:], self.values[1:], self.positional - 1)

    def call(self, function: Callable, values: Sequence, *first):
        keywords = dict(zip(self.names[self.positional :], values[self.positional :], strict=True))
        return function(*first, *values[: self.positional], **keywords)


def _positional_names(function: Callable, positional: tuple, keywords: Mapping[str, Any]) -> list[str]:
    try:
        signature = inspect.signature(function)
    except ValueError:  # builtins, such as torch.conv2d, have none
        return [f"input{i}" for i in range(len(positional))]
    try:
        signature.bind(*positional, **keywords)
    except TypeError as error:
        raise InputError(f"the example inputs do not fit the signature {signature}: {error}.") from None
    names: list[str] = []
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{name}{i}" for i in range(len(positional) - len(names))]
        elif len(names) < len(positional):
            names.append(name)
    return names


class _Boundary:
    """Between the pytrees that `function(own, *inputs)` takes and gives and the lists of tensors that export does."""

    def __init__(self, function: Callable, own, inputs: _Inputs, axes: Sequence[Axes] | None = None):
        self.function, self.own, self.inputs, self.axes = function, own, inputs, axes
        self.own_leaves, self.own_structure = _flatten(own)
        self.own_names = _checked_names(own, self.own_leaves)
        self.is_flat = type(own) is dict and all(isinstance(leaf, Tensor) for leaf in own.values())
        self.leaves, self.facts = _flatten(inputs.values)
        if not any(isinstance(leaf, Tensor) for leaf in self.leaves):
            raise TraceError("there is no tensor among the example inputs: give at least one.")

    def examples(self) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors to trace with, all of them different: one that is given twice is still two inputs."""
        given = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        return [leaf.detach() for leaf in self.own_leaves], [leaf.detach().clone() for leaf in given]

    def __call__(self, tensors: Sequence[Tensor]) -> list:
        filled = iter(tensors)
        own = optree.tree_unflatten(self.own_structure, [next(filled) for _ in self.own_leaves])
        values = [next(filled) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        result = self.function(own, *optree.tree_unflatten(self.facts, values))
        leaves, self.result_structure = _flatten(result)
        self.results = [leaf if _varies(leaf) or isinstance(leaf, PLAIN) else None for leaf in leaves]
        return [leaf for leaf in self.results if _varies(leaf)]

    def input_leaves(self, variables: Sequence[Variable]) -> tuple[Leaf, ...]:
        filled = iter(variables)
        values = [next(filled) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        paths = optree.tree_paths(self.inputs.values, namespace=NAMESPACE)  # type: ignore[arg-type]
        return tuple(map(Leaf, paths, label_inputs(self.inputs.names, self.inputs.values), values))

    def output(self, values: Sequence) -> Any:
        filled = iter(values)
        leaves = [next(filled) if _varies(leaf) else leaf for leaf in self.results]
        return optree.tree_unflatten(self.result_structure, leaves)


# What an output may hold besides tensors. Caches and other objects hold tensors of the trace and come back as None.
PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def _varies(leaf) -> bool:
    return isinstance(leaf, (Tensor, torch.SymInt, torch.SymFloat, torch.SymBool))


def _checked_names(own, leaves: Sequence) -> list[str]:
    names = leaf_names(own)
    counts = Counter(names)
    for name, leaf in zip(names, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            raise TraceError(f"leaf '{name}' of params must be a tensor, but is {type(leaf).__name__}.")
        if counts[name] > 1:
            raise TraceError(f"two leaves of params are called '{name}': a dot also joins nested names. Rename one.")
    return names


def _flatten(tree) -> tuple[list, optree.PyTreeSpec]:
    """Flatten a pytree in which dataclasses (Hugging Face's outputs are some) count as nodes."""
    for node in _dataclasses_in(tree):
        _register(type(node))
    return optree.tree_flatten(tree, namespace=NAMESPACE)


def _dataclasses_in(tree) -> Iterator[Any]:
    for leaf in optree.tree_leaves(tree, is_leaf=_is_dataclass_instance, namespace=NAMESPACE):
        if _is_dataclass_instance(leaf):
            yield leaf
            yield from _dataclasses_in([getattr(leaf, f.name) for f in fields(leaf)])


def _is_dataclass_instance(node) -> bool:
    return is_dataclass(node) and not isinstance(node, type)


def _register(kind: type) -> None:
    """Make a dataclass a node of pytrees: its fields that are not None, by name."""
    names = tuple(f.name for f in fields(kind) if f.init)

    def flatten(node):
        present = tuple(name for name in names if getattr(node, name) is not None)
        return [getattr(node, name) for name in present], present, present

    def unflatten(present, children):
        return kind(**{**dict.fromkeys(names), **dict(zip(present, children, strict=True))})

    with contextlib.suppress(ValueError):  # registered already
        optree.register_pytree_node(kind, flatten, unflatten, namespace=NAMESPACE)


# -- program ----------------------------------------------------------------------------------------------------------


def _capture(boundary: _Boundary, model: nn.Module | None) -> tuple[Program, Parameters]:
    """The program of a function, and its parameters: the boundary's own leaves or a model's tensors, and constants."""
    front = Front(boundary, model)
    exported, ranges, same = export(front, *boundary.examples(), boundary.axes)
    builder = Builder(model, same)
    inputs = _placeholders(builder, exported, front, boundary)
    kinds = [spec.kind for spec in exported.graph_signature.output_specs]
    results = zip(builder.inline(exported.graph, exported.graph_module), kinds, strict=True)
    tree = builder.params if model is not None or boundary.is_flat else boundary.own
    program = Program(
        parameters={name: builder.parameters[name] for name in leaf_names(tree)},
        parameter_paths=tuple(optree.tree_paths(tree, namespace=NAMESPACE)),
        input_names=boundary.inputs.names,
        input_leaves=boundary.input_leaves(inputs),
        equations=tuple(builder.equations),
        output=boundary.output([result for result, kind in results if kind is OutputKind.USER_OUTPUT]),
        size_ranges={builder.symbols[symbol]: bounds for symbol, bounds in ranges.items() if bounds != (0, None)},
        takes_keywords=boundary.inputs.positional < len(boundary.inputs.names),
    )
    program = program.replace(equations=_fuse_frozen_batch_norms(program.replace()))
    program = program.replace(equations=_name(program, builder.origins))
    program = replace(program, size_ranges=_within_tables(program))
    _refuse_random(program)
    return program.replace(equations=_follow_call(program)), builder.params


def _placeholders(builder: Builder, exported, front: Front, boundary: _Boundary) -> list[Variable]:
    """Give the builder all leaves of a graph, and return the inputs among them."""
    own = list(zip(boundary.own_names, boundary.own_leaves, strict=True))
    inputs: list[Variable] = []
    nodes = exported.graph.find_nodes(op="placeholder")
    for node, spec in zip(nodes, exported.graph_signature.input_specs, strict=True):
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            builder.parameter(node, spec.target.removeprefix("model."), operator.attrgetter(spec.target)(front))
        elif spec.kind is InputKind.CONSTANT_TENSOR and (boundary.is_flat or hasattr(front, "model")):
            name = spec.target.removeprefix("model.")
            while name in boundary.own_names or name in builder.params:
                name += "'"
            builder.parameter(node, name, exported.constants[spec.target])
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            builder.constant(node, exported.constants[spec.target])
        elif own:
            builder.parameter(node, *own.pop(0))
        else:
            inputs.append(builder.input(node, f"inputs.{len(inputs)}"))
    return inputs


@contextlib.contextmanager
def _untouched(model: nn.Module):
    """Put back all attributes of all modules: forward may assign some while it is traced, and so does torch.export."""
    before = [(module, dict(vars(module)), _contents(module)) for module in model.modules()]
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


# -- passes over a new program ----------------------------------------------------------------------------------------


def _name(program: Program, origins: Mapping[str, Origin]) -> tuple[Equation, ...]:
    """Name each equation after the module that made it if it is that call's only one, else after the weight it reads.

    A module called twice gives `name` and `name:1`; anything else is called after its module and operation.
    """
    rows = [(e, origins[e.outputs[0].name], is_active(program, e)) for e in program.equations]
    calls = Counter(origin.call for _, origin, active in rows if active)
    parents = {parent for _, origin, active in rows if active for parent in _parents(origin.path)}
    used: Counter[str] = Counter()
    named = []
    for equation, origin, active in rows:
        if active and origin.path and origin.path not in parents and calls[origin.call] == 1:
            name = origin.path
        else:
            name = _parameter_name(equation) or ".".join(filter(None, (origin.path, equation.operator)))
        used[name] += 1
        named.append(replace(equation, name=name if used[name] == 1 else f"{name}:{used[name] - 1}"))
    return tuple(named)


def _parents(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _parameter_name(equation: Equation) -> str | None:
    found = row_of(equation).positions
    weights = [] if found is None else list(variables_in(equation.arguments[: found.weight + 1]))
    leaves = [v.name.removeprefix(PARAMETER) for v in weights if v.name.startswith(PARAMETER)]
    return leaves[-1].removesuffix(".weight") if leaves and leaves[-1] != "weight" else None


def _refuse_random(program: Program) -> None:
    for equation in program.equations:
        if is_random(equation.function) and equation.operator not in RANDOM_IN_TRAINING:
            raise TraceError(random_message(equation.operator, equation.source))


def _within_tables(program: Program) -> Ranges:
    """The ranges of sizes, with no more positions than a model has rows for: of a table of them, or of their ids."""
    ranges = dict(program.size_ranges)
    for equation in program.equations:
        table = equation.arguments[0] if equation.arguments else None
        if not isinstance(table, Variable) or not table.name.startswith(PARAMETER):
            continue
        if equation.operator == "slice" and len(equation.arguments) > 3:
            _, axis, start, end = equation.arguments[:4]
            name, rows = _size_named(program, end) if start in (None, 0) else None, table.shape[axis]
        elif equation.operator == "embedding":
            name, first = _counted(program, equation.arguments[1])
            rows = int(table.shape[0]) - first
        else:
            continue
        if name is not None:
            low, high = ranges.get(name, (0, None))
            ranges[name] = (low, min(int(rows), high or int(rows)))
    return ranges


def _counted(program: Program, ids: Variable) -> tuple[str | None, int]:
    """The size that ids count to, and from where: 0, 1, 2, ...; None if they are something else."""
    first, maker = 0, program.producers.get(ids.name)
    while maker is not None and maker.operator in ("add", "unsqueeze", "expand", "reshape", "to", "_to_copy"):
        if maker.operator == "add":
            if not isinstance(maker.arguments[1], int):
                return None, 0
            first += maker.arguments[1]
        maker = program.producers.get(maker.arguments[0].name)
    if maker is None or maker.operator != "arange" or len(maker.arguments) != 1:
        return None, 0
    return _size_named(program, maker.arguments[0]), first


def _size_named(program: Program, value) -> str | None:
    """The name of an open size, if that is what a value is."""
    maker = program.producers.get(value.name) if isinstance(value, Variable) else None
    if maker is None or maker.function is not size:
        return None
    name = maker.arguments[0].shape[maker.arguments[1]]
    return name if isinstance(name, str) and name.isidentifier() else None


def _follow_call(program: Program) -> tuple[Equation, ...]:
    """The equations with those of the call in place of the device and dtype that were baked into the trace."""
    device, dtype = Variable(DEVICE), Variable(DTYPE)
    traced = program.reference.dtype if program.reference is not None and program.reference.is_floating else None

    def follow(template):
        if isinstance(template, (list, tuple)):
            return type(template)([follow(item) for item in template])
        if isinstance(template, torch.device):
            return device
        return dtype if isinstance(template, torch.dtype) and template == traced else template

    return tuple(
        replace(e, arguments=follow(e.arguments), keywords={key: follow(value) for key, value in e.keywords.items()})
        for e in program.equations
    )


def _fuse_frozen_batch_norms(program: Program) -> tuple[Equation, ...]:
    """Make one of `x * s + (b - m * s)` with `s = w * rsqrt(v + eps)` over parameters, as FrozenBatchNorm2d does it."""
    return tuple(
        replace(equation, function=frozen_batch_norm, arguments=arguments, keywords={}) if arguments else equation
        for equation in program.equations
        for arguments in [_match_frozen_batch_norm(program, equation)]
    )


def _match_frozen_batch_norm(program: Program, equation: Equation) -> tuple | None:
    """The arguments of a frozen batch norm whose last equation this is."""

    def made_by(value, operator: str) -> Equation | None:
        maker = program.producers.get(value.name) if isinstance(value, Variable) else None
        return maker if maker is not None and maker.operator == operator else None

    def parameter(value) -> Variable | None:
        """The one-dimensional parameter under a reshape that makes one value of it for each channel of the result."""
        maker = made_by(value, "reshape")
        channels = equation.outputs[0].shape[1:2]
        if maker is None or maker.outputs[0].shape != (1, *channels, *[1] * (len(equation.outputs[0].shape) - 2)):
            return None
        value = maker.arguments[0]
        is_leaf = isinstance(value, Variable) and value.name.startswith(PARAMETER) and len(value.shape) == 1
        return value if is_leaf else None

    if equation.operator != "add" or equation.keywords:
        return None
    product, shift = (made_by(a, o) for a, o in zip(equation.arguments, ("mul", "sub"), strict=False))
    if product is None or shift is None or product.arguments[0].name not in facts(program).active:
        return None
    x, scale = product.arguments
    if x.shape != equation.outputs[0].shape:
        return None
    scaled, shifted = made_by(scale, "mul"), made_by(shift.arguments[1], "mul")
    if scaled is None or shifted is None or shifted.arguments[1] is not scale:
        return None
    root = made_by(scaled.arguments[1], "rsqrt")
    total = made_by(root.arguments[0], "add") if root is not None else None
    if total is None:
        return None
    leaves = [parameter(v) for v in (scaled.arguments[0], shift.arguments[0], shifted.arguments[0], total.arguments[0])]
    eps = total.arguments[1]
    return None if None in leaves or not isinstance(eps, float) else (x, *leaves, eps)


# -- lifting ----------------------------------------------------------------------------------------------------------


def _lift(program: Program, params: Parameters) -> tuple[Program, Parameters]:
    """Make leaves of what folding changes: batch norms' eps, and the bias of layers without one in front of them."""
    params, variables = dict(params), dict(program.parameters)
    lifted: dict[tuple, Variable] = {}
    equations = {equation.outputs[0].name: equation for equation in program.equations}

    def leaf(name: str, tensor: Tensor, *value) -> Variable:
        """The variable of a new leaf. What reads the same value under the same name shares it."""
        if (name, value) not in lifted:
            free = name
            while free in params:
                free += "'"
            params[free] = tensor
            lifted[name, value] = variables[free] = Variable(PARAMETER + free, tuple(tensor.shape), tensor.dtype)
        return lifted[name, value]

    def change(equation: Equation, position: int, argument: Variable) -> None:
        arguments = list(equation.arguments)
        arguments[position] = argument
        equations[equation.outputs[0].name] = replace(equation, arguments=tuple(arguments))

    for equation in program.equations:
        if equation.function not in (batch_norm, frozen_batch_norm):
            continue
        *_, var, eps = equation.arguments
        owner = _leaf_name(var)
        # float64 keeps 1e-5 what it is; a 0-d tensor does not change the dtype of what it is added to.
        device = params[owner].device if owner is not None else None
        name = (owner or "").rpartition(".")[0] or equation.name
        change(equation, 5, leaf(f"{name}.eps", torch.tensor(eps, dtype=torch.float64, device=device), eps))
    for layer, position, channels in _missing_biases(program):
        weight = layer.arguments[positions(layer).weight]
        name = (_leaf_name(weight) or layer.name).removesuffix(".weight")
        zeros = torch.zeros(channels, dtype=weight.dtype, device=next(iter(params.values())).device)
        change(layer, position, leaf(f"{name}.bias", zeros, channels))
    return program.replace(equations=tuple(equations.values())).with_parameters(variables, params), params


def _missing_biases(program: Program) -> Iterator[tuple[Equation, int, int]]:
    """The layers that a batch norm could be merged into, had they a bias; where it belongs, and its size."""
    known = facts(program)
    for norm in batch_norms(program):
        with contextlib.suppress(Immovable):
            for layer, channels, share in leftwards(known, norm):
                position = positions(layer).bias if takes_scale(known, layer) else None
                if share and position is not None and layer.arguments[position] is None:
                    yield layer, position, channels.size


def _leaf_name(variable: Variable) -> str | None:
    return variable.name.removeprefix(PARAMETER) if variable.name.startswith(PARAMETER) else None
