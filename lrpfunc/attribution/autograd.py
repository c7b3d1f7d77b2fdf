"""Explanations as vector-Jacobian products of torch's own derivatives: `with_rules` and `custom_vjp`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import optree
import torch
from torch import Tensor

from lrpfunc.attribution.checks import checked_flows, checked_pair
from lrpfunc.attribution.explanations import vjp
from lrpfunc.compat import schema_of
from lrpfunc.composites import Entries
from lrpfunc.errors import RuleError
from lrpfunc.operations import Operation, bind_function, row_named
from lrpfunc.program import NAMESPACE, Program, Variable, operator_name, refilled
from lrpfunc.rules import Flow, Rule


def with_rules(fmodel: Program, rules: Entries, strict: bool = False) -> Callable:
    """`g(params, *inputs)` with the value of `fmodel` and LRP as its vector-Jacobian product in the inputs.

    Works under `torch.func.vjp`, `jacrev`, `vmap` and plain autograd; a cotangent is the relevance of the output.
    Parameters get no relevance. The pullback runs the model a second time, under the rules; `vjp` does without.

    Args:
        fmodel: the program.
        rules, strict: as `attribute` takes them.

    Errors: those of `vjp`, when the pullback is called.

    >>> import lrpfunc, torch
    >>> from lrpfunc import rules
    >>> params, x = {"w": torch.tensor([[2.0, 0.0], [1.0, -1.0]])}, torch.tensor([[1.0, 3.0]])
    >>> fmodel, params = lrpfunc.trace(lambda p, x: torch.nn.functional.linear(x, p["w"]), params, x)
    >>> g = lrpfunc.with_rules(fmodel, rules.epsilon(0))
    >>> y, pullback = torch.func.vjp(lambda x: g(params, x), x)
    >>> pullback(y)[0]
    tensor([[ 3., -3.]])
    """

    def g(params, *inputs, **keywords):
        both = (params, fmodel.collect(inputs, keywords))
        fmodel.bind(*both)
        leaves = optree.tree_leaves(both, namespace=NAMESPACE)

        def value(*tensors):
            params, inputs = refilled(both, tensors)
            output = optree.tree_leaves(fmodel(params, *inputs), namespace=NAMESPACE)
            # autograd takes no input for an output
            return tuple(leaf.view_as(leaf) for leaf in output if isinstance(leaf, Tensor))

        def pullback(tensors, relevances):
            params, inputs = refilled(both, tensors)
            _, pullback = vjp(fmodel, params, inputs, rules, strict)
            relevance = pullback(_with_tensors(fmodel.output, relevances))
            moved = [leaf for leaf in optree.tree_leaves(relevance, namespace=NAMESPACE) if isinstance(leaf, Tensor)]
            none = [None] * (len(tensors) - len(moved))
            primals = tensors[len(none) :]  # token ids have relevance, but no derivative
            return [*none, *(r if x.is_floating_point() else None for r, x in zip(moved, primals, strict=True))]

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

    Args:
        rule: the rule.
        function: the function; it is called with the same arguments as ever.

    Errors: `RuleError` where the rule cannot handle the function.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.epsilon(0), torch.nn.functional.linear)
    >>> x, weight = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 0.0], [1.0, -1.0]])
    >>> y, pullback = torch.func.vjp(lambda x: f(x, weight), x)
    >>> pullback(y)[0]
    tensor([[ 3., -3.]])
    """
    if not isinstance(rule, Rule):
        raise RuleError(f"custom_vjp needs a rule such as rules.epsilon(), but got {type(rule).__name__}.")

    def f(x, *arguments, **keywords):
        arguments, keywords = _in_order(function, arguments, keywords)
        both = (arguments, keywords)
        fixed = optree.tree_leaves(both, namespace=NAMESPACE)

        def operation(leaves) -> Operation:
            arguments, keywords = refilled(both, leaves[1:])
            return bind_function(function, arguments, keywords, leaves[0])

        def value(*leaves):
            return operation(leaves)(leaves[0])

        def pullback(leaves, relevance):
            bound = operation(leaves)
            _, residuals = checked_pair(rule.forward(bound, leaves[0]))
            moved = rule.backward(bound, residuals, Flow(relevance=relevance[0]))
            (flow,) = checked_flows(f"{rule.label} of {bound.name}", moved, bound.shapes)
            share = torch.zeros_like(leaves[0]) if flow is None else flow.relevance(leaves[0])
            return [share, *[None] * (len(leaves) - 1)]

        return _CustomVjp.apply(value, pullback, x, *(leaf for leaf in fixed if isinstance(leaf, Tensor)))

    return f


def _in_order(function: Callable, arguments: tuple, keywords: dict) -> tuple[list, dict]:
    """All arguments of a weighted torch function after the first, in the order that ATen and the table have."""
    name = operator_name(function)
    if row_named(name).positions is None:
        return list(arguments), keywords
    packet = getattr(torch.ops.aten, name)
    schema = schema_of(getattr(packet, packet.overloads()[0]))
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
