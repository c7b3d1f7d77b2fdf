"""What each token of an answer rests on, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lrpfunc.text.grids import matrix_part, page
from lrpfunc.text.rows import Relevance


def matrix(
    relevance: Relevance,
    tokens: Sequence[str],
    answer: Sequence[str] | None = None,
    path: str | Path | None = None,
    title: str = "",
    limit: float | None = None,
) -> str:
    """A page of the relevance of every answer token to every token before it, to look through in a browser.

    It needs no network. A click, or arrow keys and Enter, choose a token of the answer and show on which it rests, in
    the text too; or a token of the prompt, and what counts on it.

    Args:
        relevance: (answer, tokens), a row for each token of the answer, in any units.
        tokens: the strings of the prompt and, if it has columns for them, of the answer.
        answer: the strings of the answer; None: the last ones of `tokens`.
        path: where to write it, too.
        title: the page's.
        limit: the end m of the colours, in units of the relevance; the largest magnitude, unless given.
    Errors: `InputError` for another shape, what is not finite, and matrices that are too large for a page.

    >>> import lrpfunc, torch
    >>> from lrpfunc import text
    >>> page = text.matrix(torch.tensor([[0.5, 0.0, 0.0], [0.1, 1.0, 0.0]]), ["The", " key", " turns"])
    >>> page[:15]
    '<!DOCTYPE html>'
    """
    made = page(title, matrix=matrix_part(relevance, tokens, answer, limit))
    if path is not None:
        Path(path).write_text(made, encoding="utf-8")
    return made
