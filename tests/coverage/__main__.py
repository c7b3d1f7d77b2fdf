"""The command line of the coverage."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from tests.coverage.measure import Model, Row, examined
from tests.coverage.models import LIBRARIES, missing, selected

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

LINE = "{:44} {:>9} {:>8} {:>9} {:>7}  {}"
HEADER = LINE.format("model", "equations", "per cent", "sum/logit", "seconds", "")
MEANING = (
    "equations: that relevance may come to; per cent: of these, with a rule under attn_lrp, cp_lrp and epsilon_plus.\n"
    "sum/logit: what arrives at the inputs by cp_lrp, over the output, where biases and all else that is added\n"
    "whatever the input are zero. It is one unless a rule loses something; then that which loses most follows,\n"
    "or the size of all relevance where that is largest, if every operation hands on all but a millionth of it."
)


@app.command()
def main(
    words: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(LIBRARIES)}, a name or a pattern.")] = None,
    list_names: Annotated[bool, typer.Option("--list", help="Print the names and do nothing else.")] = False,
) -> None:
    """How many equations of each model have a rule, and whether all relevance arrives.

    The exit code is 1 where a row is below 100.0 %, loses relevance or has an error.
    """
    try:
        models = selected(words or [])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if list_names:
        print(*(model.title for model in models), sep="\n")
        return
    absent = missing()
    for library in absent:
        print(f"{library} is not installed: its rows are left out")
    rows = table([model for model in models if model.library not in absent])
    complete = sum(row.percent == 100.0 and not row.error and not row.lost for row in rows)
    print(f"\n{MEANING}\n{complete} of {len(rows)} models: 100.0 %, strict, nothing lost")
    raise typer.Exit(int(complete < len(rows)))


def table(models: Sequence[Model]) -> list[Row]:
    """Examine models one after another, with a line for each."""
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # which torch.export does not capture
    rows = []
    print(HEADER)
    with warnings.catch_warnings(), Progress(console=Console(stderr=True), transient=True) as progress:
        warnings.simplefilter("ignore")  # the libraries' own
        task = progress.add_task("", total=len(models))
        for model in models:
            progress.update(task, description=model.title)
            rows.append(examined(model))
            progress.advance(task)
            print(line(rows[-1]), flush=True)
    return rows


def line(row: Row) -> str:
    """A row as it is printed."""
    left = " ".join(f"{operator} ({count})" for operator, count in row.fallbacks.items())
    grown = f"|R| grows to {row.grown:.0e} of the output: rounding" if row.grown else ""
    remarks = "; ".join(filter(None, (left, f"lost at {row.lost}" if row.lost else "", grown, row.error)))
    return LINE.format(
        row.title, row.equations, f"{row.percent:.1f}", f"{row.total:.6g}", f"{row.seconds:.1f}", remarks
    ).rstrip()


if __name__ == "__main__":
    app()
