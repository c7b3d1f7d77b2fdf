"""What a model says of samples, by what its outputs mean: probabilities, ranks, and whether it is right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from lrpfunc.pictures.outputs import LABELS, Meaning
from lrpfunc.pictures.report.sides import Side

RIGHT, WRONG, UNKNOWN = "right", "wrong", "unknown"
HOLDS = 0.5  # the probability from which on a label is said to hold


class Said(NamedTuple):
    """Of N samples and K choices: probabilities (N, K), of which values have none; choices (N, K), the likeliest first
    (values stand as they are); what each is shown with, a probability or a value; right, wrong or unknown, or None.
    """

    probabilities: np.ndarray | None
    ranked: np.ndarray
    shown: np.ndarray
    results: list[str | None]

    def probability(self, row: int, choice: int) -> float | None:
        """A choice's probability, if there is such a choice and it has any."""
        has_one = self.probabilities is not None and 0 <= choice < self.shown.shape[1]
        return self.shown[row, choice] if has_one else None

    def top(self, row: int, count: int, meaning: Meaning) -> list[int]:
        """The first choices of a sample, and all labels that hold."""
        if meaning.kind == LABELS:
            count = max(count, int((self.shown[row] >= HOLDS).sum()))
        return self.ranked[row, :count].tolist()


def said(meaning: Meaning, outputs: np.ndarray, labels: np.ndarray) -> Said:
    """What outputs (N, O) say, and whether that is right for labels (N,), -1 where unknown."""
    scores = torch.from_numpy(outputs.astype(np.float64))
    found = meaning.probabilities(scores)
    choices = meaning.scores(scores).numpy()
    if found is None:
        ranked = np.broadcast_to(np.arange(choices.shape[1]), choices.shape)
        return Said(None, ranked, choices, [None] * len(outputs))
    # By falling score, the lower number first among equals, as arg-max has it, and what is no number last.
    ranked = np.argsort(-choices, axis=1, kind="stable")
    probabilities = found.numpy()
    return Said(probabilities, ranked, probabilities, _results(meaning, probabilities, ranked, labels))


def _results(meaning: Meaning, probabilities: np.ndarray, ranked: np.ndarray, labels: np.ndarray) -> list[str | None]:
    known = (labels >= 0) & (labels < probabilities.shape[1])
    if meaning.kind == LABELS:
        rows = np.arange(len(labels))
        is_right = probabilities[rows, np.where(known, labels, 0)] >= HOLDS
    else:
        is_right = ranked[:, 0] == labels
    return np.where(known, np.where(is_right, RIGHT, WRONG), UNKNOWN).tolist()


class Tally(NamedTuple):
    """How many explanations and samples there are, how many of these are of known class, and how many recognized."""

    rows: int
    samples: int
    known: int
    right: int


def tally(side: Side, positions: np.ndarray, step: int) -> Tally:
    """Count some rows of a side; a sample with several explanations counts once."""
    results: dict[int, str | None] = {}
    for start in range(0, len(positions), step):
        rows = side.read(positions[start : start + step], ("prediction", "label", "index"))
        found = said(side.meaning, rows["prediction"], rows["label"]).results
        results.update(zip(rows["index"].tolist(), found, strict=True))
    counts = [result for result in results.values() if result in (RIGHT, WRONG)]
    return Tally(len(positions), len(results), len(counts), counts.count(RIGHT))
