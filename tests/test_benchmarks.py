"""The machinery of the benchmarks, on a network that takes no time. No time is promised here."""

import io
import json

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from tests.benchmarks import report
from tests.benchmarks.__main__ import app
from tests.benchmarks.measure import measure

TINY = ("--model", "tiny_mlp", "--batch", "2", "--rounds", "1")


def run(*arguments) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.filterwarnings("ignore")  # the other libraries'
def test_ratios_are_printed_and_saved_and_compared(tmp_path):
    path = tmp_path / "times.json"
    output = run(*TINY, "--composite", "epsilon", "--composite", "epsilon_plus", "--json", path)
    rows = json.loads(path.read_text())["tables"]["main"]["rows"]
    assert [row["labels"][3] for row in rows] == ["epsilon", "epsilon_plus"]
    for name in ("lrpfunc", "zennit", "captum"):
        (ratio,) = report.ratios(rows[0]["measured"], name, "gradient", "seconds")
        assert ratio > 0
        assert f"{ratio:.2f}" in output
    assert "captum (tiny_mlp): NotEntered: epsilon only" in output
    compared = run(*TINY, "--composite", "epsilon", "--compare", path)
    assert "main tiny_mlp 224 2 epsilon " in compared
    assert "main tiny_mlp 224 2 epsilon_plus" not in compared


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("table", ["overhead", "targets", "batches", "checkpoint", "hoisting"])
def test_tables_of_explanations(table):
    assert "tiny_mlp" in run(table, *TINY[:2], "--batch", "1", "--rounds", "0", "--composite", "epsilon")


def test_who_fails_gets_a_dash_and_a_reason():
    def fail():
        raise ValueError("no such\n  layer")

    calls = []
    contenders = {"gradient": lambda: lambda: 2.0, "set-up": fail, "call": lambda: fail, "good": lambda: good}

    def good():
        calls.append(len(calls))
        return 3.0

    measured = measure(contenders, 2, torch.device("cpu"), units=2)
    assert len(calls) == 3  # the first to warm up
    assert measured["good"] == {"seconds": [1.5, 1.5], "peak": [], "error": ""}
    result = {"title": "title", "header": ["model"], "baseline": "gradient", "unit": ""}
    out = Console(file=io.StringIO(), width=100)
    report.show({**result, "rows": [{"labels": ["net"], "measured": measured}]}, "here", out)
    text = out.file.getvalue()
    assert [cell.strip() for cell in text.splitlines()[-3].split("│")[1:-1]] == [
        "net",
        "1 s",
        "-",
        "-",
        "1.50 (1.50-1.50)",
    ]
    assert "- set-up, call (net): ValueError: no such layer" in text


def test_peak_memory_is_what_a_call_adds():
    kept = torch.ones(2**23)
    contenders = {"fill": lambda: lambda: torch.ones(2**23)}
    for peak in measure(contenders, 1, torch.device("cpu"), memory=True)["fill"]["peak"]:  # none but on Linux
        assert 0.9 * kept.nbytes < peak < 1.5 * kept.nbytes
