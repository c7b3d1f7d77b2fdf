"""What the numbers mean that a model gives: classes, one logit for or against, independent labels, values.

Asked once, when a model is made ready, and kept with what is written. Of N outputs people choose among *choices*: as
many as there are outputs, but of one logit there are two, against (0) and for (1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpfunc.errors import ModelError
from lrpfunc.operations import facts
from lrpfunc.operations.kinds import SOFTMAX
from lrpfunc.operations.row import ALL, FIRST
from lrpfunc.operations.table import row_of
from lrpfunc.program import Program, Variable

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
    end = None if wish.kind == VALUES else _end(program)
    kind = wish.kind or _kind(end, outputs)
    settled = replace(wish, kind=kind)
    if end is not None:
        return _settled_end(program, settled, end, who)
    if kind == CLASSES and outputs > 1 and _sum_to_one(example):
        said = f"the outputs of {who} are probabilities (they sum to 1): they are explained as they are."
        return Settled(program, replace(settled, are_probabilities=True), (said,))
    if wish.kind is None and kind == BINARY:
        said = f"{who} has one output: it is taken for {WORDS[BINARY]}. If it is a value, say so by --regression."
        return Settled(program, settled, (said,))
    return Settled(program, settled, ())


def _settled_end(program: Program, meaning: Meaning, end: _End, who: str) -> Settled:
    if end.logits is not None and not meaning.as_is:
        said = f"{who} ends in {end.name}: the logit in front of it is explained; --as-is explains what comes out."
        return Settled(program.replace(output=end.logits), meaning, (said,))
    why = "what comes out of it is explained" if meaning.as_is else "a part of it comes out, and is explained as it is"
    if end.is_probability:
        meaning = replace(meaning, are_probabilities=True)
    elif meaning.kind != CLASSES:  # logarithms of probabilities are logits to a softmax, but to no sigmoid
        meaning = replace(meaning, kind=VALUES, unit=meaning.unit or "log probability")
    return Settled(program, meaning, (f"{who} ends in {end.name}: {why}.",))


def _kind(end: _End | None, outputs: int) -> str:
    if end is not None and end.is_softmax:
        return CLASSES if outputs > 1 else BINARY
    if outputs == 1:
        return BINARY
    return LABELS if end is not None else CLASSES


def _sum_to_one(outputs: Tensor) -> bool:
    return bool((outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < NEAR_ONE).all())


class _End(NamedTuple):
    """What turned logits into probabilities at the end of a program; `logits` are None if only a part of it comes out.

    `is_probability`: and not its logarithm.
    """

    name: str
    logits: Variable | None
    is_softmax: bool
    is_probability: bool


def _end(program: Program) -> _End | None:
    """The softmax or sigmoid that a program ends in; changes of the shape, copies and bounds may follow it."""
    value, is_whole = program.output, True
    while isinstance(value, Variable) and (maker := program.producers.get(value.name)) is not None:
        row = row_of(maker)
        first = maker.arguments[0]
        if row.is_probability:
            is_softmax = facts(program).kind_of(maker) == SOFTMAX
            axes = maker.arguments[1] if is_softmax else 1
            if [axis % len(first.shape) for axis in (axes if isinstance(axes, list) else [axes])] != [1]:
                return None  # over samples
            return _End(maker.operator, first if is_whole else None, is_softmax, row.is_gate)
        if not (row.is_clamp or row.moves_ids in (ALL, FIRST)):
            return None
        is_whole = is_whole and (row.keeps_values or row.is_clamp)
        value = first
    return None
