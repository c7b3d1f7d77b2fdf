"""What travels backwards between equations: a relevance, or a coefficient of the value there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.program import divide, multiply
from lrpfunc.rules.stabilizers import Stabilizer, stabilizer

OTHER_FORM = "a rule above returned another form of flow than it declares by `gives`."


class Flow:
    """What travels backwards on an edge with value v: a relevance R, or a coefficient c with R = v * c.

    With `rectified`, c is the coefficient of a = relu(v) that has yet to pass the ReLU: R = a c, and where a is zero so
    is R. An equation with several outputs has a flow whose `tensor` is a tuple.
    Source: Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10, who write R_j = a_j c_j.
    """

    __slots__ = ("_tensor", "is_relevance", "rectified")

    def __init__(
        self,
        relevance: Tensor | tuple | None = None,
        coefficient: Tensor | tuple | None = None,
        rectified: Tensor | None = None,
    ):
        if (relevance is None) == (coefficient is None):
            raise RuleError("a Flow is either a relevance or a coefficient: give exactly one.")
        if rectified is not None and coefficient is None:
            raise RuleError("only a coefficient can be rectified.")
        self.is_relevance = relevance is not None
        self.rectified = rectified
        self._tensor: Any = relevance if relevance is not None else coefficient

    @property
    def tensor(self) -> Any:
        """R or c; a tuple of them for an equation with several outputs."""
        return self._tensor if self.rectified is None else rectify(self._tensor, self.rectified)

    @property
    def own(self) -> Tensor:
        """c, where it is known that a coefficient arrives. Errors: `RuleError` if it is none."""
        if self.is_relevance:
            raise RuleError(OTHER_FORM)
        return self.tensor

    @property
    def shape(self) -> torch.Size:
        return self._tensor.shape

    def relevance(self, value: Tensor | None) -> Tensor:
        """R, by R = v * c. The value of a relevance or a rectified flow need not be given, here and below."""
        return self._tensor if self.is_relevance else self._factor(value) * self._tensor

    def coefficient(self, value: Tensor | None, stabilize: Callable[[Tensor], Tensor]) -> Tensor:
        """R / S(v). A coefficient c is v * c / S(v): bounded where v cancels to zero, and c itself where S(v) = v.

        For a rectified flow S(v) = S(a) wherever there is relevance, if S works element by element.
        """
        stable = stabilize if isinstance(stabilize, Stabilizer) else stabilizer(stabilize)
        if stable.is_identity and not self.is_relevance:
            return self.tensor
        if self.rectified is not None and stable.epsilon is not None:
            return multiply(stable.proportion(self.rectified, is_nonnegative=True), self._tensor)
        if self.is_relevance or self.rectified is not None:
            return stable.quotient(self.relevance(value), given(value))
        return multiply(stable.proportion(given(value)), self._tensor)

    def carried(self, value: Tensor | None, stabilize: Stabilizer) -> Tensor:
        """A coefficient as it came, not stabilized; of a relevance, which needs the value, R / S(v)."""
        return self.coefficient(value, stabilize) if self.is_relevance else self.tensor

    def over(self, stable: Tensor, value: Tensor | None, is_spare: bool = False) -> Tensor:
        """R / d, where d is a stabilized denominator. `is_spare`: nobody else needs it."""
        ratio = divide if is_spare else torch.div
        if self.is_relevance:
            return ratio(self._tensor, stable)
        return multiply(ratio(self._factor(value), stable), self._tensor)

    def _factor(self, value: Tensor | None) -> Tensor:
        """What the coefficient is to be multiplied by for a relevance."""
        return given(value) if self.rectified is None else self.rectified

    def moved(self, tensor) -> Flow:
        """The same form with another tensor."""
        return Flow(relevance=tensor) if self.is_relevance else Flow(coefficient=tensor)


def given(value: Tensor | None) -> Tensor:
    """A value that was not kept if a rule above declared that it would not be needed. Errors: `RuleError`."""
    if value is None:
        raise RuleError(OTHER_FORM)
    return value


def rectify(tensor: Tensor, by: Tensor) -> Tensor:
    """`tensor` where `by` > 0, else 0; one pass, ten times as fast as torch.where on a CPU."""
    return torch.ops.aten.threshold_backward(tensor, by, 0)
