"""What a step of each recurrent layer is to relevance: the column `recurrence` of the table.

Written out, a cell is linear layers, sums, activations, and products with gates. A sum shares by contribution, an
activation passes relevance on, and in a product either the signal takes all or both factors take half. All relevance of
a step comes through one sum, the cell's *core*: the state c of an LSTM, the state h of a GRU, the sum z in an RNN's
activation. So with the values given, every coefficient (R = value * c) is a factor times that of the core.

Values are (steps, batch, width), in the order in which the steps are gone through.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Stabilizing(Protocol):
    """S of the sums, as rules have it."""

    @property
    def epsilon(self) -> float | None: ...

    @property
    def is_identity(self) -> bool: ...

    def quotient(self, numerator: Tensor, denominator: Tensor) -> Tensor: ...

    def proportion(self, value: Tensor) -> Tensor: ...


class Shares(NamedTuple):
    """What the signal and the gate of a product take: at the first step, and at all later ones."""

    signal: tuple[float, float]
    gate: tuple[float, float]

    def of_fixed(self, signal_depends: bool, gate_depends: bool) -> Shares:
        """Where at the first step one of them does not depend on the input, the other one takes all."""
        if signal_depends and gate_depends:
            return self
        first = (1.0, 0.0) if signal_depends else (0.0, 1.0)
        return Shares((first[0], self.signal[1]), (first[1], self.gate[1]))


class Steps(NamedTuple):
    """The values of a recurrent layer: `gates` is what its input brings to each step, `hidden` what the hidden state
    before the step brings, `states` are the states after it, side by side, the first of them `width` wide, and `before`
    those before the first step. `depends`: whether the gates and each state before the first step depend on the input.
    """

    gates: Tensor
    hidden: Tensor
    states: Tensor
    before: Sequence[Tensor]
    width: int
    depends: tuple[bool, ...]

    def after(self, number: int) -> Tensor:
        """A state after each step."""
        return self.states[..., self.width :] if number else self.states[..., : self.width]

    def earlier(self, number: int) -> Tensor:
        """A state before each step."""
        return torch.cat([self.before[number].unsqueeze(0), self.after(number)[:-1]])


class Cell(NamedTuple):
    """The factors of a cell's coefficients.

    Of the core's coefficient: `of_state`, where that of the hidden state is given, before its projection; `of_carried`,
    where that of the other state is (None: one); `of_later`, where that of the next step's core is, from the first step
    to the last but one (None: nothing). `core`: its value. `share`: what it gets of a relevance of the hidden state.
    Of others, where the core's is given: `gates` and `hidden`, at each part of what the input and the state before it
    bring to a step (None: nothing); `of_before`, at the last of the states before the first step (None: nothing).
    `output`: an output gate.
    """

    core: Tensor
    of_state: Tensor
    gates: list[Tensor | None]
    hidden: list[Tensor | None]
    of_later: Tensor | None = None
    of_before: Tensor | None = None
    of_carried: Tensor | None = None
    share: Tensor | float = 1.0
    output: Output | None = None


class Output(NamedTuple):
    """An output gate: the number of its part; the factor by which its sum has the coefficient of what it lets out; its
    share, where that has a relevance; and the sum.
    """

    part: int
    factor: Tensor
    share: Tensor | float
    sum: Tensor


# -- arithmetic -------------------------------------------------------------------------------------------------------


def scaled(x: Tensor, by: tuple[float, float]) -> Tensor:
    """x times a number at the first step, and another one at all later ones."""
    first, later = by
    if first == later:
        return x if first == 1 else x * first
    return torch.cat([x[:1] * first, x[1:] * later])


def _by_step(x: Tensor, by: tuple[float, float]) -> Tensor | float:
    """A number at the first step and another one at all later ones, to multiply values by."""
    return by[0] if by[0] == by[1] else scaled(x.new_ones(len(x), 1, 1), by)


def in_rows(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """A function of (samples, width), as S may be one, at values of all steps."""
    return function(*[x.flatten(0, 1) for x in tensors]).unflatten(0, tensors[0].shape[:2])


def times(x: Tensor, proportion: Tensor | None) -> Tensor:
    return x if proportion is None else x * proportion


def _proportion(stabilize: Stabilizing, x: Tensor, part: slice = slice(None)) -> Tensor | None:
    """x / S(x) of a part of x, None for one."""
    if stabilize.is_identity:
        return None
    if stabilize.epsilon is None:  # S may be another one where the rest is another one
        return in_rows(stabilize.proportion, x)[..., part]
    return stabilize.proportion(x[..., part])


def _over(stabilize: Stabilizing, total: Tensor, by: tuple[float, float], *factors: Tensor) -> Tensor | None:
    """A share of a product over S of a sum; None for no share."""
    if by == (0.0, 0.0):
        return None
    return in_rows(stabilize.quotient, scaled(functools.reduce(torch.mul, factors), by), total)


def _slope(y: Tensor, x: Tensor) -> Tensor:
    """y / x of y = tanh(x), which is one at zero."""
    is_zero = (x == 0).to(x.dtype)
    return (y + is_zero) / (x + is_zero)


def _later(factors: Sequence[Tensor | None], shares: Sequence[tuple[float, float]], keeps: bool) -> list[Tensor | None]:
    """The factors without those of nothing but the first step, unless one `keeps` that."""
    return [factor if keeps or later else None for factor, (_, later) in zip(factors, shares, strict=True)]


# -- the cells --------------------------------------------------------------------------------------------------------


def _lstm(steps: Steps, shares: Shares, stabilize: Stabilizing) -> Cell:
    """c = f c' + i g and h = o tanh(c); i, f, o = sigmoid(z) and g = tanh(z), each of its own z = x + h'."""
    z = steps.gates + steps.hidden
    of_i, of_f, of_g, of_o = z.chunk(4, -1)
    i, f, g, o = of_i.sigmoid(), of_f.sigmoid(), of_g.tanh(), of_o.sigmoid()
    c, width = steps.after(1), of_g.shape[-1]
    seen = c.tanh()
    _, of_hidden, of_cell = steps.depends
    has_gates = steps.depends[0] or of_hidden
    keeping, showing = shares.of_fixed(of_cell, has_gates), shares.of_fixed(True, has_gates)
    of_c, kept = _proportion(stabilize, c), scaled(f, keeping.signal)
    new = scaled(i * _slope(g, of_g), shares.signal)
    gates = [
        _over(stabilize, of_i, shares.gate, i, g),
        _over(stabilize, of_f, keeping.gate, f, steps.earlier(1)),
        times(new, _proportion(stabilize, z, slice(2 * width, 3 * width))),
        None,
    ]
    factor = _over(stabilize, of_o, showing.gate, o, seen)
    return Cell(
        core=c,
        of_carried=of_c,
        of_state=times(scaled(o * _slope(seen, c), showing.signal), of_c),
        of_later=times(kept[1:], None if of_c is None else of_c[:-1]),
        of_before=kept[0],
        gates=gates,
        hidden=_later(gates, [shares.gate, keeping.gate, shares.signal, showing.gate], of_hidden),
        share=_by_step(c, showing.signal),
        output=None if factor is None else Output(3, factor, _by_step(c, showing.gate), of_o),
    )


def let_out(steps: Steps) -> Tensor:
    """What an LSTM's output gate lets out, o tanh(c), which a projection makes the hidden state of."""
    z = steps.gates.chunk(4, -1)[3] + steps.hidden.chunk(4, -1)[3]
    return z.sigmoid() * steps.after(1).tanh()


def _gru(steps: Steps, shares: Shares, stabilize: Stabilizing) -> Cell:
    """h = (1 - z) n + z h', where n = tanh(x + r h') and r, z = sigmoid(x + h'), each of its own x and h'."""
    brought, hidden = steps.gates.chunk(3, -1), steps.hidden.chunk(3, -1)
    of_r, of_z = (brought[number] + hidden[number] for number in (0, 1))
    r, z = of_r.sigmoid(), of_z.sigmoid()
    of_n = brought[2] + r * hidden[2]
    n, h = of_n.tanh(), steps.after(0)
    fixed = shares.of_fixed(steps.depends[1], True)
    of_h, kept = _proportion(stabilize, h), scaled(z, fixed.signal)
    new = times(scaled((1 - z) * _slope(n, of_n), shares.signal), _proportion(stabilize, of_n))
    gates: list[Tensor | None] = [None, None, new]
    if fixed.gate != (0.0, 0.0):
        resets = _over(stabilize, of_r, fixed.gate, r, hidden[2])
        updates = scaled(steps.earlier(0), fixed.gate) - scaled(n, shares.gate)
        gates[:2] = times(new, resets), in_rows(stabilize.quotient, z * updates, of_z)
    return Cell(
        core=h,
        of_state=torch.ones_like(h) if of_h is None else of_h,
        of_later=times(kept[1:], None if of_h is None else of_h[:-1]),
        of_before=kept[0],
        gates=gates,
        hidden=[*_later(gates[:2], [fixed.gate] * 2, steps.depends[1]), scaled(r, fixed.signal) * new],
    )


def _rnn(slope: Callable[[Tensor, Tensor], Tensor], steps: Steps, shares: Shares, stabilize: Stabilizing) -> Cell:
    """h = f(z), z = x + h'."""
    z = steps.gates + steps.hidden
    parts: list[Tensor | None] = [torch.ones_like(z)]
    of_state = times(slope(steps.after(0), z), _proportion(stabilize, z))
    return Cell(core=z, of_state=of_state, gates=parts, hidden=parts)


def _relu_slope(y: Tensor, x: Tensor) -> Tensor:
    return (y > 0).to(y.dtype)


class Recurrence(NamedTuple):
    """A recurrent layer: of how many parts is what comes to a step, and the factors of its cell."""

    parts: int
    cell: Callable[[Steps, Shares, Stabilizing], Cell]


LSTM, GRU = Recurrence(4, _lstm), Recurrence(3, _gru)
RNN_TANH, RNN_RELU = (Recurrence(1, functools.partial(_rnn, slope)) for slope in (_slope, _relu_slope))
