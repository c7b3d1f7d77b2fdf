"""What travels backwards between equations: a relevance, or a coefficient of the value there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.program import multiply
from lrpfunc.rules.stabilizers import as_stabilizer


class Recalled:
    """What stands for a = relu(v) in a rectified flow: v is known where it arrives, so that nobody else keeps a."""


RECALLED = Recalled()


class Flow:
    """What travels backwards on an edge with value v: a relevance R, or a coefficient c with R = v * c.

    Of a complex v the relevance is real, R = Re(v conj(c)): the sum of its parts' inputs times gradients where c is
    autograd's gradient, whatever the phase. S(v) = v + epsilon v / |v| then, and R / S(conj(v)) is the coefficient.

    A rule reads it in one of three ways: `tensor`, whichever form arrived, for linear maps that treat both alike;
    `relevance(v)`; `coefficient(v, stabilize)`. `is_relevance` says which form it is.

    Args:
        relevance: R, of the value's shape; a tuple for an equation with several outputs.
        coefficient: c, likewise. Exactly one of the two is given.
        rectified: a = relu(v), where c is the coefficient of a that has yet to pass the ReLU: R = a c, and where a is
            zero so is R; `RECALLED` where whoever gets it knows v, which then must be given.
        by_value: False for a relevance that was shared whatever the value is (flat, wsquare) or relative to its bounds
            (zbox), so that a constant in it has no share: (x - mean) / std hands it on as it is.
    Errors: `RuleError` for both forms or none.
    Source: Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10, who write R_j = a_j c_j.

    >>> import lrpfunc, torch
    >>> value, flow = torch.tensor([2.0, 4.0]), lrpfunc.Flow(coefficient=torch.tensor([3.0, 0.5]))
    >>> flow.relevance(value)
    tensor([6., 2.])
    >>> flow.coefficient(value, lrpfunc.stabilizer(1.0))  # v c / S(v)
    tensor([2.0000, 0.4000])
    """

    __slots__ = ("_tensor", "by_value", "is_relevance", "rectified")

    def __init__(
        self,
        relevance: Tensor | tuple | None = None,
        coefficient: Tensor | tuple | None = None,
        rectified: Tensor | Recalled | None = None,
        by_value: bool = True,
    ):
        if (relevance is None) == (coefficient is None):
            raise RuleError("a Flow is either a relevance or a coefficient: give exactly one.")
        if rectified is not None and coefficient is None:
            raise RuleError("only a coefficient can be rectified.")
        self.is_relevance = relevance is not None
        self.rectified = rectified
        self.by_value = by_value
        self._tensor: Any = relevance if relevance is not None else coefficient

    @property
    def tensor(self) -> Any:
        """R or c; a tuple of them for an equation with several outputs. Errors: `RuleError` for `RECALLED`."""
        rectified = self.recalled(None).rectified
        assert not isinstance(rectified, Recalled)
        return self._tensor if rectified is None else rectify(self._tensor, rectified)

    @property
    def shape(self) -> torch.Size:
        return self._tensor.shape

    def recalled(self, value: Tensor | None) -> Flow:
        """The same with a = relu(v) itself, if that was left to whoever knows v. Errors: `RuleError` without v then."""
        if not isinstance(self.rectified, Recalled):
            return self
        if value is None:
            raise RuleError(
                "the ReLU behind it kept nothing, as its rule declares by `recalls` that it knows its output: let it "
                "call flow.recalled(output) first, or make it with recalls=False."
            )
        return Flow(coefficient=self._tensor, rectified=value.relu())

    def relevance(self, value: Tensor | None) -> Tensor:
        """R, by R = v * c. The value of a relevance or a rectified flow need not be given, here and below."""
        if self.is_relevance:
            return self._tensor
        factor, c = factors(self, value)
        return (factor * c.conj()).real if c.is_complex() else factor * c

    def coefficient(
        self, value: Tensor | None, stabilize: Callable[[Tensor], Tensor], as_it_is: bool = False
    ) -> Tensor:
        """R / S(v). A coefficient c is v * c / S(v): bounded where v cancels to zero, and c itself where S(v) = v.

        For a rectified flow S(v) = S(a) wherever there is relevance, if S works element by element.

        Args:
            value: v.
            stabilize: S, a stabilizer or any function of v.
            as_it_is: a coefficient is handed on as it arrived, so that only a relevance is divided by S(v).
        """
        if isinstance(self.rectified, Recalled):
            return self.recalled(value).coefficient(value, stabilize, as_it_is)
        stable = as_stabilizer(stabilize)
        if not self.is_relevance and (as_it_is or stable.is_identity):
            return self.tensor
        if self.rectified is not None and stable.epsilon is not None:
            return multiply(stable.proportion(self.rectified, is_nonnegative=True), self._tensor)
        assert value is not None
        if self.is_relevance and value.is_complex():
            return stable.quotient(self.relevance(value).to(value.dtype), value.conj())
        if self.is_relevance or self.rectified is not None:
            return stable.quotient(self.relevance(value), value)
        return multiply(stable.proportion(value), self._tensor)

    def moved(self, tensor) -> Flow:
        """The same form with another tensor."""
        return Flow(relevance=tensor, by_value=self.by_value) if self.is_relevance else Flow(coefficient=tensor)


def factors(flow: Flow, value: Tensor | None) -> tuple[Tensor, Tensor]:
    """A factor and a coefficient whose product is R: v and c, or a and c that is not rectified yet."""
    factor = value if flow.rectified is None else flow.recalled(value).rectified
    assert isinstance(factor, Tensor)
    return factor, flow._tensor


def rectify(tensor: Tensor, by: Tensor, keeps_zero: bool = False) -> Tensor:
    """`tensor` where `by` > 0, or >= 0, else 0; one pass, ten times as fast as torch.where on a CPU."""
    if not keeps_zero:
        return torch.ops.aten.threshold_backward(tensor, by, 0)
    info, wide = torch.finfo(by.dtype), torch.finfo(torch.promote_types(by.dtype, torch.float32))
    next_to_zero = max(info.smallest_normal * info.eps, wide.smallest_normal)  # torch.set_flush_denormal spares the two
    return torch.ops.aten.threshold_backward(tensor, by, -next_to_zero)
