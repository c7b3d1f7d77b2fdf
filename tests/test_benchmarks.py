"""The machinery of the benchmarks, on a network that takes no time. No time is promised here."""

import gc
import io
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from tests.benchmarks import attention, datasets, networks, plan, report
from tests.benchmarks.__main__ import app
from tests.benchmarks.attention import elsewhere
from tests.benchmarks.contenders import NotEntered
from tests.benchmarks.measure import measure

TINY = ("--model", "tiny_mlp", "--batch", "2", "--rounds", "1")


@pytest.fixture(autouse=True, scope="module")
def little_to_collect():
    """Memory is measured after a collection of garbage, which takes half a second with all that tests import."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


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
@pytest.mark.parametrize("table", ["overhead", "targets", "batches", "sizes", "checkpoint", "hoisting"])
def test_tables_of_explanations(table):
    assert "tiny_mlp" in run(table, *TINY[:2], "--batch", "1", "--rounds", "0", "--composite", "epsilon")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", ["tiny_vit", pytest.param("tiny_llama", marks=pytest.mark.slow)])
def test_transformers(model, tmp_path):
    if model == "tiny_llama":
        pytest.importorskip("transformers")
    path = tmp_path / "times.json"
    output = run("transformers", "--model", model, "--rounds", "0", "--json", path)
    table = json.loads(path.read_text())["tables"]["transformers"]
    assert [row["labels"][3] for row in table["rows"]] == ["attn_lrp", "cp_lrp", "attn_lrp_gamma"]
    for row in table["rows"]:
        assert [name for name, cell in row["measured"].items() if not cell["error"]] == [
            "gradient",
            "lrpfunc",
            "prepared",
        ]
    assert f"LXT's gradient, LXT ({model}): NotEntered: LXT has an environment of its own" in output


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("table", [("recurrent", "tiny_lstm"), ("lengths", "tiny_vit")], ids="/".join)
def test_what_grows_with_a_size(table):
    name, model = table
    sizes = ("16", "24") if model == "tiny_vit" else ("2", "3")
    output = run(name, "--model", model, "--size", sizes[0], "--size", sizes[1], "--batch", 1, "--rounds", 0)
    assert "Error" not in output.replace("NotEntered", "")
    assert f"{model} 1 attn_lrp" in output
    assert "grows with size to the power of: gradient " in output


def test_powers_that_figures_grow_by():
    def row(model, size, seconds):
        cells = {"a": [seconds, 9 * seconds, seconds], "b": [7.0], "none": []}
        return {"labels": [model, size], "measured": {n: {"seconds": s, "peak": []} for n, s in cells.items()}}

    rows = [row("net", "2", 4.0), row("net", "4", 16.0), row("other", "2", 1.0), row("net", "8", 64.0)]
    result = {"header": ["model", "size"], "rows": rows, "grows": "size"}
    assert list(report._growth(result, "seconds")) == ["net: grows with size to the power of: a 2.00, b 0.00"]
    assert not list(report._growth(result, "peak"))
    assert not list(report._growth({**result, "grows": ""}, "seconds"))


@pytest.mark.filterwarnings("ignore")
def test_graphs(tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "BEARABLE", 20)
    path = tmp_path / "times.json"
    sizes = ("--size", "16", "--size", "24")
    output = run("graphs", "--model", "tiny_vit", *sizes, "--batch", "1", "--rounds", "0", "--json", path)
    assert "grows with size to the power of: gradient " in output
    short, long = json.loads(path.read_text())["tables"]["graphs"]["rows"]
    names = ("gradient", "attribute", "keep=32", "closed", "pullbacks")
    assert {name: cell["error"] for name, cell in short["measured"].items()} == dict.fromkeys(names, "")
    too_long = "NotEntered: more than 20 tokens take too long, or too much memory"
    assert [cell["error"] for cell in long["measured"].values()] == ["", "", "", "", too_long]


def test_a_llama_of_eight_billion_parameters_is_for_a_gpu():
    for set_up in attention.graphs("llama_8b", 8192, 1, torch.device("cpu")).values():
        with pytest.raises(NotEntered, match=r"^llama_8b is for a GPU$|^more than 512 tokens take too long"):
            set_up()


def test_large_networks_are_made_where_they_are_measured_and_in_half_precision():
    """On a device without memory, where it is of the size of Llama 3 with 8 billion parameters."""
    pytest.importorskip("transformers")
    model = networks.build("llama_8b", 8192, torch.device("meta"))
    assert {(p.dtype, p.device.type, p.requires_grad) for p in model.parameters()} == {(torch.bfloat16, "meta", False)}
    assert sum(p.numel() for p in model.parameters()) == 8_030_261_248
    assert torch.get_default_dtype() == torch.float32
    assert networks.inputs("llama_8b", 4, 1)["inputs_embeds"].dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore")
def test_a_run_over_files_beside_the_loop_in_memory():
    measured = measure(datasets.line_up("resnet18", 32, 2, 4, torch.device("cpu")), 0, torch.device("cpu"))
    assert {name: cell["error"] for name, cell in measured.items()} == {"bare loop": "", "dataset": ""}


@pytest.mark.filterwarnings("ignore")
def test_what_measures_itself_elsewhere(tmp_path):
    """Here an environment without LXT, where the gradient can be measured nevertheless."""
    call = elsewhere(Path(sys.executable), "gradient", "tiny_vit", "16", "1", "cpu", "1")
    measured = measure({"gradient": lambda: call}, 2, torch.device("cpu"), memory=True)["gradient"]
    assert measured["error"] == ""
    assert min(measured["seconds"]) > 0
    assert len(measured["peak"]) == sys.platform.startswith("linux")


def test_what_cannot_be_measured_elsewhere_says_why(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho 'ModuleNotFoundError: No module named lxt' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(ChildProcessError, match=r"^ModuleNotFoundError: No module named lxt$"):
        elsewhere(python, "attn_lrp", "tiny_vit", "16", "1", "cpu", "1")()


@pytest.mark.slow
def test_an_environment_without_lxt_says_so():
    with pytest.raises(ChildProcessError, match=r"ModuleNotFoundError: .*lxt"):
        elsewhere(Path(sys.executable), "attn_lrp", "tiny_vit", "16", "1", "cpu", "1")()


def test_ratios_to_a_baseline_of_ones_own():
    cells = {"gradient": 2.0, "lrpfunc": 3.0, "their gradient": 4.0, "theirs": 7.0}
    measured = {name: {"seconds": [value], "peak": [], "error": ""} for name, value in cells.items()}
    result = {"title": "title", "header": ["model"], "baseline": "gradient", "unit": ""}
    result |= {"baselines": {"their gradient": "", "theirs": "their gradient"}}
    result |= {"rows": [{"labels": ["net"], "measured": measured}]}
    out = Console(file=io.StringIO(), width=120)
    report.show(result, "here", out)
    lines = out.file.getvalue().splitlines()
    assert lines[1] == (
        "title: time, ratio to 'gradient' (of 'theirs' to 'their gradient') of the same round: median (min-max)"
    )
    assert [cell.strip() for cell in lines[-2].split("│")[1:-1]] == ["net", "2 s", "1.50", "4 s", "1.75"]
    out.print(report.changes({"t": result}, {"t": result}))
    assert "│ theirs         │ seconds  │ 1.75   │ 1.75  │" in out.file.getvalue()


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


# -- plans ------------------------------------------------------------------------------------------------------------

SURE = plan.Costs(sample=0.5, block=2.0, start=10.0, answer=0.25, lives=math.inf, row=1.0, store=math.inf, hour=36.0)


def test_a_simulated_run_takes_what_it_must():
    """Numbers by hand: ten blocks of 4 samples, the last of 1."""
    alone = plan.simulate(37, 1, 4, SURE)
    assert alone.seconds == 10 + 10 * 2.25 + 37 * 0.5
    assert (alone.rate, alone.deaths) == (37 / alone.seconds, 0)
    assert alone.price == pytest.approx(36 * alone.seconds / 3600)
    two = plan.simulate(16, 2, 4, SURE)  # the second waits for the driver: 10.5 + 4, then 14.5 behind 14.5
    assert two.seconds == 10 + 0.25 + 0.25 + 4 + 0.25 + 4


def test_a_simulated_store_or_driver_is_a_limit():
    store = plan.simulate(1000, 10, 10, SURE._replace(store=4.0, answer=0.0))
    assert store.seconds == 10 + 10 * (2 + 10 * 10 / 4)
    assert store.limit == "store 89%"
    driver = plan.simulate(1000, 1000, 1, SURE)
    assert driver.seconds == 10 + 1000 * 0.25 + 2.5
    assert driver.limit == "driver 95%"


def test_simulated_processes_that_die_cost_their_replacement_and_no_sample():
    mortal = SURE._replace(lives=0.05, replacing=20.0)
    found = [plan.simulate(1000, 5, 10, mortal, seed) for seed in range(5)]
    sure = plan.simulate(1000, 5, 10, SURE)
    for one in found:
        assert one.deaths > 0
        assert one.seconds > sure.seconds
    assert found[0] == plan.simulate(1000, 5, 10, mortal, 0)


def test_a_plan_is_printed(capsys):
    plan.main(10_000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("10,000 samples; Costs(sample=")
    assert len(lines) == 2 + len(plan.WORKERS) * len(plan.SIZES)
    assert sum("*" in line for line in lines) == len(plan.WORKERS)
