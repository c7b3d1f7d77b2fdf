"""A page with a script, from what it shows as plain data: numbers in base64, tokens as text.

Its parts lie next to this file: `page.html.jinja`, with `page.css` and what is in `script/` put into it. What is shown
is escaped by the template or set as text by the script; a content security policy lets nothing run but that script, nor
anything be fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import why_not_finite
from lrpfunc.text.rows import Relevance, as_array
from lrpfunc.text.templates import base64_of, template
from lrpfunc.text.tokens import check_tokens, visible

NUMBERS = 4_000_000  # of a page: 20 MB
SCRIPTS = ("data", "grid", "lists", "graph", "matrix", "start")


def page(title: str, graph: Mapping[str, Any] | None = None, matrix: Mapping[str, Any] | None = None) -> str:
    """A page of a graph, a matrix, or both, as `script/data.js` reads them."""
    return template(Path(__file__).parent, SCRIPTS).render(
        title=visible(title) if title else "", graph=graph, matrix=matrix, data={"graph": graph, "matrix": matrix}
    )


def matrix_part(
    relevance: Relevance, tokens: Sequence[str], answer: Sequence[str] | None = None, limit: float | None = None
) -> dict[str, Any]:
    """A matrix as a page shows it. Errors: see `text.matrix`."""
    values = as_array(relevance)
    words = list(map(visible, check_tokens(tokens)))
    if values.ndim != 2 or not values.size or values.shape[1] != len(words):
        raise InputError(
            f"a matrix has a row for each token of the answer and a column for each of the {len(words)} tokens, but "
            f"has shape {values.shape}."
        )
    rows = words[-len(values) :] if answer is None else list(map(visible, check_tokens(answer)))
    if len(rows) != len(values):
        raise InputError(f"the matrix has {len(values)} rows, but the answer has {len(rows)} tokens.")
    if not np.isfinite(values).all():
        raise InputError(f"relevance must be finite. {why_not_finite(values)}")
    check_numbers(values.size, "Give some rows of it, relevance[:100], or sums over spans of tokens.")
    end = float(np.abs(values).max()) or 1.0 if limit is None else limit
    if not 0 < end < np.inf:
        raise InputError(f"limit must be a finite number above zero, but is {limit!r}.")
    return {"rows": rows, "columns": words, "values": floats(values), "limit": end}


def check_numbers(count: int, remedy: str) -> None:
    """Errors: `InputError` for more numbers than a page should hold."""
    if count > NUMBERS:
        raise InputError(f"a page would hold {count:,} numbers, but more than {NUMBERS:,} are slow to open. {remedy}")


def floats(values: np.ndarray) -> str:
    """Numbers as a script reads them: float32, the lowest byte first, in base64."""
    with np.errstate(over="ignore"):
        return base64_of(np.clip(values, *_ENDS).astype("<f4").tobytes())


_ENDS = (-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max))


def whole_numbers(values: np.ndarray) -> str:
    """Places as a script reads them: 32 bits, the lowest byte first, in base64."""
    return base64_of(values.astype("<u4").tobytes())
