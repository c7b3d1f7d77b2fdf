"""A side of a report: the shards of one run as if they were one file, and what its outputs mean."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrpfunc.pictures import hdf5
from lrpfunc.pictures.outputs import BINARY, CLASSES, VALUES, Meaning, meaning_of
from lrpfunc.pictures.report.wording import visible


@dataclass(frozen=True)
class Side:
    """A run: its files and what they hold; a row is known by its position in all of them one after another."""

    paths: Sequence[Path]
    runs: Sequence[hdf5.Run]
    meaning: Meaning
    names: Sequence[str]

    @property
    def rows(self) -> int:
        """How many explanations there are."""
        return sum(run.rows for run in self.runs)

    @property
    def first(self) -> hdf5.Run:
        """One of the shards, for what all have in common."""
        return self.runs[0]

    @property
    def choices(self) -> int:
        """How many things can be explained."""
        return self.meaning.choices(self.first.schema.classes)

    @property
    def row_bytes(self) -> int:
        """What a row takes in memory, about."""
        return 4 * (int(np.prod(self.first.schema.image)) + self.first.schema.classes)

    def column(self, name: str) -> np.ndarray:
        """All entries of a column that is small."""
        return np.concatenate([run.column(name)[0 : run.rows] for run in self.runs])

    def read(self, positions: np.ndarray, names: Collection[str] = ()) -> dict[str, np.ndarray]:
        """Columns of some rows, in the order given; all unless named."""
        stretches = list(self._stretches(positions))
        return {
            name: np.concatenate([run.column(name)[start:stop] for run, start, stop in stretches])
            for name in names or self.first.schema.columns()
        }

    def _stretches(self, positions: np.ndarray) -> Iterator[tuple[hdf5.Run, int, int]]:
        """Rows of a run that lie one after another, which are read at once."""
        ends = np.cumsum([run.rows for run in self.runs])
        shards = np.searchsorted(ends, positions, side="right")
        breaks = np.flatnonzero((np.diff(positions) != 1) | (np.diff(shards) != 0)) + 1
        for each in np.split(np.arange(len(positions)), breaks):
            shard = int(shards[each[0]])
            start = int(positions[each[0]] - (ends[shard] - self.runs[shard].rows))
            yield self.runs[shard], start, start + len(each)


def side(paths: Sequence[Path], runs: Sequence[hdf5.Run]) -> Side:
    """The side of runs that are shards of one."""
    meaning = meaning_of(runs[0].details)
    if meaning.kind == CLASSES and runs[0].schema.classes == 1:  # of one class alone nothing can be said but its number
        meaning = Meaning(VALUES)
    return Side(paths, runs, meaning, _names(meaning, runs[0].categories, runs[0].schema.classes))


def _names(meaning: Meaning, categories: Sequence[str], outputs: int) -> list[str]:
    """The names of choices, as far as they have any."""
    names = [visible(name) for name in meaning.names(categories)]
    if meaning.kind == BINARY and not names:
        return [meaning.name(choice, ()) for choice in (0, 1)]
    return ["value"] if meaning.kind == VALUES and outputs == 1 and not names else names


def details_of(side: Side) -> dict[str, Any]:
    """What is known of a side's runs, once where all agree, else for each."""
    runs = side.runs
    names = list(dict.fromkeys(name for run in runs for name in run.details))
    values = {name: [run.details.get(name) for run in runs] for name in names}
    return {name: each[0] if all(value == each[0] for value in each) else each for name, each in values.items()}
