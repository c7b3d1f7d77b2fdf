"""Programs and what is said of their equations as columns of text."""

from __future__ import annotations

from collections.abc import Sequence

from lrpfunc.program.equations import PARAMETER, Equation


def equation_row(equation: Equation) -> tuple[str, str, str, str]:
    """An equation in a printed table: its name, operator, and the shapes that it reads and makes."""
    read = [str(v) for v in equation.reads if v.is_tensor and not v.name.startswith(PARAMETER)]
    return equation.name, equation.operator, " ".join(read), " ".join(map(str, equation.outputs))


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, each as wide as its widest cell."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (header, *rows)]
    return "\n".join(lines)
