"""Recurrent layers written out when they are traced: what the input brings to all steps, and the steps.

The first is a linear layer as any other; the steps, however many, are one equation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lrpfunc.errors import TraceError
from lrpfunc.program import gru_steps, lstm_steps, rnn_relu_steps, rnn_tanh_steps

aten = torch.ops.aten

END = 2**63 - 1  # of a slice


def _states(gates: Tensor, states: Sequence[Tensor], *_) -> Tensor:
    """What the states after each step are like, without going through the steps."""
    return gates.new_empty((*gates.shape[:-1], sum(state.shape[-1] for state in states)))


def _steps(call: Callable, steps: Callable, gates, states: Sequence, weights: Sequence, has_bias: bool, *settings):
    """The steps of one layer: `weights` are those of the states, and behind the bias that of a projection."""
    weight, *rest = weights
    if len(rest) > has_bias:
        weight = call(aten.cat.default, [weight, call(aten.t.default, rest[-1])], 0)
    return call(steps, gates, list(states), weight, rest[0] if has_bias else None, *settings, like=_states)


def _layer(steps: Callable, call: Callable, depends: Callable, x, hidden, *settings):
    """A layer as torch has it: of several layers and directions, each with parameters of its own."""
    params, has_bias, layers, dropout, train, is_bidirectional, batch_first = settings
    if not isinstance(params, (list, tuple)):
        raise TraceError("is given a packed sequence")
    if dropout and train and layers > 1:
        raise TraceError(
            "is in training mode with dropout between its layers, which draws random numbers. Call model.eval() first."
        )
    hidden = hidden if isinstance(hidden, (list, tuple)) else [hidden]
    directions, axis = 1 + is_bidirectional, int(batch_first)
    count = len(params) // (layers * directions)
    ends: list[Any] = []
    for layer in range(layers):
        made = []
        for reverse in range(directions):
            number = len(ends)
            own = params[number * count : (number + 1) * count]
            inner, outer = (own[:1], own[1:]) if not has_bias else (own[::2][:2], [own[1], *own[3:]])
            gates = call(aten.linear.default, x, *inner)
            states = [call(aten.select.int, h, 0, number) for h in hidden]
            made.append(_steps(call, steps, gates, states, outer, has_bias, axis, bool(reverse)))
            ends.append(call(aten.select.int, made[-1], axis, 0 if reverse else -1))
        last = _ends(call, ends, hidden) if layer == layers - 1 else []
        outputs = [_part(call, states, hidden, 0) for states in made]
        x = call(aten.cat.default, outputs, 2) if is_bidirectional else outputs[0]
    return [x, *last]


def _ends(call: Callable, ends: Sequence, hidden: Sequence) -> list:
    """The states after the last step, of all layers and directions."""
    return [
        call(aten.stack.default, [_part(call, end, hidden, number) for end in ends], 0) for number in range(len(hidden))
    ]


def _part(call: Callable, states, hidden: Sequence, number: int):
    """One of the states that are side by side."""
    if len(hidden) == 1:
        return states
    width = hidden[0].shape[-1]
    return call(aten.slice.Tensor, states, len(states.shape) - 1, *((0, width) if number == 0 else (width, END)))


def _cell(steps: Callable, call: Callable, depends: Callable, x, hidden, weight, of_states, bias=None, other=None):
    """One step, of a layer that is called step by step."""
    states = hidden if isinstance(hidden, (list, tuple)) else [hidden]
    gates = call(aten.unsqueeze.default, call(aten.linear.default, x, weight, bias), 0)
    outer = [of_states] if other is None else [of_states, other]
    made = _steps(call, steps, gates, states, outer, other is not None, 0, False)
    made = call(aten.select.int, made, 0, 0)
    parts = [_part(call, made, states, number) for number in range(len(states))]
    return parts if isinstance(hidden, (list, tuple)) else parts[0]


STEPS: Mapping[str, Callable] = {
    "lstm": lstm_steps,
    "gru": gru_steps,
    "rnn_tanh": rnn_tanh_steps,
    "rnn_relu": rnn_relu_steps,
}

RECURRENCES: Mapping[str, Callable] = {
    **{name: functools.partial(_layer, steps) for name, steps in STEPS.items()},
    **{f"{name}_cell": functools.partial(_cell, steps) for name, steps in STEPS.items()},
}
