"""What one explanation leaves for the next: rules laid out over a program, and what they made of convolutions' weights.

In a loop `attribute` is then nearly as fast as a prepared explanation, and still a function of its arguments alone:
rules are compared, and so are weights, number by number, as torch does not notice all that is written to them (by
`.data`). Of weights that come once nothing is kept, nor where transforms, traces or derivatives are at work.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpfunc.compat import TensorTable, is_transforming
from lrpfunc.composites import FALLBACK
from lrpfunc.operations import Operation, kernels
from lrpfunc.program import Program, fast_paths, is_plain
from lrpfunc.rules import Rule, called, is_same


class Made(NamedTuple):
    """What a rule made of a layer's weight and bias, and of tensors that it was given itself, as the corners of a box.

    `given`: which these were; `numbers`: what they held.
    """

    given: tuple[weakref.ref[Tensor], ...]
    numbers: tuple[Tensor, ...]
    hoists: Mapping[Callable, Any]
    packs: TensorTable | None

    def is_of(self, tensors: tuple[Tensor, ...]) -> bool:
        """Whether it was made of just these tensors, and of the numbers that they hold."""
        return _are(self.given, tensors) and all(map(torch.equal, tensors, self.numbers))


class Kept:
    """What a program keeps of an explanation.

    `assigned`, `ranges`, `is_strict`: which one it was; `sketch`: its plan without parameters; `seen`: the weights that
    were there last, by layer; `made`: what was made of them.
    """

    def __init__(self, assigned: Mapping[str, Rule], ranges: Mapping[str, tuple[float, float]], is_strict: bool):
        self.assigned, self.ranges, self.is_strict = assigned, ranges, is_strict
        self.are_fast_paths_taken = fast_paths.taken
        self.sketch: Any = None
        self.seen: dict[str, tuple[weakref.ref[Tensor], ...]] = {}
        self.made: dict[str, Made] = {}

    def is_of(self, assigned: Mapping[str, Rule], ranges: Mapping[str, tuple[float, float]], is_strict: bool) -> bool:
        """Whether this is what is kept of such an explanation."""
        settings = (self.ranges, self.is_strict, self.are_fast_paths_taken)
        return settings == (ranges, is_strict, fast_paths.taken) and _are_alike(self.assigned, assigned)

    def hoisted(self, rule: Rule, operation: Operation) -> Operation:
        """An operation with what its rule makes of its weight, if that is there for the second time or more."""
        parameters = [t for t in (operation.weight, operation.bias) if t is not None]
        of_rule = [t for t in called(rule)[1] if isinstance(t, Tensor)]
        is_kept = operation.row.kernel is not None and kernels.suit(*parameters) and is_plain(*of_rule)
        if is_transforming() or not is_kept:
            return operation
        given = (*parameters, *of_rule)
        name, made = operation.name, self.made.get(operation.name)
        if made is not None and made.is_of(given):
            return operation.copy(hoists=made.hoists, packs=made.packs)
        is_new = not _are(self.seen.get(name), given)
        self.made.pop(name, None)
        self.seen[name] = tuple(map(weakref.ref, given))
        if is_new:
            return operation
        with torch.inference_mode(False), torch.no_grad():  # what is kept serves calls with derivatives as well
            operation = operation.hoisting(rule.hoists)
            numbers = tuple(tensor.clone() for tensor in given)
        self.made[name] = Made(self.seen[name], numbers, operation.hoists, operation.packs)
        return operation


def of(
    program: Program, assigned: Mapping[str, Rule], ranges: Mapping[str, tuple[float, float]], is_strict: bool
) -> Kept:
    """What a program keeps of such an explanation; of the last one only."""
    if torch.compiler.is_compiling():  # a compiled call must leave nothing behind
        return Kept(assigned, ranges, is_strict)
    kept = program.kept
    if kept is None or not kept.is_of(assigned, ranges, is_strict):
        kept = Kept(assigned, ranges, is_strict)
        object.__setattr__(program, "kept", kept)
    return kept


def _are(given: tuple[weakref.ref[Tensor], ...] | None, tensors: tuple[Tensor, ...]) -> bool:
    if given is None or len(given) != len(tensors):
        return False
    return all(one() is tensor for one, tensor in zip(given, tensors, strict=True))


def _are_alike(one: Mapping[str, Rule], other: Mapping[str, Rule]) -> bool:
    """Whether both give the same rules to the same layers. What was left open is told from what was chosen."""
    if one.keys() != other.keys():
        return False
    pairs = {(id(rule), id(other[name])): (rule, other[name]) for name, rule in one.items()}
    return all(a is b or (a is not FALLBACK and b is not FALLBACK and is_same(a, b)) for a, b in pairs.values())
