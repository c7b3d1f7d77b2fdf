"""The cache of traces: what comes out of it computes the same, and whatever an entry depends on makes another one."""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import lrpfunc
from lrpfunc import cli
from lrpfunc.pictures import classifiers, traces
from lrpfunc.pictures.explainers import explainer
from tests.traced import assert_equal

X = torch.rand(1, 1, 8, 8)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LRPFUNC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "traces"


def never(*given):
    raise AssertionError("it was traced again")


def test_a_model_is_traced_once(folder, monkeypatch):
    fmodel, params = traces.traced(classifiers.load("digits"), X)
    (entry,) = folder.iterdir()
    assert entry.stat().st_size < 300_000
    monkeypatch.setattr(lrpfunc, "functionalize", never)
    again, same = traces.traced(classifiers.load("digits"), X)
    assert str(again) == str(fmodel)
    assert list(same) == list(params)
    assert_equal(same, params)
    rules = lrpfunc.composites.epsilon_plus()
    assert_equal(lrpfunc.attribute(again, same, X, rules), lrpfunc.attribute(fmodel, params, X, rules))
    assert_equal(
        *(lrpfunc.canonize(f, p).params for f, p in ((again, same), (fmodel, params))),
    )


def test_weights_are_not_in_an_entry(folder):
    model = classifiers.load("resnet18", weights="random")
    _, params = traces.traced(model, torch.rand(1, 3, 64, 64))
    (entry,) = folder.iterdir()
    assert sum(p.numel() * 4 for p in params.values()) > 40_000_000
    assert entry.stat().st_size < 1_000_000
    _, again = traces.traced(model, torch.rand(1, 3, 64, 64))
    own = dict(model.model.named_parameters())
    assert again["conv1.weight"].data_ptr() == own["conv1.weight"].data_ptr()


def entries(folder):
    return {entry.name for entry in folder.iterdir()} if folder.exists() else set()


def test_whatever_a_trace_depends_on_makes_another_entry(folder, monkeypatch):
    digits = classifiers.load("digits")
    seen = set()

    def is_new(classifier=digits, x=X):
        before = entries(folder)
        traces.traced(classifier, x)
        seen.update(entries(folder))
        return len(entries(folder)) == len(before) + 1

    assert is_new()
    assert not is_new()
    assert is_new(classifiers.load("digits", weights="random"))
    assert is_new(x=torch.rand(1, 1, 9, 9))
    one_weight = classifiers.load("digits")
    with torch.no_grad():
        next(one_weight.model.parameters()).view(-1)[0] += 1e-6
    assert is_new(one_weight)
    with_slope = classifiers.load("digits")
    for module in with_slope.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.5
    assert is_new(with_slope)
    assert is_new(replace(digits, name="other"))
    assert is_new(replace(digits, packages=("lrpfunc", "numpy")))
    monkeypatch.setattr(traces, "_version", lambda package: "99")
    assert is_new()
    assert not is_new()


def test_code_of_ones_own_is_not_kept(folder, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    mine = classifiers.load("mine:net", size=4)
    traces.traced(mine, torch.rand(1, 3, 4, 4))
    assert not entries(folder)


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_a_damaged_entry_is_made_anew(folder, content, monkeypatch):
    digits = classifiers.load("digits")
    fmodel, params = traces.traced(digits, X)
    (entry,) = folder.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2] if content is None else content)
    again, same = traces.traced(digits, X)
    assert_equal(again(same, X), fmodel(params, X))
    monkeypatch.setattr(lrpfunc, "functionalize", never)
    assert_equal(traces.traced(digits, X)[1], params)


def test_an_entry_of_another_kind_is_made_anew(folder, monkeypatch):
    digits = classifiers.load("digits")
    fmodel, params = traces.traced(digits, X)
    (entry,) = folder.iterdir()
    lrpfunc.save(entry, (fmodel, params))
    assert traces._found(entry, dict(params)) is None
    traces.traced(digits, X)
    monkeypatch.setattr(lrpfunc, "functionalize", never)
    traces.traced(digits, X)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LRPFUNC_CACHE", str(tmp_path / "file"))
    fmodel, params = traces.traced(classifiers.load("digits"), X)
    assert fmodel(params, X).shape == (1, 10)


def test_the_oldest_entries_give_way(folder, monkeypatch):
    monkeypatch.setattr(traces, "KEPT", 2)
    digits = classifiers.load("digits")
    for size in (8, 9, 10):
        traces.traced(digits, torch.rand(1, 1, size, size))
        if size == 9:
            first, second = sorted(folder.iterdir(), key=lambda entry: entry.stat().st_mtime_ns)
            traces.traced(digits, X)  # used again
    assert first in set(folder.iterdir())
    assert second not in set(folder.iterdir())
    assert len(entries(folder)) == 2


def test_without_a_folder_of_ones_own_it_is_the_systems(monkeypatch):
    monkeypatch.delenv("LRPFUNC_CACHE")
    assert traces.folder().parts[-2:] == ("lrpfunc", "traces")


def test_the_explainer_takes_what_is_kept(monkeypatch):
    digits = classifiers.load("digits")
    first = explainer(digits, X)
    monkeypatch.setattr(lrpfunc, "functionalize", never)
    second = explainer(digits, X)
    assert str(second.report) == str(first.report)
    assert_equal(second.prepared(X), first.prepared(X))


def test_the_command_line_keeps_traces_unless_told_otherwise(folder, tmp_path):
    def said(*options):
        answer = CliRunner().invoke(cli.app, ["inspect", "-m", "digits", *options])
        assert answer.exit_code == 0, answer.output
        return answer.stdout

    plain = said("--no-cache")
    assert not entries(folder)
    assert said() == plain
    assert len(entries(folder)) == 1
    assert said() == plain
