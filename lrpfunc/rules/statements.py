"""What a linear rule states: branches, the terms of their denominators, and what they make of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from lrpfunc.operations import Operation
from lrpfunc.program import fast_paths
from lrpfunc.rules.stabilizers import Stabilizer

Make = Callable[[Tensor], Tensor]

ALL, POSITIVE, NEGATIVE, ONES = "x", "x+", "x-", "1"  # parts of x: x, x+, x-, as many ones


def whole(w: Tensor) -> Tensor:
    """The weight or the bias as it is."""
    return w


def positive(w: Tensor) -> Tensor:
    return w.clamp(min=0)


def negative(w: Tensor) -> Tensor:
    return w.clamp(max=0)


class Term(NamedTuple):
    """A weight made of W, times a part of x: one of the above, or a function of x, of which it sends relevance."""

    weight: Make
    x: str | Make


class Branch(NamedTuple):
    """`share` R / S(d) is shared among the terms of d. `bias`: made of b, the part of d that keeps its share.

    `sign`: +1 or -1 if its terms are all the contributions of that sign, and so d has it. `where`: +1 or -1 if only
    outputs of that sign are shared here.
    """

    terms: tuple[Term, ...]
    bias: Make | None = None
    share: float = 1.0
    sign: int = 0
    where: int = 0


class Statement(NamedTuple):
    """Branches and a stabilizer, and what follows from them.

    `gives_coefficients`: all terms are parts of x; `is_signed`: some are x+ or x-; `is_shifted`: some are functions of
    x; `is_whole`: there is but W x.
    `weights` makes those of each branch's terms (None: the operation has none), `biases` the branches' biases.
    """

    branches: tuple[Branch, ...]
    stabilize: Stabilizer
    needs_weight: bool
    gives_coefficients: bool
    is_signed: bool
    is_shifted: bool
    is_whole: bool
    weights: Callable[[Operation], tuple[tuple[Tensor | None, ...], ...]]
    biases: Callable[[Operation], tuple[SharedBias, ...]]


def state(branches: Sequence[Branch], stabilize: Stabilizer, needs_weight: bool = True) -> Statement:
    """A statement of these branches. Without `needs_weight` an operation that has no weight stands for any of it."""
    terms = [term for branch in branches for term in branch.terms]
    makers = list(dict.fromkeys(term.weight for term in terms))
    of_branches = [[makers.index(term.weight) for term in branch.terms] for branch in branches]

    def weights(operation: Operation) -> tuple[tuple[Tensor | None, ...], ...]:
        made = [make(operation.weight) if operation.is_weighted else None for make in makers]
        return tuple([tuple([made[number] for number in numbers]) for numbers in of_branches])

    def biases(operation: Operation) -> tuple[SharedBias, ...]:
        return tuple([_shared_bias(operation, branch, stabilize) for branch in branches])

    return Statement(
        tuple(branches),
        stabilize,
        needs_weight,
        gives_coefficients=all(term.x in (ALL, POSITIVE, NEGATIVE) for term in terms),
        is_signed=any(term.x in (POSITIVE, NEGATIVE) for term in terms),
        is_shifted=any(not isinstance(term.x, str) for term in terms),
        is_whole=terms == [Term(whole, ALL)],
        weights=weights,
        biases=biases,
    )


# -- what depends on parameters only ----------------------------------------------------------------------------------


class SharedBias(NamedTuple):
    """A branch's bias. `holds_epsilon`: S(d) = d + `rest`, where what is not in the rest is in the bias."""

    bias: Tensor | None
    holds_epsilon: bool = False
    rest: float = 0.0


def _shared_bias(operation: Operation, branch: Branch, stabilize: Stabilizer) -> SharedBias:
    """Where the sign of d is known S(d) = d + sign epsilon, which the bias can hold, if the operation has one."""
    bias = None if branch.bias is None or operation.bias is None else branch.bias(operation.bias)
    if not (fast_paths.taken and branch.sign and stabilize.epsilon):
        return SharedBias(bias)
    size = branch.sign * stabilize.threshold(operation.weight.dtype)
    shifted = operation.offset(bias, size)
    return SharedBias(bias, True, size) if shifted is None else SharedBias(shifted, True)
