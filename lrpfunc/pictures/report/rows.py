"""The rows of a report, a block at a time: what the page's script filters and sorts by, pictures, and class means.

A row holds the explanations of one sample: one, or two where runs are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lrpfunc.pictures.outputs import VALUES
from lrpfunc.pictures.report import pixels
from lrpfunc.pictures.report.comparison import Alikeness, alikeness
from lrpfunc.pictures.report.sides import Side
from lrpfunc.pictures.report.verdicts import Said, said
from lrpfunc.pictures.report.wording import visible

TOP = 5
VALUES_SHOWN = 20
BLOCK_BYTES = 1 << 24
BLOCK_ROWS = 256


class Block(NamedTuple):
    """Some rows, and apart from them their pictures, which are read when they are shown.

    A row is [number of the sample, file, true class, explanation], and for two runs [..., explanation of the other,
    correlation, cosine]; an explanation is what `_explanation` gives.
    """

    rows: list[list[Any]]
    pictures: list[str]


class Means:
    """Mean maps of the explained classes, each map divided by its largest magnitude first, so that all count alike.

    Of two runs there are two means of a class: of the same samples, those that the first run explains as this class.
    """

    def __init__(self, sides: int) -> None:
        self._sides = sides
        self._sums: dict[tuple[int, int], np.ndarray] = {}
        self._counts: dict[tuple[int, int], int] = {}

    def add(self, target: int, side: int, share: np.ndarray) -> None:
        """Take a map in."""
        key = (target, side)
        self._sums[key] = self._sums.get(key, np.float32(0)) + share.astype(np.float32)
        self._counts[key] = self._counts.get(key, 0) + 1

    def __iter__(self) -> Iterator[list[Any]]:
        """Class, and for each side that has any: its number, how many maps, largest magnitude of the mean, the mean."""
        for target in sorted({target for target, _ in self._sums}):
            found: list[Any] = []
            for side in range(self._sides):
                if (target, side) in self._sums:
                    count = self._counts[target, side]
                    packed, largest = pixels.packed(self._sums[target, side].astype(np.float64) / count)
                    found.append([side, count, _number(largest), packed])
            yield [target, found]


def step_of(sides: Sequence[Side]) -> int:
    """How many rows fit into memory with ease."""
    return min(max(1, BLOCK_BYTES // sum(side.row_bytes for side in sides)), BLOCK_ROWS)


def blocks(
    sides: Sequence[Side],
    positions: np.ndarray,
    size: int,
    means: Means,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Block]:
    """Go through rows, whose positions (N, S) in each side are given."""
    shape, step = pixels.fitted(sides[0].first.schema.image[-2:], size), step_of(sides)
    for start in range(0, len(positions), step):
        chosen = positions[start : start + step]
        parts = [_part(side, side.read(rows), shape) for side, rows in zip(sides, chosen.T, strict=True)]
        yield _block(parts, means)
        if progress is not None:
            progress(start + len(chosen), len(positions))


class _Part(NamedTuple):
    """What one side has of a block: columns, relevance as it is (N, H, W) and as it is shown, and which is finite."""

    side: Side
    columns: dict[str, np.ndarray]
    said: Said
    full: np.ndarray
    maps: np.ndarray
    images: np.ndarray
    finite: np.ndarray


def _part(side: Side, columns: dict[str, np.ndarray], shape: tuple[int, int]) -> _Part:
    full = columns["attribution"].sum(axis=1, dtype=np.float64)
    finite = np.isfinite(full).all(axis=(1, 2))
    full[~finite] = 0.0
    images = pixels.averaged(pixels.displayed(columns["data"]), shape)
    found = said(side.meaning, columns["prediction"], columns["label"])
    return _Part(side, columns, found, full, pixels.averaged(full, shape), images, finite)


def _block(parts: Sequence[_Part], means: Means) -> Block:
    block = Block([], [])
    first = parts[0].columns
    alike = _alikeness(*parts) if len(parts) == 2 else None
    for i, target in enumerate(first["target"].tolist()):
        explanations, packed = [], []
        for number, part in enumerate(parts):
            if part.finite[i]:
                means.add(target, number, part.maps[i] / (np.abs(part.full[i]).max() or 1.0))
            levels, largest = pixels.packed(part.maps[i])
            packed.append(levels)
            explanations.append(_explanation(part, i, largest))
        row = [int(first["index"][i]), visible(first["file"][i].decode(errors="replace")), int(first["label"][i])]
        row += explanations
        if alike is not None:
            row += [_number(alike.correlation[i]), _number(alike.cosine[i])]
        block.rows.append(row)
        block.pictures.append(" ".join([*_images(parts, i), *packed]))
    return block


def _explanation(part: _Part, i: int, largest: float) -> list[Any]:
    """The class explained, its logit, the sum, the class's probability and the true one's, top classes, what is shown
    with these, largest magnitude, and the result.
    """
    target, label = int(part.columns["target"][i]), int(part.columns["label"][i])
    meaning = part.side.meaning
    top = part.said.top(i, VALUES_SHOWN if meaning.kind == VALUES else TOP, meaning)
    return [
        target,
        _number(part.columns["logit"][i]),
        _number(part.columns["relevance_sum"][i]),
        _number(part.said.probability(i, target)),
        _number(part.said.probability(i, label)),
        top,
        [_number(part.said.shown[i, each]) for each in top],
        _number(largest) if part.finite[i] else None,
        part.said.results[i],
    ]


def _images(parts: Sequence[_Part], i: int) -> list[str]:
    """The input of each side, a dash where it is the first one's."""
    first, *others = (part.images[i] for part in parts)
    urls = [pixels.image_url(first)]
    return urls + ["-" if np.array_equal(first, other) else pixels.image_url(other) for other in others]


def _alikeness(one: _Part, other: _Part) -> Alikeness:
    same = one.full.shape == other.full.shape
    found = alikeness(one.full, other.full) if same else alikeness(one.maps, other.maps)
    both = one.finite & other.finite
    return Alikeness(np.where(both, found.correlation, np.nan), np.where(both, found.cosine, np.nan))


def _number(value: float | None) -> float | None:
    """For JSON: as many digits as a float32 has, and none where there is no number."""
    return float(f"{value:.7g}") if value is not None and np.isfinite(value) else None
