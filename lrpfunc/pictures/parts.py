"""Which samples of a data set are in one file: a shard has every N-th, a block has neighbours.

Both depend on places in the data set alone, never on who was faster: parts have no sample in common and miss none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lrpfunc.errors import FileError, InputError

BLOCK_NAME = re.compile(r"block-\d{6,9}\.(h5|parquet)")


class Shard(NamedTuple):
    """Every `of`-th sample, from the `number`-th on; both from 1."""

    number: int = 1
    of: int = 1

    def positions(self, samples: int) -> range:
        """The positions in the data set that belong to it."""
        return range(self.number - 1, samples, self.of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


class Block(NamedTuple):
    """The `number`-th `size` samples, one after another; there are `of` blocks; `number` is from 1."""

    number: int
    of: int
    size: int

    def positions(self, samples: int) -> range:
        """The positions in the data set that belong to it."""
        return range((self.number - 1) * self.size, min(self.number * self.size, samples))

    def __str__(self) -> str:
        return f"{self.number}/{self.of} of {self.size}"


def shard(text: str) -> Shard:
    """The shard `I/N`, such as 2/4. Errors: `InputError`."""
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"a shard is I/N with I from 1 to N, such as 1/4 to 4/4, but '{text}' is not.")
    return Shard(int(match[1]), int(match[2]))


def blocks(samples: int, size: int) -> list[Block]:
    """All blocks of a data set; the last one may be smaller. Errors: `InputError`."""
    if size < 1:
        raise InputError(f"a block needs one sample at least, but --block-size is {size}.")
    of = -(-samples // size)
    return [Block(number, of, size) for number in range(1, of + 1)]


def block_file(folder: Path, number: int, ending: str = ".h5") -> Path:
    """The file of a block."""
    return folder / f"block-{number:06}{ending}"


def files(paths: Iterable[Path]) -> list[Path]:
    """Files of a run, where a folder stands for the blocks in it. Errors: `FileError` for a folder without any."""
    found = []
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            inside = sorted((each for each in path.iterdir() if BLOCK_NAME.fullmatch(each.name)), key=_number)
            if not inside:
                raise FileError(f"there are no blocks in {path}: `lrpfunc dataset ... --engine ray --out {path}`.")
        found += inside
    return found


def _number(path: Path) -> int:
    return int(path.stem.partition("-")[2])
