"""The command line of the benchmarks."""

import json as json_format
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from tests.benchmarks import report
from tests.benchmarks.contenders import COMPOSITES, MLPS, STEPS
from tests.benchmarks.measure import measure
from tests.benchmarks.networks import LLAMAS
from tests.benchmarks.tables import TABLES, Options, Table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

TableName = StrEnum("TableName", {name: name for name in TABLES})
CompositeName = StrEnum("CompositeName", {name: name for name in COMPOSITES})


def run(table: Table, options: Options, progress: Progress) -> dict[str, Any]:
    """Measure a table's cases, one after another."""
    rounds = table.rounds if options.rounds is None else options.rounds
    task = progress.add_task(table.title, total=len(table.cases))
    rows = []
    for case in table.cases:
        progress.update(task, description=" ".join((table.title, *case.labels)))
        measured = measure(case.contenders(), rounds, options.device, table.memory, case.units)
        rows.append({"labels": case.labels, "measured": measured})
        progress.advance(task)
    if table.slowest_first:
        rows.sort(key=lambda row: -sum(sum(cell["seconds"]) for cell in row["measured"].values()))
    kept = ("title", "header", "baseline", "baselines", "unit", "grows")
    return {name: getattr(table, name) for name in kept} | {"rows": rows}


@app.command()
def main(
    table: Annotated[list[TableName] | None, typer.Argument(help="By default main.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help=f"Of torchvision, or {', '.join((*MLPS, *STEPS, *LLAMAS))}.")
    ] = None,
    size: Annotated[list[int] | None, typer.Option(help="Of images, or how many tokens or time steps.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Samples per call.")] = None,
    composite: Annotated[list[CompositeName] | None, typer.Option()] = None,
    rounds: Annotated[int | None, typer.Option(min=0, help="Times that each contender is called and counted.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Torch's own default if not given.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compile: Annotated[bool, typer.Option("--compile", help="lrpfunc under torch.compile too: takes minutes.")] = False,
    lxt: Annotated[Path | None, typer.Option(help="The Python of LXT's environment: tests/lxt_reference.py.")] = None,
    json: Annotated[Path | None, typer.Option(help="Where to write all times.")] = None,
    compare: Annotated[Path | None, typer.Option(help="An earlier JSON, to print how ratios changed.")] = None,
) -> None:
    """What explanations cost: time and memory of all contenders, in one process and in turn.

    Give --model, --size, --batch and --composite as often as you like; without them each table has its own.
    """
    options = Options(model or (), size or (), batch or (), composite or (), rounds, torch.device(device), compile, lxt)
    earlier = json_format.loads(compare.read_text())["tables"] if compare else {}
    if threads:
        torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # those of the other libraries
    where, out, results = report.describe(options.device), report.console(), {}
    for name in table or ["main"]:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            results[name] = run(TABLES[name](options), options, progress)
        report.show(results[name], where, out)
        if json:
            json.write_text(json_format.dumps({"where": where, "tables": results}, indent=1))
    if compare:
        out.print(report.changes(earlier, results))


if __name__ == "__main__":
    app()
