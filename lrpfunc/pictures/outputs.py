"""What the numbers mean that a model gives: classes, one logit for or against, independent labels, values.

Asked once, when a model is made ready, and kept with what is written. Of N outputs people choose among *choices*: as
many as there are outputs, but of one logit there are two, against (0) and for (1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpfunc.errors import ModelError
from lrpfunc.operations import facts
from lrpfunc.operations.kinds import ACTIVATION, AFFINE, SOFTMAX
from lrpfunc.operations.row import ALL, FIRST
from lrpfunc.operations.table import row_of
from lrpfunc.program import Equation, Program, Variable

CLASSES, BINARY, LABELS, VALUES = "classes", "binary", "labels", "values"
KINDS = (CLASSES, BINARY, LABELS, VALUES)
NOT = "not"
NEAR_ONE = 1e-3  # how far half-precision probabilities are from summing to one


@dataclass(frozen=True)
class Meaning:
    """What outputs (N, O) mean.

    `kind`: `classes` that exclude each other (softmax), `binary` (one logit for class 1, sigmoid), `labels` that do not
    (a sigmoid each), or `values`. None: by what the program ends in. `unit`: of values. `as_is`: whether a
    softmax or sigmoid at the program's end is explained too. `are_probabilities`: outputs are probabilities, no logits.
    """

    kind: str | None = None
    unit: str = ""
    as_is: bool = False
    are_probabilities: bool = False

    def choices(self, outputs: int) -> int:
        """How many things of so many outputs can be explained."""
        return 2 if self.kind == BINARY else outputs

    def names(self, categories: Sequence[str]) -> tuple[str, ...]:
        """A name for each choice: those of the classes; of a logit that has one name, the second."""
        if self.kind == BINARY and len(categories) == 1:
            return (f"{NOT} {categories[0]}", categories[0])
        return tuple(categories)

    def name(self, choice: int, names: Sequence[str]) -> str:
        """What a choice is called: by its name, else by its number."""
        if 0 <= choice < len(names):
            return names[choice]
        if self.kind == BINARY and choice == 0:
            return f"{NOT} 1"
        return f"value {choice}" if self.kind == VALUES else str(choice)

    def scores(self, outputs: Tensor) -> Tensor:
        """What choices are ranked by (N, K): logits, probabilities or values."""
        if self.kind != BINARY:
            return outputs
        against = 1 - outputs if self.are_probabilities else -outputs
        return torch.cat([against, outputs], dim=1)

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """The probability of each choice (N, K); values have none."""
        if self.kind == VALUES:
            return None
        scores = self.scores(outputs)
        if self.are_probabilities:
            return scores
        return scores.softmax(1) if self.kind == CLASSES else scores.sigmoid()

    def seed(self, outputs: Tensor, choice: Tensor, is_gradient: bool = False) -> Tensor:
        """The relevance (N, O) that enters at the outputs to explain a choice (N,): its logit, or its value.

        Against a logit z speaks -z, and what speaks for it has the other sign.
        `is_gradient`: one enters in place of the logit.
        """
        column = torch.zeros_like(choice) if self.kind == BINARY else choice
        chosen = torch.zeros_like(outputs).scatter_(1, column[:, None], 1)
        if self.kind == BINARY:
            chosen = chosen * (2 * choice[:, None] - 1)
        return chosen if is_gradient else chosen * outputs

    @property
    def word(self) -> str:
        """What a score is called."""
        if self.kind == VALUES:
            return f"value in {self.unit}" if self.unit else "value"
        return "probability" if self.are_probabilities else "logit"

    def as_json(self) -> dict[str, Any]:
        """The meaning as JSON takes it."""
        return {name: value for name, value in asdict(self).items() if name != "as_is"}

    def __str__(self) -> str:
        return WORDS[self.kind or CLASSES] + (f" ({self.unit})" if self.unit else "")


WORDS = {
    CLASSES: "classes that exclude each other (softmax)",
    BINARY: "one logit, for class 1 or against it (sigmoid)",
    LABELS: "labels that do not exclude each other (a sigmoid each)",
    VALUES: "values",
}


def meaning_of(details: Mapping[str, Any]) -> Meaning:
    """What was kept of a meaning; files of older versions have classes. Errors: `ModelError` for something else."""
    kept = details.get("output", {"kind": CLASSES})
    try:
        meaning = Meaning(**kept)
        is_known = meaning.kind in KINDS and isinstance(meaning.unit, str)
    except TypeError:
        is_known = False
    if not is_known:
        raise ModelError(f"what the outputs mean is not known: {kept!r}.")
    return meaning


class Settled(NamedTuple):
    """A program whose outputs are understood: without what turned logits into probabilities; what to say of it."""

    program: Program
    meaning: Meaning
    notes: tuple[str, ...]


def rows(output: Any, who: str) -> Tensor:
    """A model's output as a matrix (N, O). Errors: `ModelError` if it is none."""
    if isinstance(output, Tensor) and output.is_floating_point() and output.dim():
        if output.dim() == 1:
            return output[:, None]
        if output.shape[1:].numel() == output.shape[1]:  # (N, O, 1, 1)
            return output.flatten(1)
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ModelError(f"{who} must give logits (N, classes), but gives {got}.")


def settle(program: Program, wish: Meaning, example: Tensor, who: str) -> Settled:
    """What the outputs mean of a program that gave `example` (N, O) for an input, as far as `wish` does not say.

    Errors: `ModelError` for a wish that does not fit.
    """
    outputs = example.shape[1]
    if wish.kind == BINARY and outputs != 1:
        raise ModelError(f"{who} has {outputs} outputs, but one logit for or against a class is one.")
    end = None if wish.kind == VALUES else _end(program, outputs)
    kind = wish.kind or (end.kind if end is not None else BINARY if outputs == 1 else CLASSES)
    settled = replace(wish, kind=kind)
    is_open = end is None or end.kind == VALUES
    if is_open and wish.kind in (None, CLASSES) and outputs > 1 and _sum_to_one(example):
        said = f"the outputs of {who} are probabilities (they sum to 1): they are explained as they are."
        return Settled(program, replace(settled, kind=CLASSES, are_probabilities=True), (said,))
    if end is not None:
        return _settled_end(program, settled, end, who)
    if wish.kind is None and kind == BINARY:
        said = f"{who} has one output: it is taken for {WORDS[BINARY]}. If it is a value, say so by --regression."
        return Settled(program, settled, (said,))
    return Settled(program, settled, ())


def _settled_end(program: Program, meaning: Meaning, end: _End, who: str) -> Settled:
    if end.logits is not None and not meaning.as_is:
        said = f"{who} ends in {end.name}: the logit in front of it is explained; --as-is explains what comes out."
        return Settled(program.replace(output=end.logits, sequel=None), meaning, (said,))
    why = "a part of it comes out, and is explained as it is"
    if end.kind == VALUES:
        why = f"what comes out is no logit: it is taken for {WORDS[meaning.kind or VALUES]}"
    elif meaning.as_is or not end.is_part:
        why = "what comes out of it is explained"
    if end.is_probability:
        meaning = replace(meaning, are_probabilities=True)
    elif (
        end.kind != VALUES and meaning.kind != CLASSES
    ):  # logarithms of probabilities are logits to a softmax, but to no sigmoid
        meaning = replace(meaning, kind=VALUES, unit=meaning.unit or "log probability")
    return Settled(program, meaning, (f"{who} ends in {end.name}: {why}.",))


def _sum_to_one(outputs: Tensor) -> bool:
    return bool((outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < NEAR_ONE).all())


class _End(NamedTuple):
    """What a program ends in that gives no logits, and what that makes of its outputs.

    `kind`: as of a Meaning. `logits`: what a softmax or sigmoid turned into probabilities, None if there are none or
    only a part comes out (`is_part`). `is_probability`: and not its logarithm.
    """

    name: str
    kind: str
    logits: Variable | None = None
    is_probability: bool = False
    is_part: bool = False


def _end(program: Program, outputs: int) -> _End | None:
    """What a program ends in: changes of the shape, copies, bounds, scales and shifts may follow it."""
    value, bounded = program.output, None
    is_whole, is_scaled = True, False
    while isinstance(value, Variable) and (maker := program.producers.get(value.name)) is not None:
        row, kind = row_of(maker), facts(program).kind_of(maker)
        if row.is_probability:
            return _probability(maker, kind, outputs, is_whole, is_scaled)
        is_affine = kind == AFFINE or (row.reduces and outputs == 1)
        if not (row.is_clamp or is_affine or row.moves_ids in (ALL, FIRST)):
            return bounded or _bounded(maker, kind, outputs, is_scaled)
        if row.is_clamp:
            bounded = bounded or _bounded(maker, kind, outputs, is_scaled)
        is_whole = is_whole and (row.keeps_values or row.is_clamp)
        is_scaled = is_scaled or is_affine
        value = next(iter(facts(program).inputs_of(maker)), None)
    return bounded


def _probability(maker: Equation, kind: str, outputs: int, is_whole: bool, is_scaled: bool) -> _End | None:
    """Of a softmax over classes, not over samples, or of a sigmoid."""
    is_softmax = kind == SOFTMAX
    first = maker.arguments[0]
    axes = maker.arguments[1] if is_softmax else 1
    if [axis % len(first.shape) for axis in (axes if isinstance(axes, list) else [axes])] != [1]:
        return None
    if is_scaled:
        return _End(f"{maker.operator} and a scale or a shift", VALUES)
    kind = BINARY if outputs == 1 else CLASSES if is_softmax else LABELS
    return _End(maker.operator, kind, first if is_whole else None, row_of(maker).is_gate, not is_whole)


def _bounded(maker: Equation, kind: str, outputs: int, is_scaled: bool) -> _End | None:
    """Of what keeps its results within bounds, as no logit is. Clamps may be mere guards, unless they start at zero."""
    row = row_of(maker)
    low, high, slope = (row.bounds and row.bounds(maker)) or (None, None, None)
    is_positive = row.sign is not None and row.sign(maker, lambda given: isinstance(given, (int, float)) and given >= 0)
    is_gate = row.is_gate and kind == ACTIVATION
    if not is_scaled and ((is_gate and is_positive) or (low, high, slope) == (0, 1, 0)):
        return _End(maker.operator, LABELS if outputs > 1 else BINARY, is_probability=True)
    is_finite = (
        slope == 0 and isinstance(high, (int, float)) and math.isfinite(high) and (is_positive or not row.is_clamp)
    )
    return _End(maker.operator, VALUES) if is_gate or is_finite or (is_positive and outputs == 1) else None
