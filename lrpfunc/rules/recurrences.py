"""The rule of recurrent layers: all steps of one layer in one direction.

The table says what the parts of a step are to each other (`operations/cells.py`); `steps.py` goes from step to step.
The linear part, from the hidden state before it, has a rule of its own, any of dense layers (`parts.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.operations import (
    RECURRENT,
    Cell,
    Operation,
    Recurrence,
    Shares,
    Slot,
    Steps,
    bind_linear,
    let_out,
)
from lrpfunc.program import is_plain, without_projection
from lrpfunc.rules.engine import EXACT
from lrpfunc.rules.flows import Flow
from lrpfunc.rules.labels import call
from lrpfunc.rules.linear import epsilon
from lrpfunc.rules.parts import Part, puller, statement_of
from lrpfunc.rules.rule import COEFFICIENTS, Rule
from lrpfunc.rules.stabilizers import Stabilizer, StabilizerLike, as_stabilizer
from lrpfunc.rules.steps import Found, Walk, met

TO = {"signal": Shares((1.0, 1.0), (0.0, 0.0)), "both": Shares((0.5, 0.5), (0.5, 0.5))}
EPSILON = epsilon()
LARGEST = 1e9  # relevance that leaves, over that which came: single precision has no digit of its sum left


def recurrent(linear: Rule = EPSILON, to: str = "signal", stabilizer: StabilizerLike = 1e-6) -> Rule:
    """The steps of a recurrent layer as they are written out: linear layers, sums, activations, products with gates.

    LSTM: c = f c' + i g shares R_c by contribution among f c', which c' takes, and i g, which g = tanh(z) takes, and so
    z = x + W h', which shares it again: W h' by the rule of W. GRU, h = (1 - z) n + z h', and RNN likewise. Biases keep
    their share. What the input brings, x, comes from a layer of its own in front of the steps. Where what a gate
    multiplies is a constant, as a state before the first step may be, the gate takes all.

    Args:
        linear: the rule of W, any of dense layers.
        to: "signal", where gates count as constants; or "both", where signal and gate take half each, for a few steps:
            a gate is half open where the terms of its z cancel, so each of them gets a multiple of what came to the
            gate, at every step again (in a trained network of three layers 1e5 times as much after ten steps).
        stabilizer: S of the sums, an epsilon in units of them, a `stabilizer` or a function.
    Errors: `RuleError` in use, for an equation that is not the steps of a recurrent layer, and where relevance explodes
        from step to step (which nobody can see inside vmap and torch.compile).
    Source: Arras et al. 2017, doi:10.18653/v1/W17-5221; Arras et al. 2019, doi:10.1007/978-3-030-28954-6_11.

    >>> import lrpfunc, torch
    >>> cell, x, h = torch.nn.RNNCell(1, 1, bias=False), torch.tensor([[1.0]]), torch.tensor([[0.5]])
    >>> fmodel, _ = lrpfunc.functionalize(cell, x, h)
    >>> params = {"weight_ih": torch.tensor([[0.4]]), "weight_hh": torch.tensor([[0.4]])}  # z = 0.4 + 0.2
    >>> rules = lrpfunc.composites.by_kind({"recurrent": lrpfunc.rules.recurrent()})
    >>> of_x, of_h = lrpfunc.attribute(fmodel, params, (x, h), rules, target=lambda y: torch.full_like(y, 3.0))
    >>> of_x.round(decimals=3), of_h.round(decimals=3)
    (tensor([[2.]]), tensor([[1.]]))
    """
    if to not in TO:
        raise RuleError(f'a recurrent layer passes relevance to="signal" or to="both", but not to {to!r}.')
    stabilize = as_stabilizer(stabilizer)
    functions = _Functions(linear, TO[to], stabilize)
    return Rule(
        call("recurrent", linear, *([] if to == "signal" else [to]), stabilizer=stabilize),
        functions.forward,
        functions.backward,
        hoists=(functions.hidden, functions.projection),
        gives=COEFFICIENTS if linear.gives == COEFFICIENTS else "",
        any_layout=linear.any_layout,
        parameters=functions.parameters,
        takes_steps=True,
    )


class _Layer(NamedTuple):
    """The arguments of the steps. `weights`: of the linear part, and of the projection (None: there is none)."""

    gates: Any
    before: Sequence
    weights: tuple[Tensor, Tensor | None]
    bias: Tensor | None
    axis: int
    reverse: bool
    depends: tuple[bool, ...]

    @classmethod
    def of(cls, operation: Operation, inputs: Sequence[Tensor] = ()) -> _Layer:
        """At inputs, or without them."""
        given = list(operation.filled(inputs) if inputs else operation.arguments)
        gates, before, weight, bias, axis, reverse = given + [None, 0, False][len(given) - 3 :]
        depends = tuple(isinstance(a, Slot) for a in (operation.arguments[0], *operation.arguments[1]))
        weights = without_projection(weight, _recurrence(operation).parts)
        return cls(gates, before, weights, bias, axis, reverse, depends)

    def ordered(self, x: Tensor) -> Tensor:
        """Values along the axis of the steps, in the order of the steps first; `back` is its inverse."""
        x = x.movedim(self.axis, 0)
        return x.flip(0) if self.reverse else x

    def back(self, x: Tensor) -> Tensor:
        return (x.flip(0) if self.reverse else x).movedim(0, self.axis)


class _Residuals(NamedTuple):
    """The values of the steps, in their order, and what the rules of the linear part and of the projection left."""

    gates: Tensor
    hidden: Tensor
    states: Tensor
    before: list[Tensor]
    of_hidden: Any = None
    of_projection: Any = None

    def steps(self, operation: Operation) -> Steps:
        return Steps(*self[:4], self.before[0].shape[-1], _Layer.of(operation).depends)


class _Functions:
    """Those of the rule."""

    def __init__(self, linear: Rule, shares: Shares, stabilize: Stabilizer):
        self.linear, self.shares, self.stabilize = linear, shares, stabilize

    def hidden(self, operation: Operation) -> Operation:
        """The linear part, from the hidden state before a step to what it brings."""
        layer = _Layer.of(operation)
        return self._linear(operation, layer.weights[0], layer.bias).copy(gets_coefficients=True)

    def projection(self, operation: Operation) -> Operation | None:
        """From what the output gate lets out to the hidden state, if that is narrower."""
        weight = _Layer.of(operation).weights[1]
        return None if weight is None else self._linear(operation, weight, None)

    def _linear(self, operation: Operation, weight: Tensor, bias: Tensor | None) -> Operation:
        return bind_linear(operation.name, weight, bias).hoisting(self.linear.hoists)

    def _parts(self, operation: Operation, left: _Residuals) -> tuple[Part, Part | None]:
        hidden, projection = operation.hoisted(self.hidden), operation.hoisted(self.projection)
        before, is_final = left.before, operation.is_final
        part = Part(self.linear, hidden.at(before[:1], is_final), statement_of(self.linear), left.of_hidden)
        if projection is None:
            return part, None
        return part, Part(self.linear, projection.at(before[1:], is_final), left=left.of_projection)

    def forward(self, operation: Operation, *inputs: Tensor) -> tuple[Tensor, _Residuals]:
        if operation.kind != RECURRENT:
            raise RuleError(f"{operation.description} is not the steps of a recurrent layer, but the rule needs them.")
        layer, output = _Layer.of(operation, inputs), operation(*inputs)
        gates, states = layer.ordered(layer.gates), layer.ordered(output)
        left = _Residuals(gates, gates, states, list(layer.before))  # what the states bring is yet to come
        part, projection = self._parts(operation, left)
        hidden, of_hidden = part.passed(left.steps(operation).earlier(0))
        left = left._replace(hidden=hidden, of_hidden=of_hidden)
        if projection is not None:
            left = left._replace(of_projection=projection.passed(let_out(left.steps(operation)))[1])
        return output, left

    def _found(self, operation: Operation, left: _Residuals, flow: Flow, with_first: bool) -> tuple[Cell, Found]:
        """The coefficients at all steps. `with_first`: also of what goes to the hidden state before the first one."""
        steps, (part, projection) = left.steps(operation), self._parts(operation, left)
        cell = _recurrence(operation).cell(steps, self.shares, self.stabilize)
        walk = Walk(cell, self.stabilize, puller(part, cell), projection, steps.states, steps.width)
        arrived = flow.moved(_Layer.of(operation).ordered(flow.tensor))
        return cell, walk.found(arrived, with_first)

    def backward(self, operation: Operation, residuals: _Residuals, flow: Flow) -> list[Flow | None]:
        depends = residuals.steps(operation).depends
        cell, found = self._found(operation, residuals, flow, with_first=depends[1])
        sent = self._sent(operation, residuals, cell, found)
        _refuse_explosion(operation, residuals, flow, sent)
        return [flow for flow, is_active in zip(sent, depends, strict=True) if is_active]

    def _sent(self, operation: Operation, left: _Residuals, cell: Cell, found: Found) -> list[Flow | None]:
        """What comes to what the input brings, and to the states before the first step."""
        steps, gates = left.steps(operation), _Layer.of(operation).back(_at_parts(cell.gates, cell, found))
        sent: list[Flow | None] = [Flow(coefficient=gates), found.first, None][: len(steps.depends)]
        if cell.of_before is not None:
            carried = Flow(coefficient=cell.of_before * found.cores[0])
            sent[-1] = met(carried, sent[-1], steps.before[-1])
        return sent

    def parameters(
        self, operation: Operation, inputs: tuple[Tensor, ...], output: Tensor, flow: Flow, opened: Operation
    ) -> list[Flow | None]:
        """What comes to states and gates that are parameters, to the weight, a projection's included, and the bias."""
        left = self.forward(operation, *inputs)[1]
        cell, found = self._found(operation, left, flow, with_first=True)
        flows = [*self._sent(operation, left, cell, found), *self._of_layers(operation, left, cell, found)]
        gates, before, *layers = opened.arguments
        places = [gates, *before, *layers[:2]]
        return [flow for flow, place in zip(flows, places, strict=False) if isinstance(place, Slot)]

    def _of_layers(self, operation: Operation, left: _Residuals, cell: Cell, found: Found) -> list[Flow | None]:
        """What comes to the weight and the bias."""
        steps, (part, projection) = left.steps(operation), self._parts(operation, left)
        factors = [own if later is None else later for own, later in zip(cell.gates, cell.hidden, strict=True)]
        coefficients = _at_parts(factors, cell, found)
        weight, bias = _shares(part, steps.earlier(0), steps.hidden, Flow(coefficient=coefficients))
        of_bias = None if bias is None else Flow(relevance=bias)
        if projection is None:
            return [Flow(relevance=weight), of_bias]
        states = steps.after(0)
        came = torch.stack([flow.relevance(state) for flow, state in zip(found.came, states, strict=True)])
        rows, _ = _shares(projection, let_out(steps), states, Flow(relevance=came))
        return [Flow(relevance=torch.cat([weight, rows.t()])), of_bias]


def _refuse_explosion(operation: Operation, left: _Residuals, came: Flow, sent: Sequence[Flow | None]) -> None:
    """Relevance that leaves must be of some size of that which came, where both can be seen. Errors: `RuleError`."""
    layer = _Layer.of(operation)
    values = [layer.back(left.gates), *left.before]
    tensors = [flow.tensor for flow in (came, *sent) if flow is not None]
    if not is_plain(*values, *tensors) or left.gates.is_meta or left.gates.dtype == torch.float16:
        return  # what half precision is too narrow for is said where relevance arrives
    total = _size(came.relevance(layer.back(left.states)))
    active = [(f, v) for f, v, is_active in zip(sent, values, layer.depends, strict=False) if f and is_active]
    times = sum(_size(flow.relevance(value)) for flow, value in active) / (total or 1.0)
    if math.isfinite(total) and not times <= LARGEST:
        raise RuleError(
            f"relevance exploded: more than {LARGEST:.0e} times what came to the steps would leave. Where terms of a "
            'sum cancel, each gets a multiple of what came, at every step again: take recurrent(to="signal"), and '
            "leave biases in (zero_bias=False)."
        )


def _size(relevance: Tensor) -> float:
    return relevance.abs().sum(dtype=torch.promote_types(relevance.dtype, torch.float32)).item()


def _recurrence(operation: Operation) -> Recurrence:
    found = operation.row.recurrence
    assert found is not None
    return found


def _at_parts(factors: Sequence[Tensor | None], cell: Cell, found: Found) -> Tensor:
    """The coefficients of all parts of a step, side by side."""
    parts = [torch.zeros_like(found.cores) if factor is None else factor * found.cores for factor in factors]
    if cell.output is not None:
        assert found.outputs is not None
        parts[cell.output.part] = found.outputs
    return torch.cat(parts, -1)


def _shares(part: Part, x: Tensor, z: Tensor, flow: Flow) -> tuple[Any, Any]:
    """The relevance of a linear part's weight and bias, by its rule, else their values times derivatives."""
    weight, bias = part.operation.weight, part.operation.bias
    places = [Slot(0), None if bias is None else Slot(1)]
    if part.rule.parameters is not None:
        opened = part.operation.copy(arguments=[x, *places])
        of_each = part.rule.parameters(part.operation.copy(gets_coefficients=False), (x,), z, flow, opened)
        if of_each is not None:
            values = [value for value in (weight, bias) if value is not None]
            shares = [None if f is None else f.relevance(v) for f, v in zip(of_each, values, strict=True)]
            return shares[0], shares[1] if bias is not None else None
    c = flow.coefficient(z, EXACT, as_it_is=True)
    of_weight = weight * torch.einsum("tbo,tbi->oi", c, x)
    return of_weight, None if bias is None else bias * c.sum((0, 1))
