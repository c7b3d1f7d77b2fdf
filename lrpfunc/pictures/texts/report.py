"""A page of a run over prompts: each with its answer, on the colours of what the answer rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrpfunc import text
from lrpfunc.errors import FileError
from lrpfunc.pictures import shards
from lrpfunc.pictures.outfiles import check_outfile, outfile
from lrpfunc.pictures.texts.files import TextRun
from lrpfunc.pictures.texts.merging import opened
from lrpfunc.text.tokens import heading

SHOWN = 200  # prompts
TOKENS = 200_000  # of a page: 20 MB
COLUMNS = ("index", "id", "tokens", "prompt_length", "relevance", "probabilities", "error")
ARROW = " → "  # between prompt and answer
LETTERS = 60  # of an answer in a heading


class TextSummary(NamedTuple):
    """What was written: where, of how many prompts and of how many that there are, how large, what is missing."""

    path: Path
    samples: int
    of: int
    bytes: int
    missing: str


class _Shown(NamedTuple):
    title: str
    tokens: list[str]
    relevance: np.ndarray


def write(
    paths: Sequence[Path],
    out: Path,
    title: str = "",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    shown: int = SHOWN,
) -> TextSummary:
    """Write a page of the files of a run, or of folders of its blocks; of many prompts some, evenly through all.

    Errors: as `merging.opened` has them; `FileError` for an `out` that exists, and if no prompt is explained.
    """
    check_outfile(out, overwrite)
    runs = opened(paths, out, "a report")
    places = [(run, row) for run in runs for row in range(len(run))]
    chosen = [places[number] for number in np.linspace(0, len(places) - 1, min(shown, len(places))).round().astype(int)]
    found: list[_Shown] = []
    tokens = 0
    for number, (run, row) in enumerate(chosen, start=1):
        if (one := _shown(run, row)) and (tokens := tokens + len(one.tokens)) <= TOKENS:
            found.append(one)
        if progress:
            progress(number, len(chosen))
    if not found:
        raise FileError(f"no prompt in {runs[0].path} has an explanation to show: see its column 'error'.")
    about = runs[0].details
    page = text.html(
        [one.tokens for one in found],
        [one.relevance for one in found],
        titles=[one.title for one in found],
        title=title or f"What each answer rests on: {about['model']}, {about['composite']}",
        scale="each",
    )
    with outfile(out, overwrite) as part:
        part.write_text(page, encoding="utf-8")
    return TextSummary(out, len(found), len(places), out.stat().st_size, shards.missing(runs))


def _shown(run: TextRun, row: int) -> _Shown | None:
    index, name, tokens, start, relevance, probabilities, error = run.table.row(row, COLUMNS)
    if error is not None:
        return None
    answer = heading("".join(tokens[start:]), LETTERS)
    likely = float(np.exp(np.mean(np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)))))
    words = [*tokens[:start], ARROW, *tokens[start:]]
    values = np.insert(np.array(relevance, np.float32), start, 0.0)
    return _Shown(f"{index}. {name}: {answer} ({likely:.1%} a word)", words, values)
