"""Two runs side by side: which of their explanations belong together, and how alike two maps are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from lrpfunc.errors import FileError
from lrpfunc.pictures.report.sides import Side


class Pairs(NamedTuple):
    """Explanations that belong together: their positions (P, 2). What one side has alone: samples, and explanations of
    samples that both have.
    """

    positions: np.ndarray
    samples: tuple[int, int]
    explanations: tuple[int, int]


def check_comparable(one: Side, other: Side) -> None:
    """Ask whether predictions of two runs mean the same. Errors: `FileError`."""
    different = []
    if (one.meaning.kind, one.meaning.unit) != (other.meaning.kind, other.meaning.unit):
        different.append(f"what the outputs mean ({one.meaning}, {other.meaning})")
    elif one.choices != other.choices:
        different.append(f"how many classes there are ({one.choices}, {other.choices})")
    elif one.names and other.names and one.names != other.names:
        different.append("the names of the classes")
    if different:
        raise FileError(
            f"{one.paths[0]} and {other.paths[0]} cannot be compared: they differ in {different[0]}. Write a report of "
            "each."
        )


def pairs(one: Side, other: Side) -> Pairs:
    """Match explanations by sample and explained class, else by their order; those of `one` stay in theirs.

    Samples are the same if their file names are; where one run has a name twice, their numbers must be, too.
    Errors: `FileError` if there are none.
    """
    keys = _keys(one, other)
    rows = [_grouped(each) for each in keys]
    targets = [side.column("target") for side in (one, other)]
    found: list[tuple[int, int]] = []
    for key, first in rows[0].items():
        found += _matched(first, rows[1].get(key, []), *targets)
    if not found:
        raise FileError(
            f"{one.paths[0]} and {other.paths[0]} have no sample in common, by the names of the files: only runs on "
            "the same data set can be compared."
        )
    alone = (len(rows[0].keys() - rows[1].keys()), len(rows[1].keys() - rows[0].keys()))
    both = rows[0].keys() & rows[1].keys()
    counts = tuple(sum(len(each[key]) for key in both) for each in rows)
    return Pairs(np.array(sorted(found)), alone, (counts[0] - len(found), counts[1] - len(found)))


def _keys(one: Side, other: Side) -> tuple[Sequence[Hashable], Sequence[Hashable]]:
    """What tells the sample of each row."""
    files = [side.column("file").tolist() for side in (one, other)]
    indices = [side.column("index").tolist() for side in (one, other)]
    first, second = (list(zip(*each, strict=True)) for each in zip(files, indices, strict=True))
    if all(len({*names}) == len({*both}) for names, both in zip(files, (first, second), strict=True)):
        return files[0], files[1]
    return first, second


def _grouped(keys: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    rows = defaultdict(list)
    for row, key in enumerate(keys):
        rows[key].append(row)
    return dict(rows)


def _matched(
    first: Sequence[int], second: Sequence[int], targets: np.ndarray, others: np.ndarray
) -> list[tuple[int, int]]:
    """Rows of one sample, two and two: those of the same class, then what is left in its order."""
    left = list(second)
    pairs, unmatched = [], []
    for row in first:
        same = next((each for each in left if others[each] == targets[row]), None)
        if same is None:
            unmatched.append(row)
        else:
            left.remove(same)
            pairs.append((row, same))
    return pairs + list(zip(unmatched, left, strict=False))


class Alikeness(NamedTuple):
    """How alike maps are, pair by pair (N,): Pearson's correlation and the cosine, nan where there is none."""

    correlation: np.ndarray
    cosine: np.ndarray


def alikeness(maps: np.ndarray, others: np.ndarray) -> Alikeness:
    """Compare maps (N, H, W) pixel by pixel."""
    one, other = (each.reshape(len(each), -1) for each in (maps, others))
    return Alikeness(_cosine(_centred(one), _centred(other)), _cosine(one, other))


def _centred(maps: np.ndarray) -> np.ndarray:
    """Maps less their means; one that is the same everywhere is zero, and not the rounding of its mean."""
    centred = maps - maps.mean(axis=1, keepdims=True)
    centred[np.ptp(maps, axis=1) == 0] = 0.0
    return centred


def _cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):  # a map without any relevance is like none: nan
        one, other = (each / np.abs(each).max(axis=1, keepdims=True) for each in (one, other))
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        return np.clip((one * other).sum(axis=1) / lengths, -1.0, 1.0)
