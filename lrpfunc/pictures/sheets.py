"""Comparison sheets: images in rows, composites in columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

import lrpfunc
from lrpfunc import heatmaps
from lrpfunc.pictures import images
from lrpfunc.pictures.drawing import ONE, Found, Style, lookable, maker
from lrpfunc.pictures.outfiles import outfile

if TYPE_CHECKING:
    from PIL import Image

ROWS = 8  # of a sheet; more become further sheets
SCALES = {True: "All maps have one scale.", False: "Each map has its own scale: its largest value is darkest."}


class _Row(NamedTuple):
    picture: Image.Image
    found: Sequence[Found]  # one for each composite


class Sheets:
    """Sheets that are written as they are full."""

    def __init__(self, out: Path, beginning: str, composites: Sequence[str], style: Style, overwrite: bool):
        self._out, self._beginning, self._composites = out, beginning, composites
        self._style, self._overwrite = style, overwrite
        self._rows: list[_Row] = []
        self.files: list[Path] = []

    def add(self, found: Sequence[Found], picture: Image.Image) -> None:
        """Add an image: what was found under the first composite, then under the next. Errors: as `finish`."""
        each = len(found) // len(self._composites)
        for i in range(each):
            self._rows.append(_Row(picture, found[i::each]))
            if len(self._rows) == ROWS:
                self.finish()

    def finish(self) -> None:
        """Write what is left. Errors: `FileError` for a sheet that exists; `OSError`."""
        if self._rows:
            path = self._free()
            with outfile(path, self._overwrite) as part:
                heatmaps.save(self._figure(), part, dpi=120, about=self._about())
            self.files.append(path)
            self._rows = []

    def _free(self) -> Path:
        """The next name; without `overwrite` one that no earlier run has taken for other images."""
        number = len(self.files) + 1
        while True:
            path = self._out / f"comparison-{number}.{self._beginning}.png"
            if path not in self.files and (self._overwrite or not path.exists()):
                return path
            number += 1

    def _about(self) -> dict[str, str]:
        version = f"lrpfunc {lrpfunc.__version__}"
        first = self._rows[0].found[0]
        made = f"{maker(first.model, first.weights)} · {', '.join(self._composites)} · {version}"
        return {"Software": version, "Description": made}

    def _figure(self):
        is_one = self._style.scale == ONE
        maps = torch.stack([one.relevance.sum(0) for row in self._rows for one in row.found])
        drawn = _images(maps, self._style, is_one)
        width = len(self._composites)
        cells = [[row.picture, *drawn[i * width : (i + 1) * width]] for i, row in enumerate(self._rows)]
        first = self._rows[0].found[0]
        figure = heatmaps.figure(
            cells,
            columns=["input", *map(_in_lines, self._composites)],
            rows=[_label(row.found[0]) for row in self._rows],
            title=f"What decides {maker(first.model, first.weights)}?",
            caption=f"Below each map: what it sums to. {SCALES[is_one]} lrpfunc {lrpfunc.__version__}",
            scale=("against", "nothing", "for it"),
            colors=self._style.colors,
        )
        figure.set_size_inches(1.8 * (width + 1) + 1.2, 2.0 * len(cells) + 1.3)
        for i, row in enumerate(self._rows):
            for j, one in enumerate(row.found, start=1):
                figure.axes[i * (width + 1) + j].set_xlabel(f"{one.relevance_sum:.3g}", fontsize=8.5, labelpad=3)
        return figure


def _images(maps: Tensor, style: Style, is_one: bool) -> list[Image.Image]:
    drawn = heatmaps.heatmap(maps[:, None], style.colors, joint=is_one, quantile=style.quantile)
    assert isinstance(drawn, list)
    return [lookable(one) for one in drawn]


def _label(one: Found) -> str:
    name = textwrap.shorten(images.printable(one.image.name), 24, placeholder="…") or images.printable(one.image.name)
    return f"{name}\n{_in_lines(images.printable(one.says))}\n{one.word} {one.score:.3g}"


def _in_lines(name: str) -> str:
    """A name, broken at underscores and blanks so that it fits."""
    return textwrap.fill(name.replace("_", "_ "), 20).replace("_ ", "_")
