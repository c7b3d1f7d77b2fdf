"""A report: one HTML page that holds a dataset run, or two side by side, to look through without a network.

Samples are read and written a few at a time, so that memory does not grow with the pictures. The page's parts lie next
to this file: `page.html.jinja`, with `page.css` and what is in `script/` put into it. What is shown is escaped by the
template or set as text by the script; a content security policy lets nothing run but that script, nor anything be
fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrpfunc.errors import InputError
from lrpfunc.pictures import shards
from lrpfunc.pictures.outfiles import outfile
from lrpfunc.pictures.outputs import LABELS, VALUES
from lrpfunc.pictures.parts import files
from lrpfunc.pictures.report import pixels, wording
from lrpfunc.pictures.report.comparison import check_comparable, pairs
from lrpfunc.pictures.report.rows import Means, blocks, step_of
from lrpfunc.pictures.report.sides import Side, details_of, side
from lrpfunc.pictures.report.verdicts import tally
from lrpfunc.pictures.sidefiles import named
from lrpfunc.pictures.workfile import check_out
from lrpfunc.text.templates import template

SIZE = 128
SIZES = (8, 1024)
# What makes a map what it is, and what it is called.
DIFFERENCES = {
    "composite": "composite",
    "model": "model",
    "weights": "weights",
    "parameters": "values of parameters",
    "canonized": "canonization",
    "targets": "targets",
    "preprocess": "preprocessing",
    "names": "the list of samples",
}
SCRIPTS = ("data", "wording", "colours", "views", "choosing", "gallery", "means", "plot", "dialog", "start")


class Summary(NamedTuple):
    """What was written: where, of how many samples (each may have several explanations), how large.

    `missing`: the sentence that names the shards that were not there, if any.
    """

    path: Path
    samples: int
    bytes: int
    missing: str = ""


def write(
    paths: Sequence[Path],
    out: Path,
    title: str = "",
    size: int = SIZE,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    beside: Sequence[Path] = (),
) -> Summary:
    """Write one page of the files of a run; several files are its shards, a folder has its blocks.

    `size`: the longer side of the pictures, in pixels; larger ones are averaged down. A page takes some 20 KB for each
    explanation at 128 pixels, 6 KB at 64. `progress(done, of)`: called with numbers of explanations. `beside`: the
    files of another run on the same samples, to be compared; what only one of the runs has is counted and left out.
    Errors: `FileError` for files as `hdf5.opened` has it, for files of different runs, for runs that cannot be
    compared, for an `out` that exists or has no folder; `InputError` for no files, one given twice, or an impossible
    size; `OSError` where the system refuses to write.
    """
    paths, beside, out = files(paths), files(beside), Path(out)
    _check(paths and [*paths, *beside], out, size, overwrite)
    with ExitStack() as stack:
        sides = [_opened(stack, each) for each in (paths, beside) if each]
        found = None
        positions = np.arange(sides[0].rows)[:, None]
        if beside:
            check_comparable(*sides)
            found = pairs(*sides)
            positions = found.positions
        means = Means(len(sides))
        tallies = [tally(*each, step_of(sides)) for each in zip(sides, positions.T, strict=True)]
        page = {
            "title": wording.visible(title) or wording.headline([each.first.details for each in sides]),
            "tallies": tallies,
            "sides": _described(sides),
            "pairs": found,
            "differences": _differences(sides),
            "meaning": sides[0].meaning,
            "facts": _facts(sides, size),
            "blocks": blocks(sides, positions, size, means, progress),
            "means": means,  # complete once the blocks have gone by
        }
        # Names of files need not be text: what cannot be written becomes a question mark.
        with (
            named(out),
            outfile(out, overwrite) as part,
            open(part, "w", encoding="utf-8", errors="replace", newline="\n") as file,
        ):
            for piece in template(Path(__file__).parent, SCRIPTS, {"visible": wording.visible}).generate(page):
                file.write(piece)
    return Summary(out, tallies[0].samples, out.stat().st_size, _missing(sides))


def _missing(sides: Sequence[Side]) -> str:
    return " ".join(filter(None, (shards.missing(each.runs) for each in sides)))


def _opened(stack: ExitStack, paths: Sequence[Path]) -> Side:
    runs = shards.opened(stack, paths)
    shards.check_alike(paths, runs, "a report")
    return side(paths, runs)


# -- checks -----------------------------------------------------------------------------------------------------------


def _check(paths: Sequence[Path], out: Path, size: int, overwrite: bool) -> None:
    low, high = SIZES
    if not low <= size <= high:
        raise InputError(f"a report's pictures need a size from {low} to {high} pixels, but it is {size}.")
    shards.check_files(paths, out, "a report")
    check_out(out, overwrite, "report.html")


# -- what is said of the whole run ------------------------------------------------------------------------------------


def _described(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """What the template says of each side."""
    names = wording.names([each.first.details for each in sides])
    return [
        {
            "letter": letter if len(sides) > 1 else "",
            "name": name,
            "does": wording.in_words(each.first.details.get("composite"), each.meaning.word),
            "missing": shards.missing(each.runs),
            "details": wording.shown(details_of(each), wording.DEPTH + 1),
            "errors": [error for run in each.runs for error in run.errors],
        }
        for letter, name, each in zip("AB", names, sides, strict=False)
    ]


def _differences(sides: Sequence[Side]) -> list[str]:
    """In what two runs differ, of what makes a map what it is."""
    first, last = (details_of(each) for each in (sides[0], sides[-1]))
    return [word for name, word in DIFFERENCES.items() if first.get(name) != last.get(name)]


def _facts(sides: Sequence[Side], size: int) -> dict[str, Any]:
    """What the script needs to know beforehand."""
    meaning = sides[0].meaning
    height, width = pixels.fitted(sides[0].first.schema.image[-2:], size)
    things = {LABELS: "label", VALUES: "value"}
    return {
        "kind": meaning.kind,
        "words": [each.meaning.word for each in sides],
        "unit": meaning.unit,
        "thing": things.get(meaning.kind or "", "class"),
        "names": next((each.names for each in sides if each.names), []),
        "sides": [f"{each['letter']}: {each['name']}" if len(sides) > 1 else "" for each in _described(sides)],
        "height": height,
        "width": width,
        "levels": pixels.LEVELS,
        "colors": [[name, diverging, pixels.colour_table(name)] for name, diverging in pixels.COLORS.items()],
    }
