"""Which values of a program are never below zero: what comes out of ReLUs, sigmoids and the like, and what keeps it so.

Rules that treat the two signs apart then leave out the negative one.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

import torch

from lrpfunc.errors import InputError, near_misses
from lrpfunc.operations.facts import facts
from lrpfunc.operations.table import row_of
from lrpfunc.program import Leaf, Program, Variable

# (low, high) of every input, or of inputs by the names of their leaves.
InputRange = tuple[float, float] | Mapping[str, tuple[float, float]] | None


def nonnegative(program: Program, ranges: Mapping[str, tuple[float, float]]) -> frozenset[str]:
    """The names of the variables that are never below zero, whatever the parameters. `ranges`: of inputs, by label."""
    key, signs = tuple(sorted(ranges.items())), facts(program).signs
    if key in signs:
        return signs[key]
    found = _nonnegative(program, ranges)
    if not torch.compiler.is_compiling():  # a compiled call must leave nothing behind
        signs[key] = found
    return found


def _nonnegative(program: Program, ranges: Mapping[str, tuple[float, float]]) -> frozenset[str]:
    known = {leaf.value.name for leaf in program.input_leaves if ranges.get(leaf.label, (-1.0, 0.0))[0] >= 0}

    def is_nonnegative(argument) -> bool:
        if isinstance(argument, Variable):
            return argument.name in known
        if isinstance(argument, (list, tuple)):
            return all(map(is_nonnegative, argument))
        return isinstance(argument, Real) and float(argument) >= 0

    for equation in program.equations:
        sign = row_of(equation).sign
        if sign is not None and sign(equation, is_nonnegative):
            known.update(variable.name for variable in equation.outputs if variable.is_floating)
    return frozenset(known)


def input_ranges(program: Program, given: InputRange) -> dict[str, tuple[float, float]]:
    """The range of each floating-point input that was stated, by label. Errors: `InputError`."""
    labels = [leaf.label for leaf in program.input_leaves if _is_floating(leaf)]
    if given is None:
        return {}
    ranges = given if isinstance(given, Mapping) else dict.fromkeys(labels, given)
    for label, pair in ranges.items():
        if label not in labels:
            hint = near_misses(str(label), labels)
            raise InputError(f"input_range names '{label}', which is no floating-point input.{hint}")
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(end, Real) for end in pair)
        if not is_pair or not pair[0] <= pair[1]:
            raise InputError(f"input_range must be two numbers (low, high) with low <= high, but is {pair!r}.")
    return {label: (float(low), float(high)) for label, (low, high) in ranges.items()}


def _is_floating(leaf: Leaf) -> bool:
    return isinstance(leaf.value, Variable) and leaf.value.is_floating
