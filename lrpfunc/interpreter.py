"""Attribution: one loop forwards under the rules, one loop backwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from lrpfunc import targets
from lrpfunc.composites import Entries, assign
from lrpfunc.errors import InputError, RuleError, TraceError, near_misses
from lrpfunc.operations import OPERATORS, UNKNOWN, Flow, Operation, Slot, active_equations, bind
from lrpfunc.program import NAMESPACE, Equation, Program, Variable, operator_name
from lrpfunc.rules import Rule
from lrpfunc.targets import Target


def attribute(
    fmodel: Program,
    params,
    x,
    rules: Entries,
    target: Target = None,
    at: str | Sequence[str] | None = None,
    strict: bool = False,
):
    """The relevance of the inputs, in the structure of `x` and in units of the explained output.

    `x`: one tensor, a tuple of inputs (each a pytree), or a dict by input name for a program traced with keywords.
    Leaves that relevance cannot reach (integers, masks) come back as zeros. `rules`: a composite, a mapping
    {name pattern: rule} or one rule for all weighted equations. `target`: None (arg-max), an int, an index tensor, a
    tuple, a list per sample, or a function output -> relevance. `at`: names of layers at whose outputs relevance is
    wanted too; the result is then `(relevance, {name: tensor})`. `strict`: no equation may fall back to the gradient.

    Errors: `ParameterError`, `InputError`, `TargetError`, `RuleError`.
    """
    names = [at] if isinstance(at, str) else list(at or ())
    if not all(isinstance(name, str) for name in names):
        raise RuleError(f"`at` takes names of layers, but got {at!r}.")
    run = _forward(fmodel, params, x, rules, names, strict)
    relevance, inner = _backward(run, targets.seed(run.output, target))
    return relevance if at is None else (relevance, inner)


def vjp(fmodel: Program, params, x, rules: Entries, strict: bool = False) -> tuple[Any, Callable]:
    """The output and a pullback `R_out -> R_x`, as `torch.func.vjp` has them. The pullback may be called again.

    Errors: `ParameterError`, `InputError`, `RuleError`; `TargetError` for an R_out that is not shaped like the output.
    """
    run = _forward(fmodel, params, x, rules, [], strict)

    def pullback(relevance):
        return _backward(run, targets.check(relevance, run.output))[0]

    return run.output, pullback


# -- forwards ---------------------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    equation: Equation
    rule: Rule
    operation: Operation
    inputs: list[Variable]
    residuals: Any


class _Run(NamedTuple):
    """What a forward pass leaves behind for any number of backward passes."""

    program: Program
    inputs: tuple
    pack: Callable[[tuple], Any]
    values: dict[str, Any]
    steps: list[_Step]
    output: Any
    at: dict[str, str]


def _forward(program: Program, params, x, rules: Entries, at: Sequence[str], strict: bool) -> _Run:
    if not isinstance(program, Program):
        kind = type(program).__name__
        raise TraceError(f"a program is needed, as functionalize and trace return it first, but got {kind}.")
    inputs, pack = _unpack(program, x)
    wanted = {name: _output_named(program, name) for name in at}
    assigned = assign(program, rules, strict)
    values = program.bind(params, inputs)
    _refuse_dead_ends(program)
    steps = []
    for equation in program.equations:
        rule = assigned.get(equation.name)
        if rule is None:
            program.store(equation, equation.evaluate(values), values)
            continue
        operation, tensors = bind(equation, values, program.active)
        variables = [v for v in equation.reads if v.name in program.active]
        with _Naming(rule, equation):
            output, residuals = _checked_pair(rule.forward(operation, *tensors))
            outputs = output if isinstance(output, (tuple, list)) else (output,)
            _check_outputs(equation, outputs)
        program.store(equation, outputs, values)
        steps.append(_Step(equation, rule, operation, variables, residuals))
    return _Run(program, inputs, pack, values, steps, program.result(values), wanted)


def _checked_pair(result) -> tuple:
    if not isinstance(result, tuple) or len(result) != 2:
        raise RuleError(f"forward must return (output, residuals), but returned {type(result).__name__}.")
    return result


def _check_outputs(equation: Equation, outputs: Sequence) -> None:
    for variable, output in zip(equation.outputs, outputs, strict=True):
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        sizes = zip(variable.shape, shape, strict=False)
        if len(shape) != len(variable.shape) or any(n != m for n, m in sizes if isinstance(n, int)):
            raise RuleError(f"forward must return the equation's output, of shape {variable}, but returned {shape}.")


class _Naming:
    """Add the rule and the layer to a rule's error, once, where both are known."""

    def __init__(self, rule: Rule, equation: Equation):
        self.rule, self.equation = rule, equation

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, RuleError):
            raise RuleError(f"{self.rule.label} at layer '{self.equation.name}': {error}") from error


def _unpack(program: Program, x) -> tuple[tuple, Callable[[tuple], Any]]:
    """The tuple of inputs that `x` means, and how to give a tuple of relevances the structure of `x`."""
    if isinstance(x, Mapping) and program.takes_keywords:
        return program.collect((), x), lambda relevance: dict(zip(program.input_names, relevance, strict=True))
    if type(x) is tuple:
        return program.collect(x, {}), lambda relevance: relevance
    return program.collect((x,), {}), lambda relevance: relevance[0]


def _refuse_dead_ends(program: Program) -> None:
    """Relevance must be able to flow: from a floating-point output to a floating-point input."""
    if not any(isinstance(leaf.value, Variable) and leaf.value.is_floating for leaf in program.input_leaves):
        raise InputError(
            "relevance needs a floating-point input, but all inputs are integers. "
            "Trace the model from its embeddings (inputs_embeds), or cast the input if it is data."
        )
    if not any(isinstance(v, Variable) and v.name in program.active for v in program.output_leaves):
        raise InputError(
            "no relevance can flow: no output depends on a floating-point input through floating-point values. "
            "Complex and integer values in between stop it, and so does detach."
        )


def _output_named(program: Program, name: str) -> str:
    """The variable that leaves a layer: of an equation by its name, or the last one below a module's path."""
    equations = list(active_equations(program))
    exact = [e for e in equations if e.name == name]
    below = [e for e in equations if e.name.startswith(f"{name}.")]
    if not exact and not below:
        paths = {e.name.rpartition(".")[0] for e in equations} - {""}
        hint = near_misses(name, [*(e.name for e in equations), *paths])
        raise RuleError(f"no layer is called '{name}'.{hint} `print(fmodel)` lists all names.")
    equation = (exact or below)[-1]
    if len(equation.outputs) > 1:
        raise RuleError(f"'{name}' has {len(equation.outputs)} outputs: name a layer that reads the one you want.")
    return equation.outputs[0].name


# -- backwards --------------------------------------------------------------------------------------------------------


def _backward(run: _Run, seed) -> tuple[Any, dict[str, Tensor]]:
    program, values = run.program, run.values
    flows: dict[str, Flow] = {}
    inner: dict[str, Tensor] = {}
    for variable, relevance in zip(program.output_leaves, optree.tree_leaves(seed, namespace=NAMESPACE), strict=True):
        if isinstance(variable, Variable) and variable.name in program.active:
            _add(flows, variable, Flow(relevance=relevance), values)
    for step in reversed(run.steps):
        _keep(run, step, flows, inner)
        flow = _collect(step, flows, values)
        if flow is None:
            continue
        with _Naming(step.rule, step.equation):
            moved = step.rule.backward(step.operation, step.residuals, flow)
        who = f"{step.rule.label} at layer '{step.equation.name}'"
        checked = _checked_flows(who, moved, [values[variable.name] for variable in step.inputs])
        for variable, flow in zip(step.inputs, checked, strict=True):
            if flow is not None:
                _add(flows, variable, flow, values)
    return _input_relevance(run, flows), {name: inner[name] for name in run.at}


def _add(flows: dict[str, Flow], variable: Variable, flow: Flow, values: Mapping[str, Any]) -> None:
    """Add to what has arrived at a variable. Coefficients stay coefficients; mixed forms meet as relevance."""
    before = flows.get(variable.name)
    if before is None:
        flows[variable.name] = flow
    elif before.is_relevance == flow.is_relevance:
        flows[variable.name] = flow.moved(before.tensor + flow.tensor)
    else:
        value = values[variable.name]
        flows[variable.name] = Flow(relevance=before.relevance(value) + flow.relevance(value))


def _collect(step: _Step, flows: dict[str, Flow], values: Mapping[str, Any]) -> Flow | None:
    """What has arrived at an equation's outputs as one flow, None if nothing has."""
    outputs = [variable for variable in step.equation.outputs if variable.is_floating]
    arrived = [flows.pop(variable.name, None) for variable in outputs]
    if all(flow is None for flow in arrived):
        return None
    if len(step.equation.outputs) == 1:
        return arrived[0]
    tensors = [values[variable.name] for variable in outputs]
    if all(flow is None or not flow.is_relevance for flow in arrived):
        parts = (torch.zeros_like(v) if f is None else f.tensor for f, v in zip(arrived, tensors, strict=True))
        return Flow(coefficient=tuple(parts))
    parts = (torch.zeros_like(v) if f is None else f.relevance(v) for f, v in zip(arrived, tensors, strict=True))
    return Flow(relevance=tuple(parts))


def _keep(run: _Run, step: _Step, flows: Mapping[str, Flow], inner: dict[str, Tensor]) -> None:
    """Note the relevance of an output that `at` asks for, now that all its readers have sent theirs."""
    for name, variable in run.at.items():
        if any(variable == output.name for output in step.equation.outputs):
            value = run.values[variable]
            flow = flows.get(variable)
            inner[name] = torch.zeros_like(value) if flow is None else flow.relevance(value)


def _checked_flows(who: str, moved, inputs: Sequence[Tensor]) -> list[Flow | None]:
    """What a rule's backward returned as one flow (or None) for each input, of its shape."""
    flows = list(moved) if isinstance(moved, (tuple, list)) else [moved]
    if len(flows) != len(inputs):
        raise RuleError(f"{who} must return {len(inputs)} flow(s), one per input, but returned {len(flows)}.")
    for x, flow in zip(inputs, flows, strict=True):
        if flow is None:
            continue
        if not isinstance(flow, Flow):
            kind = type(flow).__name__
            raise RuleError(f"{who} must return Flow(relevance=...) or Flow(coefficient=...), but returned {kind}.")
        if flow.tensor.shape != x.shape:
            needed, shape = tuple(x.shape), tuple(flow.tensor.shape)
            raise RuleError(f"{who} must return the shape of its input, {needed}, but returned {shape}.")
    return flows


def _input_relevance(run: _Run, flows: Mapping[str, Flow]):
    relevance = []
    leaves, structure = optree.tree_flatten(run.inputs, namespace=NAMESPACE)
    for leaf, value in zip(run.program.input_leaves, leaves, strict=True):
        flow = flows.get(leaf.value.name) if isinstance(leaf.value, Variable) else None
        if flow is not None:
            relevance.append(flow.relevance(value))
        else:
            relevance.append(torch.zeros_like(value) if isinstance(value, Tensor) else value)
    return run.pack(optree.tree_unflatten(structure, relevance))


# -- custom VJPs ------------------------------------------------------------------------------------------------------


def with_rules(fmodel: Program, rules: Entries, strict: bool = False) -> Callable:
    """`g(params, *inputs)` with the value of `fmodel` and LRP as its vector-Jacobian product in the inputs.

    Works under `torch.func.vjp`, `jacrev`, `vmap` and plain autograd; a cotangent is the relevance of the output.
    Parameters get no relevance. The pullback runs the model a second time, under the rules; `vjp` does without.
    """

    def g(params, *inputs, **keywords):
        both = (params, fmodel.collect(inputs, keywords))
        fmodel.bind(*both)
        leaves, structure = optree.tree_flatten(both, namespace=NAMESPACE)
        is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]

        def restore(tensors):
            filled = iter(tensors)
            return optree.tree_unflatten(
                structure, [next(filled) if t else leaf for t, leaf in zip(is_tensor, leaves, strict=True)]
            )

        def value(*tensors):
            params, inputs = restore(tensors)
            output = optree.tree_leaves(fmodel(params, *inputs), namespace=NAMESPACE)
            # autograd takes no input for an output
            return tuple(leaf.view_as(leaf) for leaf in output if isinstance(leaf, Tensor))

        def pullback(tensors, relevances):
            params, inputs = restore(tensors)
            run = _forward(fmodel, params, inputs, rules, [], strict)
            relevance, _ = _backward(run, _with_tensors(fmodel.output, relevances))
            moved = [leaf for leaf in optree.tree_leaves(relevance, namespace=NAMESPACE) if isinstance(leaf, Tensor)]
            none = [None] * (len(tensors) - len(moved))
            return [*none, *(leaf if leaf.is_floating_point() else None for leaf in moved)]

        results = _CustomVjp.apply(value, pullback, *(leaf for leaf in leaves if isinstance(leaf, Tensor)))
        return _with_tensors(fmodel.output, results)

    return g


def _with_tensors(template, tensors: Sequence[Tensor]):
    """An output's pytree with tensors in the place of its variables."""
    filled = iter(tensors)
    return optree.tree_map(lambda v: next(filled) if isinstance(v, Variable) else v, template, namespace=NAMESPACE)


def custom_vjp(rule: Rule, function: Callable) -> Callable:
    """A torch function with a rule as its vector-Jacobian product: `custom_vjp(epsilon(), F.conv2d)(x, weight, bias)`.

    Relevance goes to the first argument; weight and bias, its second and third, are parameters. A function that
    lrpfunc does not know counts as a layer if it takes a weight, and is moved by its own vector-Jacobian product.
    Errors: `RuleError` where the rule cannot handle the function.
    """
    if not isinstance(rule, Rule):
        raise RuleError(f"custom_vjp needs a rule such as rules.epsilon(), but got {type(rule).__name__}.")

    def f(x, *arguments, **keywords):
        arguments, keywords = _in_order(function, arguments, keywords)
        fixed, structure = optree.tree_flatten((arguments, keywords), namespace=NAMESPACE)
        is_tensor = [isinstance(leaf, Tensor) for leaf in fixed]

        def operation(leaves) -> Operation:
            rest = iter(leaves[1:])
            filled = [next(rest) if t else leaf for t, leaf in zip(is_tensor, fixed, strict=True)]
            arguments, keywords = optree.tree_unflatten(structure, filled)
            return Operation(operator_name(function), function, [Slot(0), *arguments], keywords, [leaves[0]])

        def value(*leaves):
            return operation(leaves)(leaves[0])

        def pullback(leaves, relevance):
            bound = operation(leaves)
            _, residuals = _checked_pair(rule.forward(bound, leaves[0]))
            moved = rule.backward(bound, residuals, Flow(relevance=relevance[0]))
            (flow,) = _checked_flows(f"{rule.label} of {bound.name}", moved, [leaves[0]])
            share = torch.zeros_like(leaves[0]) if flow is None else flow.relevance(leaves[0])
            return [share, *[None] * (len(leaves) - 1)]

        return _CustomVjp.apply(value, pullback, x, *(leaf for leaf in fixed if isinstance(leaf, Tensor)))

    return f


def _in_order(function: Callable, arguments: tuple, keywords: dict) -> tuple[list, dict]:
    """All arguments of a weighted torch function after the first, in the order that ATen and the table have."""
    name = operator_name(function)
    if OPERATORS.get(name, UNKNOWN).layout is None:
        return list(arguments), keywords
    packet = getattr(torch.ops.aten, name)
    schema = getattr(packet, packet.overloads()[0])._schema
    names = [argument.name for argument in schema.arguments]
    given = {**dict(zip(names[1:], arguments, strict=False)), **keywords}
    unknown = [key for key in given if key not in names]
    if unknown or len(arguments) >= len(names):
        raise RuleError(
            f"{name} takes {', '.join(names)}, but was given {unknown or f'{len(arguments) + 1} arguments'}."
        )
    return [given.get(argument.name, argument.default_value) for argument in schema.arguments[1:]], {}


class _CustomVjp(torch.autograd.Function):
    """A pure function of tensors with its own pullback. Only inputs are saved, so any order of derivative is right."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value, pullback, *tensors):
        return value(*tensors)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.pullback, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *cotangents):
        return None, None, *ctx.pullback(ctx.saved_tensors, cotangents)
