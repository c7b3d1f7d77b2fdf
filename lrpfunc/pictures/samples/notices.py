"""What was said of single samples, put together: of many that say the same but for numbers, one speaks for all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lrpfunc.pictures.images import printable

MOST = 8  # lines


class Notices:
    """Collects what is said of samples, by their names."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, str]] = {}
        self._count: dict[str, int] = {}

    def add(self, name: str | Path, notices: Iterable[str]) -> None:
        for text in notices:
            kind = re.sub(r"-?\d[\d.,e+-]*", "#", text)
            self._first.setdefault(kind, (printable(name), text))
            self._count[kind] = self._count.get(kind, 0) + 1

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each kind of notice."""
        found = [_line(*self._first[kind], count - 1) for kind, count in self._count.items()]
        return tuple(found[:MOST])


def _line(name: str, text: str, others: int) -> str:
    more = f" and {others:,} other{'s' * (others != 1)}, such as this" if others else ""
    return f"{name}{more}: {text}"
