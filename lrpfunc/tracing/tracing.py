"""From a module or function to a program.

The export stays on the training IR, which keeps `conv2d`, `linear`, `batch_norm` and the like whole. What is left to do
is to turn in-place operations into functional ones, to inline sub-graphs, to name equations, and to lift what
canonization must be able to change (epsilons and missing biases) into the parameters.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import optree
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind

from lrpfunc.compat import enable_python_dispatcher
from lrpfunc.errors import ProgramError, TraceError
from lrpfunc.program import NAMESPACE, PARAMETER, Program, Variable, check, leaf_names, variables_in
from lrpfunc.tracing.axes import Axes
from lrpfunc.tracing.boundary import Boundary, Inputs
from lrpfunc.tracing.builder import Builder
from lrpfunc.tracing.exports import LOCK, Export, Front, exports
from lrpfunc.tracing.graphs import words
from lrpfunc.tracing.lifting import Parameters, lift
from lrpfunc.tracing.refusals import check_model, check_surroundings, object_message
from lrpfunc.tracing.tidying import tidied
from lrpfunc.tracing.twins import twin_of


def functionalize(model: nn.Module, /, *example_inputs, **example_keywords) -> tuple[Program, Parameters]:
    """A module as a pure function and its parameters: `fmodel, params`, with fmodel(params, *inputs) == model(*inputs).

    `params` is a flat dict {name: tensor} of what forward reads, detached, sharing the module's storage: parameters,
    buffers, tensors written in forward, batch norms' eps (`"bn1.eps"`), and a zero bias for each layer without one that
    a batch norm could be folded into.

    The first dimension of the tensors that share the first tensor's batch size may differ from call to call, unless the
    model itself fixes it. Where token ids (batch, length), masks like them or embeddings (batch, length, width) come
    in, the length may differ as well, and where the model allows it height and width (batch, channels, height, width),
    time steps (batch, channels, length) and edges (2, edges). `varying` asks for other sizes. Objects in the output
    that are no pytrees of tensors (caches) come back as None. Dropout is the identity. A value that the model detaches
    counts as a constant.

    Args:
        model: a module in evaluation mode. It is left as it was.
        example_inputs: what forward takes by position: pytrees with tensors, of which only shapes and dtypes matter.
            What is no tensor is part of the program. `varying(x, 2)` has a size that may differ from call to call.
        example_keywords: what forward takes by name.

    Errors: `TraceError` for a model that cannot be exported, a batch norm in training mode, random numbers, or an
    in-place write whose memory is read again under another name; `InputError` for inputs that forward does not take.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 3))
    >>> print(fmodel)
    name  operation  input       output
    0     linear     (batch, 3)  (batch, 4)
    1     relu       (batch, 4)  (batch, 4)
    >>> sorted(params), fmodel(params, torch.ones(5, 3)).shape
    (['0.bias', '0.weight'], torch.Size([5, 4]))
    """
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"functionalize needs an nn.Module, but got {type(model).__name__}. Use lrpfunc.trace for functions."
        )
    inputs = Inputs.of(model.forward, example_inputs, example_keywords)
    check_model(model)
    with LOCK:
        return _functionalized(twin_of(model), inputs)


def _functionalized(model: nn.Module, inputs: Inputs) -> tuple[Program, Parameters]:
    program, params = _capture(Boundary(lambda _, *values: inputs.call(model, values), (), inputs), model)
    read = {v.name for e in program.equations for v in e.reads} | {v.name for v in variables_in(program.output_leaves)}
    params = {name: tensor.detach() for name, tensor in params.items() if PARAMETER + name in read}
    return _lifted(program.with_parameters(program.parameters, params), params)


def trace(function: Callable, params, /, *example_inputs, **example_keywords) -> tuple[Program, Any]:
    """A pure function `f(params, *inputs)` as a program that computes the same: `fmodel, params`.

    Where params is a flat dict, tensors written in the function, batch norms' eps and missing biases become leaves of
    it, as `functionalize` has them.

    Args:
        function: a pure function of parameters and inputs.
        params: any pytree of tensors.
        example_inputs: inputs by position, as for `functionalize`.
        example_keywords: inputs by name.

    Errors: `TraceError` as for `functionalize`, and for leaves of params that are no tensors; `InputError` for inputs
    that the function does not take.

    >>> import lrpfunc, torch
    >>> fmodel, params = lrpfunc.trace(lambda p, x: x @ p["w"], {"w": torch.eye(3)}, torch.ones(1, 3))
    >>> fmodel(params, 2 * torch.ones(1, 3))
    tensor([[2., 2., 2.]])
    """
    if not callable(function):
        raise TraceError(f"trace needs a function f(params, *inputs), but got {type(function).__name__}.")
    inputs = Inputs.of(function, (params, *example_inputs), example_keywords).without_first()
    return _trace(function, params, inputs, axes=None)


def trace_along(function: Callable, params, inputs: Sequence[Tensor], axes: Sequence[Axes]) -> tuple[Program, Any]:
    """As `trace` of examples without data, with the axes of each input that may have any size."""
    return _trace(function, params, Inputs.of(function, (params, *inputs), {}).without_first(), axes)


def _trace(function: Callable, params, inputs: Inputs, axes: Sequence[Axes] | None) -> tuple[Program, Any]:
    with LOCK:
        function = twin_of(function)
        boundary = Boundary(lambda given, *values: inputs.call(function, values, given), params, inputs, axes)
        program, captured = _capture(boundary, None)
        return _lifted(program, captured) if boundary.is_flat else (program, params)


def _lifted(program: Program, params: Parameters) -> tuple[Program, Parameters]:
    lifted, params = lift(program, params)
    check(lifted, before=program)
    return lifted, params


# -- program ----------------------------------------------------------------------------------------------------------


def _capture(boundary: Boundary, model: nn.Module | None) -> tuple[Program, Parameters]:
    """The program of a function, and its parameters: those given or a model's tensors, and tensors written in code.

    A constant in the code may have the example's size where torch.export asked for nothing, and a scan has as many
    steps as the example. Then equations cannot be made for another size, and fewer are left open.
    """
    check_surroundings()
    front, failure = Front(boundary, model, boundary.opening.asked), None
    for exported in exports(front, *boundary.examples(), boundary.opening):
        try:
            program, params = _program(exported, front, boundary, model)
            check(program)
        except ProgramError as error:
            failure = error
        else:
            return program, params
    assert failure is not None
    if any(boundary.opening.asked):
        reason = str(failure).partition(" This is a mistake")[0]
        raise TraceError(f"the sizes that lrpfunc.varying asks for cannot stay open: {reason}")
    raise failure


def _program(export: Export, front: Front, boundary: Boundary, model: nn.Module | None) -> tuple[Program, Parameters]:
    exported, sizes = export
    builder = Builder(model, sizes.same, words(exported.graph))
    inputs = _placeholders(builder, exported, front, boundary)
    kinds = [spec.kind for spec in exported.graph_signature.output_specs]
    with enable_python_dispatcher():  # without it torch cannot broadcast fake tensors of open sizes in `lerp` and more
        results = zip(builder.inline(exported.graph, exported.graph_module), kinds, strict=True)
    tree = builder.params if model is not None or boundary.is_flat else boundary.params
    program = Program(
        parameters={name: builder.parameters[name] for name in leaf_names(tree)},
        parameter_paths=tuple(optree.tree_paths(tree, namespace=NAMESPACE)),
        input_names=boundary.inputs.names,
        input_leaves=boundary.input_leaves(inputs),
        equations=tuple(builder.equations),
        output=boundary.output([result for result, kind in results if kind is OutputKind.USER_OUTPUT]),
        size_ranges={builder.symbols[symbol]: bounds for symbol, bounds in sizes.ranges.items() if bounds != (0, None)},
        size_conditions=tuple(map(builder.in_words, sizes.conditions)),
        nodes=boundary.nodes,
        buffers=tuple(name for name in builder.parameters if name in builder.buffers),
        takes_keywords=boundary.inputs.positional < len(boundary.inputs.names),
    )
    return tidied(program, builder.origins), builder.params


def _placeholders(builder: Builder, exported, front: Front, boundary: Boundary) -> list[Variable]:
    """Give the builder all leaves of a graph, and return the inputs among them."""
    given = list(zip(boundary.param_names, boundary.param_leaves, strict=True))
    inputs: list[Variable] = []
    nodes = exported.graph.find_nodes(op="placeholder")
    for node, spec in zip(nodes, exported.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.CUSTOM_OBJ:
            kind = node.meta["val"].class_fqn.rpartition(".")[2]
            raise TraceError(object_message(kind))
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            builder.parameter(node, spec.target.removeprefix("model."), operator.attrgetter(spec.target)(front))
        elif spec.kind is InputKind.CONSTANT_TENSOR and (boundary.is_flat or hasattr(front, "model")):
            name = spec.target.removeprefix("model.")
            while name in boundary.param_names or name in builder.params:
                name += "'"
            builder.parameter(node, name, exported.constants[spec.target])
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            builder.literal(node, exported.constants[spec.target])
        elif given:
            builder.parameter(node, *given.pop(0))
        else:
            inputs.append(builder.input(node, f"inputs.{len(inputs)}"))
    return inputs
