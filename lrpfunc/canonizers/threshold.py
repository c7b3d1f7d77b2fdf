"""A batch norm folded into the activations and layers behind it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lrpfunc.canonizers import right
from lrpfunc.canonizers.batch_norms import BATCH_NORMS, gather, scale_and_shift, take_away
from lrpfunc.canonizers.draft import Draft
from lrpfunc.canonizers.folds import Fold
from lrpfunc.operations import Arrival, Facts, Route, bounds, rightwards
from lrpfunc.program import Equation, Variable, functions

THRESHOLD = "threshold"


def _find(known: Facts, batch_norm: Equation) -> Route:
    return rightwards(known, batch_norm, through_activations=True)


def _merge(draft: Draft, batch_norm: Equation, route: Route) -> None:
    if not route.activations:
        right.merge(draft, batch_norm, route)
        return
    moved: dict[str | None, tuple[Tensor, Tensor]] = {None: scale_and_shift(draft, batch_norm)}
    for activation in route.activations:
        moved[activation.equation.outputs[0].name] = _bend_elsewhere(
            draft, activation, *moved[activation.origin], like=batch_norm.arguments[4]
        )
    right.turn_pools(draft, route, moved, like=batch_norm.arguments[4])
    right.into_layers(draft, route, moved)
    take_away(draft, batch_norm, THRESHOLD, ", ".join(equation.name for equation in right.touched(route)))


def _bend_elsewhere(draft: Draft, arrival: Arrival, scales: Tensor, shifts: Tensor, like: Variable):
    """Make f(a x + b) = a t(x) + b of an activation, and return a and b behind it.

    Where a is 0, or too small to divide by, t is the identity, and a and b become f'(b) a and f(b).
    """
    activation = arrival.equation
    found = bounds(activation)
    assert found is not None
    a, b = gather(scales, arrival.channels, rest=1.0), gather(shifts, arrival.channels, rest=0.0)
    low, high = (torch.as_tensor(draft.value(bound), dtype=a.dtype, device=a.device) for bound in found[:2])
    dtype = draft.value(like).dtype
    is_flat = (a == 0) | _overflows(low, a, b, dtype) | _overflows(high, a, b, dtype)
    divisor = torch.where(is_flat, 1.0, a)
    first, second = _pulled_back(low, divisor, b), _pulled_back(high, divisor, b)
    new_low = torch.where(is_flat, -torch.inf, torch.where(a < 0, second, first))
    new_high = torch.where(is_flat, torch.inf, torch.where(a < 0, first, second))
    low_leaf = draft.write_leaf(activation, "low", found.low, new_low, like)
    high_leaf = draft.write_leaf(activation, "high", found.high, new_high, like)
    arguments = (activation.arguments[0], low_leaf, high_leaf, found.slope)
    draft.exchange(dataclasses.replace(activation, function=functions.threshold_relu, arguments=arguments))
    value = functions.threshold_relu(b, low, high, found.slope)
    derivative = torch.where((low < b) & (b < high), 1.0, found.slope)
    return torch.where(is_flat, a * derivative, a).flatten(), torch.where(is_flat, value, b).flatten()


def _overflows(bound: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether a is so small that the bend is nowhere in a dtype."""
    return bound.isfinite() & ~((bound - b) / a).to(dtype).isfinite()


def _pulled_back(bound: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The x for which a x + b is a bound, with a derivative also where that is infinite."""
    is_finite = bound.isfinite()
    return torch.where(is_finite, (torch.where(is_finite, bound, 0.0) - b) / a, bound * a.detach().sign())


threshold_relu = Fold(
    name="threshold_relu",
    about=BATCH_NORMS,
    side="behind it",
    find=_find,
    touched=right.touched,
    merge=_merge,
    doc="""Fold each batch norm before ReLUs, as in DenseNet, into the linear layers behind them.

    relu(a x + b) = a t(x) + b, where t(x) = max(x, -b / a) for a > 0 and min(x, -b / a) for a < 0; where a = 0 it is
    the fixed value relu(b). The threshold ReLU t passes relevance on as any activation, but is not non-negative; a and
    b move on as in `merge_batch_norm_right`. ReLU6, hardtanh, clamps by numbers and LeakyReLU are folded alike: all
    their bends move. The bends are new leaves, "relu.low" and "relu.high", infinite where there is none.

    Args:
        program: a program, as `functionalize` and `trace` return it.
        params: its parameters, a flat dict {name: tensor}. Neither is mutated.

    Errors: `CanonizeError` for batch norms whose values cannot be folded, as `canonize`.
    Source: zennit pull request 171; Motzkus et al. 2022, arXiv:2202.06621.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1, eps=0.5), torch.nn.ReLU(), torch.nn.Linear(1, 1)).eval()
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 1))
    >>> shifted = {**params, "0.bias": torch.tensor([3.0]), "0.running_var": torch.tensor([0.5])}
    >>> program, folded = lrpfunc.canonizers.threshold_relu(fmodel, shifted)
    >>> [equation.operator for equation in program.equations]
    ['threshold_relu', 'linear']
    >>> folded["1.low"], folded["1.high"]  # relu(x + 3) bends at -3
    (tensor([[-3.]]), tensor([[inf]]))
    """,
)
