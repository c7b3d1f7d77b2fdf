"""The command line: what each command does, prints and exits with, and that what fails is one line."""

import contextlib
import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

import lrpfunc
from lrpfunc import __main__, cli, composites, digits
from lrpfunc.pictures import classifiers, drawing, panels, runs
from lrpfunc.pictures.outputs import CLASSES, Meaning
from lrpfunc.pictures.progress import ProgressBar

COMMAND = [sys.executable, "-c", "from lrpfunc.__main__ import main; main()"]
ESCAPE = "\x1b"


@pytest.fixture
def broken(tmp_path):
    """A folder of three images, one of which is none."""
    path = tmp_path / "broken"
    path.mkdir()
    for name in ("a", "c"):
        Image.new("L", (8, 8), 200).save(path / f"{name}.png")
    path.joinpath("b.png").write_bytes(b"nothing")
    return path


def lrp(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def fine(*arguments):
    answer = lrp(*arguments)
    assert answer.exit_code == 0, answer.output
    return answer


def complaint(answer, code=cli.FAILED):
    """The one line of an error."""
    assert answer.exit_code == code, answer.output
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ")
    assert answer.stdout == ""
    return line


# -- image ------------------------------------------------------------------------------------------------------------


def test_image_writes_pictures_and_prints_a_line_for_each_class(folder, tmp_path):
    files = [folder / "3" / "003.png", folder / "5" / "015.png"]
    answer = fine("image", *files, "-m", "digits", "-o", tmp_path / "out", "-t", "top2")
    head, *lines, last = answer.stdout.splitlines()
    assert head.split() == ["image", "class", "probability", "logit", "relevance", "sum"]
    assert [Path(line.split()[0]).name for line in lines] == ["003.png"] * 2 + ["015.png"] * 2
    assert [line.split()[1] for line in lines][::2] == ["3", "5"]
    assert last == f"12 pictures in {tmp_path / 'out'}"
    assert len(list((tmp_path / "out").iterdir())) == 12
    assert answer.stderr == ""


def test_image_hands_its_options_on(folder, tmp_path, monkeypatch):
    seen = {}

    def write(files, out, classifier, composites, targets, canonize, device, style, overwrite, relevance, progress):
        seen.update(locals())
        return panels.Written([], [], [], Meaning(CLASSES), ())

    monkeypatch.setattr(panels, "write", write)
    tmp_path.joinpath("names.txt").write_text("\n".join("abcdefghij"))
    options = (
        "--composite epsilon -c epsilon_plus --no-canonize --size 9 --mean 0.5 --std 0.25 --device cpu --colors bwr "
        "--quantile 0.9 --scale one --save-relevance npy --overwrite --unit years --as-is"
    )
    options = [*options.split(), "--weights", "random", "--categories", tmp_path / "names.txt", "-t", "a", "-t", "top3"]
    fine("image", folder / "0" / "000.png", "--model", "digits", "--out", tmp_path / "o", *options)
    assert seen["files"] == [folder / "0" / "000.png"]
    assert (seen["out"], seen["targets"]) == (tmp_path / "o", ["a", "top3"])
    assert seen["composites"] == ["epsilon", "epsilon_plus"]
    assert (seen["canonize"], seen["device"], seen["style"]) == (False, "cpu", drawing.Style("bwr", 0.9, "one"))
    assert (seen["overwrite"], seen["relevance"]) == (True, "npy")
    assert seen["classifier"].meaning == Meaning("values", "years", as_is=True)
    classifier = seen["classifier"]
    assert (classifier.name, classifier.weights, "".join(classifier.categories)) == ("digits", "random", "abcdefghij")
    assert classifier.preprocess == classifiers.Standard(9, (0.5,), (0.25,), 9)


def test_image_leaves_out_what_it_cannot_read(folder, broken, tmp_path):
    good = folder / "3" / "003.png"
    answer = lrp("image", broken / "b.png", good, tmp_path / "absent.png", "-m", "digits", "-o", tmp_path / "out")
    assert answer.exit_code == cli.INCOMPLETE
    assert answer.stderr.splitlines() == [
        f"error: {broken / 'b.png'} is no image that Pillow can read",
        f"error: {tmp_path / 'absent.png'} is missing",
    ]
    assert answer.stdout.splitlines()[-1] == f"3 pictures in {tmp_path / 'out'}"


# -- what outputs mean ------------------------------------------------------------------------------------------------

NETS = """
import torch
from torch import nn
from lrpfunc.pictures.classifiers import Classifier, Standard

def net(outputs, *end):
    layer = nn.Linear(64, outputs)
    nn.init.zeros_(layer.weight)
    layer.bias.data = torch.tensor([-1.92, 0.5, 1.0])[:outputs]
    own = Standard(8, (0.0,), (1.0,))
    return Classifier("", nn.Sequential(nn.Flatten(), layer, *end), own, own.mean, own.std)

one, sure, three, shares = net(1), net(1, nn.Sigmoid()), net(3), net(3, nn.Softmax(1))
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    tmp_path.joinpath("nets_cli.py").write_text(NETS)
    yield tmp_path
    sys.modules.pop("nets_cli", None)


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ("nets_cli:one", ["1 12.79% -1.92"]),
        ("nets_cli:one -t top", ["0 not 1 87.21% 1.92"]),
        ("nets_cli:one -t not -t 1", ["0 not 1 87.21% 1.92", "1 12.79% -1.92"]),
        ("nets_cli:sure", ["1 12.79% -1.92"]),
        ("nets_cli:sure --as-is", ["1 12.79%"]),
        ("nets_cli:one --regression", ["value 0 -1.92"]),
        ("nets_cli:one --unit mm", ["value 0 -1.92"]),
        ("nets_cli:three -t 1", ["1 36.53% 0.5"]),
        ("nets_cli:three --multi-label -t 1", ["1 62.25% 0.5"]),
        ("nets_cli:shares -t 1", ["1 36.53% 0.5"]),
        ("nets_cli:shares -t 1 --as-is", ["1 36.53%"]),
    ],
)
def test_the_table_says_what_the_output_means(options, lines, nets, folder):
    answer = fine("image", folder / "3" / "003.png", "-m", *options.split())
    head, *rows = answer.stdout.splitlines()[:-1]
    assert [row.split()[1:-1] for row in rows] == [line.split() for line in lines]  # without file and sum
    word = "value" if "regression" in options else "value in mm" if "unit" in options else "logit"
    assert (word in head) == ("as-is" not in options)
    assert ("probability" in head) == (word == "logit")


def test_notes_are_no_results(nets, folder):
    answer = fine("image", folder / "3" / "003.png", "-m", "nets_cli:shares")
    assert answer.stderr == (
        "note: nets_cli:shares ends in softmax: the logit in front of it is explained; --as-is explains what comes "
        "out.\n"
    )
    assert "note: " not in answer.stdout


def test_labels_are_no_values(nets, folder):
    line = complaint(lrp("image", folder / "3" / "003.png", "-m", "nets_cli:one", "--multi-label", "--unit", "m"))
    assert line == "error: outputs are either labels or values: give --multi-label, or --regression and --unit."


def test_folders_0_and_1_are_classes_of_one_logit(nets):
    for name in ("0/a", "0/b", "1/c"):
        nets.joinpath("set", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 200).save(nets / "set" / f"{name}.png")
    answer = fine("dataset", "set", "-m", "nets_cli:one", "-o", "x.h5", "--workers", 0, "-t", "label")
    assert answer.stdout == "x.h5: 3 explanations\n"
    with h5py.File("x.h5") as file:
        assert file["label"][:].tolist() == file["target"][:].tolist() == [0, 0, 1]
        np.testing.assert_allclose(file["logit"][:], [1.92, 1.92, -1.92], rtol=1e-6)
        assert json.loads(file.attrs["lrpfunc"])["output"]["kind"] == "binary"
        assert json.loads(file.attrs["lrpfunc"])["targets"] == ["label"]


# -- what is there already --------------------------------------------------------------------------------------------


def test_pictures_that_exist_stay_without_overwrite(folder, tmp_path):
    options = ("image", folder / "3" / "003.png", "-m", "digits", "-o", tmp_path / "out")
    fine(*options)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    line = complaint(lrp(*options), cli.BAD_PATH)
    assert line.endswith("heatmap.png exists: choose another --out, or give --overwrite.")
    fine(*options, "-c", "epsilon")  # side by side
    assert len(list((tmp_path / "out").iterdir())) == 6
    assert {path: path.read_bytes() for path in before} == before
    fine(*options, "--overwrite")
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_an_image_whose_picture_exists_is_left_out_and_the_others_are_told(folder, tmp_path):
    first, second = folder / "3" / "003.png", folder / "4" / "004.png"
    options = ("-m", "digits", "-o", tmp_path / "out", "-c", "epsilon", "-c", "epsilon_plus")
    fine("image", first, *options[:-2])
    next((tmp_path / "out").glob("*heatmap.png")).unlink()  # one of three is enough
    answer = lrp("image", first, second, *options)
    assert answer.exit_code == cli.INCOMPLETE
    assert "004.png" in answer.stdout
    assert "003.png" not in answer.stdout
    assert len(list((tmp_path / "out").glob("003*"))) == 2
    assert "003.png is left out, as " in answer.stderr
    assert answer.stderr.endswith("overlay.png exists: choose another --out, or give --overwrite.\n")


def test_methods_stand_beside_composites(folder, tmp_path):
    path, out = folder / "3" / "003.png", tmp_path / "out"
    answer = fine("image", path, "-m", "digits", "-c", "epsilon", "--method", "occlusion", "-o", out)
    assert [line.split()[1] for line in answer.stdout.splitlines()[1:3]] == ["epsilon", "occlusion"]
    assert (out / "comparison-1.digits.epsilon+occlusion.png").is_file()
    fine("dataset", folder, "-m", "digits", "--method", "gradient", "-o", tmp_path / "x.h5", "--workers", 0)
    with h5py.File(tmp_path / "x.h5") as file:
        assert json.loads(file.attrs["lrpfunc"])["composite"] == "gradient"
    line = complaint(lrp("image", path, "-m", "digits", "--method", "oclusion", "-o", out))
    assert (
        "and methods beside LRP: gradient, gradient_times_input, smooth_grad, integrated_gradients, occlusion." in line
    )


def test_a_run_has_one_explanation(folder, tmp_path):
    options = ("-m", "digits", "-o", tmp_path / "x.h5", "-c", "epsilon", "--method", "gradient")
    line = complaint(lrp("dataset", folder, *options))
    assert line == "error: a run has one explanation: give --composite or --method, and a second run for the other."


def test_several_composites_make_a_sheet(folder, tmp_path):
    files = [folder / str(i) / f"00{i}.png" for i in range(5)]
    options = ("-m", "digits", "-c", "epsilon", "-c", "epsilon_plus", "-t", "top2", "-o", tmp_path / "out")
    answer = fine("image", *files, *options, "--save-relevance", "npz", "--scale", "one")
    assert answer.stdout.splitlines()[0].split()[:3] == ["image", "composite", "class"]
    assert answer.stdout.splitlines()[-1] == f"62 pictures in {tmp_path / 'out'}, and the relevance of 20 maps"
    sheets = sorted(path.name for path in (tmp_path / "out").glob("comparison*"))
    assert sheets == [f"comparison-{i}.digits.epsilon+epsilon_plus.png" for i in (1, 2)]


# -- inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_as_json_is_the_report_and_the_listing():
    found = json.loads(fine("inspect", "-m", "digits", "-c", "epsilon", "--json").stdout)
    shipped = digits.load()
    fmodel, _, _, report = lrpfunc.canonize(*lrpfunc.functionalize(shipped.model, shipped.images[:1]))
    fates = [{"name": name, "became": fate.became, "where": fate.where} for name, fate in report.fates.items()]
    columns = ("fallback", "name", "kind", "operation", "input", "output", "rule")
    rows = lrpfunc.explain(fmodel, composites.epsilon()).rows
    assert found.pop("equations") == [dict(zip(columns, (bool(row[0]), *row[1:]), strict=True)) for row in rows]
    assert found.pop("batch_norms") == fates
    output = {"kind": "classes", "unit": "", "are_probabilities": False}
    about = {"model": "digits", "weights": "DEFAULT", "classes": 10, "output": output}
    assert found == about | {"composite": "epsilon", "canonized": True}
    assert len(rows) > 10
    assert len(fates) == 4


def test_inspect_lists_the_same_in_words():
    lines = fine("inspect", "-m", "digits", "-c", "epsilon").stdout.splitlines()
    shipped = digits.load()
    fmodel, _, _, report = lrpfunc.canonize(*lrpfunc.functionalize(shipped.model, shipped.images[:1]))
    listed = [" ".join(line.split()) for line in lines]
    for name, fate in report.fates.items():
        assert " ".join([name, *fate]) in listed
    for row in lrpfunc.explain(fmodel, composites.epsilon()).rows:
        assert " ".join(" ".join(row).split()) in listed
    assert listed[0] == "digits, 10 classes, composite epsilon"


def test_inspect_plans_memory():
    found = json.loads(fine("inspect", "-m", "digits", "-c", "epsilon", "--plan", "--json").stdout)["memory"]
    assert [(row["images"], row["segments"]) for row in found] == [(n, m) for n in (1, 16) for m in (1, 4, 16)]
    shipped = digits.load()
    fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(shipped.model, shipped.images[:1]))
    parameters, working = lrpfunc.footprint(fmodel, params, shipped.images[:1], composites.epsilon(), target=0)
    assert found[0]["parameters"] == parameters
    assert working / 2 < found[0]["working"] < 2 * working
    assert found[3]["working"] > 10 * found[0]["working"]
    lines = [line.split() for line in fine("inspect", "-m", "digits", "-c", "epsilon", "--plan").stdout.splitlines()]
    row = found[3]
    numbers = [row["parameters"], row["working"], row["parameters"] + row["working"]]
    assert ["16", "1", *(f"{number / 1e6:.1f}" for number in numbers)] in lines


def test_inspect_without_canonization():
    assert "not canonized" in fine("inspect", "-m", "digits", "--no-canonize").stdout
    found = json.loads(fine("inspect", "-m", "digits", "--no-canonize", "--json").stdout)
    assert (found["canonized"], found["batch_norms"]) == (False, [])
    assert "batch_norm" in {equation["kind"] for equation in found["equations"]}


MODULE = """
import torch
from torch import nn
from lrpfunc.errors import ModelError
from lrpfunc.pictures.classifiers import Classifier

class Products(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :4].cumprod(1)

def refuses(image):
    raise ModelError("not with me")

gap = Classifier("", Products(), lambda image: torch.zeros(1, 2, 2))
bad = Classifier("", Products(), lambda image: image.nothing)
refusing = Classifier("", Products(), refuses)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    tmp_path.joinpath("mine_cli.py").write_text(MODULE)
    yield
    sys.modules.pop("mine_cli", None)


def test_inspect_marks_equations_without_a_rule(mine):
    answer = fine("inspect", "-m", "mine_cli:gap")
    assert "no batch norms" in answer.stdout
    assert re.search(r"^! +cumprod ", answer.stdout, re.MULTILINE)
    assert "without a rule: the gradient moves what arrives there." in answer.stdout
    equations = json.loads(fine("inspect", "-m", "mine_cli:gap", "--json").stdout)["equations"]
    assert [e["name"] for e in equations if e["fallback"]] == ["cumprod"]


def test_inspect_tells_of_preprocessing_that_fails(mine):
    line = complaint(lrp("inspect", "-m", "mine_cli:bad"))
    assert "the preprocessing of mine_cli:bad failed: AttributeError: " in line
    assert complaint(lrp("inspect", "-m", "mine_cli:refusing")) == "error: not with me"


# -- dataset, report, digits ------------------------------------------------------------------------------------------


def test_dataset_writes_shards_and_goes_on(folder, tmp_path):
    whole, one, two = (tmp_path / f"{name}.h5" for name in ("whole", "one", "two"))
    options = ("-m", "digits", "--workers", 0, "-t", "label", "--batch", 8)
    assert fine("dataset", folder, "-o", whole, *options).stdout == f"{whole}: 40 explanations\n"
    fine("dataset", folder, "-o", one, *options, "--shard", "1/2")
    fine("dataset", folder, "-o", two, *options, "--shard", "2/2")
    with h5py.File(whole) as w, h5py.File(one) as a, h5py.File(two) as b:
        for name in ("file", "label", "target", "index"):
            np.testing.assert_array_equal(w[name][0::2], a[name])
            np.testing.assert_array_equal(w[name][1::2], b[name])
        np.testing.assert_allclose(w["attribution"][0::2], a["attribution"], rtol=1e-4, atol=1e-6)
        assert [name.decode().split("/")[0] for name in w["file"]] == [str(label) for label in w["label"]]
    again = fine("dataset", folder, "-o", whole, *options, "--resume")
    assert again.stdout == f"nothing left to do: {whole} was finished.\n{whole}: 40 explanations\n"
    assert "exists: choose another --out, or give --overwrite." in complaint(
        lrp("dataset", folder, "-o", whole, *options), cli.BAD_PATH
    )
    fine("dataset", folder, "-o", whole, *options, "--overwrite")


def test_dataset_stopped_by_hand_says_how_to_go_on(folder, tmp_path, monkeypatch):
    options = ("-m", "digits", "-o", tmp_path / "x.h5", "--workers", 0, "--batch", 8)

    def stop(self, done, total, failures=0):
        if done >= 16:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "__call__", stop)
        answer = lrp("dataset", folder, *options)
    assert answer.exit_code == cli.INTERRUPTED
    assert answer.stderr == "\nstopped. The same command with --resume goes on from here.\n"
    assert "is of an unfinished run. Give --resume" in complaint(lrp("dataset", folder, *options), cli.BAD_PATH)
    assert fine("dataset", folder, *options, "--resume").stdout == f"{tmp_path / 'x.h5'}: 40 explanations\n"


def test_dataset_lists_what_it_could_not_read(broken, tmp_path):
    answer = lrp("dataset", broken, "-m", "digits", "-o", tmp_path / "x.h5", "--workers", 0)
    assert answer.exit_code == cli.INCOMPLETE
    first, second = answer.stdout.splitlines()
    assert first == f"{tmp_path / 'x.h5'}: 2 explanations"
    assert second.startswith("the true class of 3 samples is not known: no class of the model is named like")
    assert answer.stderr.splitlines() == [
        "error: 1 sample could not be explained:",
        "error: b.png is no image that Pillow can read",
    ]
    for number in range(12):
        broken.joinpath(f"b{number:02}.png").touch()
    answer = lrp("dataset", broken, "-m", "digits", "-o", tmp_path / "x.h5", "--workers", 0, "--overwrite")
    assert answer.exit_code == cli.INCOMPLETE
    lines = answer.stderr.splitlines()
    assert len(lines) == 12
    assert lines[0] == "error: 13 samples could not be explained:"
    assert lines[2] == "error: b00.png is empty"
    assert lines[-1] == f"error: and 3 more: all are in 'errors' in {tmp_path / 'x.h5'}"


def test_progress_in_a_log_is_a_line_now_and_then(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ProgressBar, "LOG_SECONDS", 0.0)
    answer = fine("dataset", folder, "-m", "digits", "-o", tmp_path / "x.h5", "--workers", 0, "--batch", 15)
    lines = answer.stderr.splitlines()
    assert [re.sub(r" [\d.]+/s$", "", line) for line in lines] == [f"explaining {n} of 40" for n in (15, 30, 40)]
    assert re.search(r" \d+\.\d/s$", lines[-1])
    monkeypatch.setattr(ProgressBar, "LOG_SECONDS", 3600.0)
    answer = fine("dataset", folder, "-m", "digits", "-o", tmp_path / "y.h5", "--workers", 0)
    assert answer.stderr == ""


def test_no_space_left_is_one_line_with_a_way_out(folder, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "run", full)
    line = complaint(lrp("dataset", folder, "-m", "digits", "-o", tmp_path / "x.h5"), cli.BAD_PATH)
    assert line == (
        "error: No space left on device. There is no space left: make some, or write elsewhere with --out. "
        "The same command with --resume then goes on."
    )


@pytest.mark.parametrize("number", list(cli.REMEDIES))
def test_other_troubles_of_disks_are_one_line(number, folder, tmp_path, monkeypatch):
    def write(*arguments, **options):
        raise OSError(number, os.strerror(number), str(tmp_path / "x.png"))

    monkeypatch.setattr(panels, "write", write)
    line = complaint(lrp("image", folder / "3" / "003.png", "-m", "digits"), cli.BAD_PATH)
    assert line == f"error: {tmp_path / 'x.png'}: {os.strerror(number)}. {cli.REMEDIES[number]}"
    assert "--resume" not in line


def test_troubles_without_a_number_are_one_line_too(folder, monkeypatch):
    def write(*arguments, **options):
        raise OSError("disk\non fire")

    monkeypatch.setattr(panels, "write", write)
    assert complaint(lrp("image", folder / "3" / "003.png", "-m", "digits"), cli.BAD_PATH) == "error: disk on fire."


def test_errors_that_nobody_expects_keep_their_traceback(folder, monkeypatch):
    def write(*arguments, **options):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(panels, "write", write)
    answer = lrp("image", folder / "3" / "003.png", "-m", "digits")
    assert isinstance(answer.exception, ZeroDivisionError)
    assert "error:" not in answer.output


def test_report_makes_a_page(folder, tmp_path):
    fine("dataset", folder, "-m", "digits", "-o", tmp_path / "x.h5", "--workers", 0)
    answer = fine("report", tmp_path / "x.h5", "-o", tmp_path / "x.html", "--title", "My <digits>")
    assert re.fullmatch(rf"{re.escape(str(tmp_path / 'x.html'))}: 40 samples, \d+\.\d MB\n", answer.stdout)
    assert "My &lt;digits&gt;" in (tmp_path / "x.html").read_text()
    complaint(lrp("report", tmp_path / "absent.h5", "-o", tmp_path / "y.html"), cli.BAD_PATH)


def test_merge_joins_shards_and_names_a_missing_one(folder, tmp_path):
    shards = [tmp_path / f"{number}.h5" for number in (1, 2, 3)]
    for number, shard in enumerate(shards, start=1):
        fine("dataset", folder, "-m", "digits", "-o", shard, "--shard", f"{number}/3", "--workers", 0)
    answer = fine("merge", *shards, "-o", tmp_path / "all.h5")
    assert (answer.stdout, answer.stderr) == (f"{tmp_path / 'all.h5'}: 40 explanations\n", "")
    line = complaint(lrp("merge", *shards[1:], "-o", tmp_path / "some.h5"), cli.BAD_PATH)
    assert line == (
        "error: shard 1/3 is missing: have 2 and 3. Make what is missing, or give --incomplete to merge what there is."
    )
    answer = fine("merge", *shards[1:], "-o", tmp_path / "some.h5", "--incomplete")
    assert answer.stderr == "note: the file has a part of the run: shard 1/3 is missing: have 2 and 3.\n"
    answer = fine("report", *shards[1:], "-o", tmp_path / "some.html")
    assert answer.stderr == "note: the page shows a part of the run: shard 1/3 is missing: have 2 and 3.\n"


def test_merge_tells_of_samples_that_failed(broken, tmp_path):
    Image.new("L", (8, 8)).save(broken / "d.png")
    for number in (1, 2):
        out = tmp_path / f"{number}.h5"
        lrp("dataset", broken, "-m", "digits", "-o", out, "--shard", f"{number}/2", "--workers", 0)
    answer = fine("merge", tmp_path / "1.h5", tmp_path / "2.h5", "-o", tmp_path / "all.h5")
    assert answer.stderr == f"note: 1 sample could not be explained: see 'errors' in {tmp_path / 'all.h5'}\n"


def test_limits_of_the_system_are_one_line(folder, tmp_path):
    """No file may be larger than 8 KB (ulimit -f)."""
    for number in (1, 2):
        fine("dataset", folder, "-m", "digits", "-o", tmp_path / f"{number}.h5", "--shard", f"{number}/2", "-t", "top2")
    there = sorted(tmp_path.iterdir())
    commands = {
        "x.h5.part.new": ("dataset", folder, "-m", "digits", "--workers", 0, "-o", tmp_path / "x.h5"),
        "y.h5.part.copy": ("merge", tmp_path / "1.h5", tmp_path / "2.h5", "-o", tmp_path / "y.h5"),
        "z.html": ("report", tmp_path / "1.h5", "-o", tmp_path / "z.html"),
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, command in commands.items():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        try:
            answer = lrp(*command)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        line = "The file would be larger than files may be here: see ulimit -f."
        assert answer.exit_code == cli.BAD_PATH, answer.output
        assert answer.stderr.splitlines()[-1] == f"error: {tmp_path / name}: File too large. {line}"
        assert sorted(tmp_path.iterdir()) == there


def test_report_sets_two_runs_side_by_side(folder, tmp_path):
    for name, composite, shard in (("a", "epsilon_plus", "1/1"), ("b", "epsilon", "1/2"), ("c", "epsilon", "2/2")):
        out = tmp_path / f"{name}.h5"
        fine("dataset", folder, "-m", "digits", "-c", composite, "--shard", shard, "-o", out, "--workers", 0)
    beside = [argument for name in "bc" for argument in ("--with", tmp_path / f"{name}.h5")]
    answer = fine("report", tmp_path / "a.h5", *beside, "-o", tmp_path / "x.html")
    assert ": 40 samples," in answer.stdout
    text = (tmp_path / "x.html").read_text()
    assert "Which pixels decide? epsilon_plus beside epsilon on digits" in text
    assert "They differ in composite." in " ".join(text.split())
    complaint(lrp("report", tmp_path / "a.h5", "--with", tmp_path / "absent.h5"), cli.BAD_PATH)


def test_digits_are_written_once(folder, tmp_path):
    answer = fine("digits", tmp_path / "new" / "digits")
    assert answer.stdout == f"{tmp_path / 'new' / 'digits'}: 40 images in 10 folders\n"
    for name in ("0/000.png", "9/039.png"):
        assert (tmp_path / "new" / "digits" / name).read_bytes() == (folder / name).read_bytes()
    assert "exists: choose a folder that does not" in complaint(lrp("digits", tmp_path / "new"), cli.BAD_PATH)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-m resnet19", "no model is called 'resnet19'. Did you mean 'resnet1"),
        ("-m digits -c epsilom", "no composite is called 'epsilom'. Did you mean 'epsilon'"),
        ("-m digits -t eleven", "no class is called 'eleven'."),
        ("-m digits -t 10", "there is no class 10: the model has 10, 0 to 9."),
        ("-m digits --mean a,b", "--mean takes numbers with commas between, such as 0.5,0.5,0.5, but got 'a,b'."),
        ("-m digits --std 1;2", "--std takes numbers with commas between, such as 0.5,0.5,0.5, but got '1;2'."),
        ("-m digits --weights absent.pt", "there is no file 'absent.pt' to take weights from."),
        ("-m digits --device abacus", "the device 'abacus' cannot be used here"),
        ("-m digits --colors colourful", "no colour map is called 'colourful'."),
        ("-m digits --size 16", "digits cannot be traced with an input of 1x16x16: the model cannot be exported"),
        ("-m absent_cli:model", "there is no module 'absent_cli'"),
    ],
)
def test_expected_errors_are_one_line(arguments, message, folder, tmp_path):
    code = cli.BAD_PATH if "absent.pt" in arguments else cli.FAILED
    line = complaint(lrp("image", folder / "3" / "003.png", "-o", tmp_path / "out", *arguments.split()), code)
    assert message in line
    assert not (tmp_path / "out").exists()


def test_paths_in_the_way_are_one_line(folder, tmp_path):
    tmp_path.joinpath("file").touch()
    image = folder / "3" / "003.png"
    for out in ("file", "file/deeper"):
        line = complaint(lrp("image", image, "-m", "digits", "-o", tmp_path / out), cli.BAD_PATH)
        assert str(tmp_path / out) in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["image", "x.png"],  # no model
        ["image", "-m", "digits"],  # no files
        ["image", "x.png", "-m", "digits", "--size", "0"],
        ["inspect"],
        ["dataset", "x", "-m", "digits"],  # no --out
        ["dataset", "x", "-m", "digits", "-o", "x.h5", "--batch", "0"],
        ["report"],
        ["explode"],
        [],
    ],
)
def test_wrong_usage_is_told_from_failure(arguments):
    answer = lrp(*arguments)
    assert answer.exit_code == cli.BAD_PATH
    assert "Usage" in answer.output


def test_debug_shows_where_an_error_came_from(folder, monkeypatch, capsys):
    arguments = ("image", folder / "3" / "003.png", "-m", "absent")
    assert isinstance(lrp("--debug", *arguments).exception, lrpfunc.errors.ModelError)
    assert isinstance(lrp(*arguments, "--debug").exception, lrpfunc.errors.ModelError)
    monkeypatch.setattr(sys, "argv", ["lrpfunc", "--debug", *map(str, arguments)])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which typer replaces
    with pytest.raises(lrpfunc.errors.ModelError) as raised:
        __main__.main()
    sys.excepthook(raised.type, raised.value, raised.tb)
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert "lrpfunc.errors.ModelError: no model is called 'absent'." in shown


def test_a_device_without_memory_left_is_one_line(folder, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(runs, "run", full)
    line = complaint(lrp("dataset", folder, "-m", "digits", "-o", tmp_path / "x.h5"))
    assert line == ("error: the memory is used up (CUDA out of memory). Fewer samples at once need less: --batch.")
    debug = lrp("--debug", "dataset", folder, "-m", "digits", "-o", tmp_path / "x.h5")
    assert isinstance(debug.exception, torch.OutOfMemoryError)


# -- help -------------------------------------------------------------------------------------------------------------

COMMANDS = typer.main.get_command(cli.app).commands


def test_there_are_these_commands():
    assert list(COMMANDS) == ["image", "inspect", "text", "dataset", "merge", "report", "digits", "demo", "check"]
    text = fine("--help").stdout
    assert all(name in text for name in [*COMMANDS, "--version", "--debug"])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_of_every_option(name):
    answer = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "160"})
    assert answer.exit_code == 0
    for parameter in COMMANDS[name].params:
        assert parameter.name == "help" or parameter.help, parameter.name
        for option in [*parameter.opts, *parameter.secondary_opts] if parameter.param_type_name == "option" else []:
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", answer.stdout), option


# -- terminals and pipes ----------------------------------------------------------------------------------------------


def in_a_terminal(monkeypatch, *arguments, columns=100):
    """What a command writes to a terminal."""
    import pty

    ours, theirs = pty.openpty()
    written = []

    def read():
        with contextlib.suppress(OSError):  # Linux's way to say that the other side is closed
            while data := os.read(ours, 65536):
                written.append(data)

    for name, value in {"TERM": "xterm-256color", "COLUMNS": str(columns)}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    reader = threading.Thread(target=read)
    reader.start()
    with open(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        answer = command_ends(monkeypatch, *arguments)
        monkeypatch.undo()
    reader.join()
    os.close(ours)
    assert answer == 0
    return b"".join(written).decode()


def command_ends(monkeypatch, *arguments):
    """The exit code of a command with the streams that there are."""
    monkeypatch.setattr(sys, "argv", ["lrpfunc", *map(str, arguments)])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which typer replaces
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    return stopped.value.code or 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudoterminal")
def test_a_terminal_gets_colours_and_lines_and_a_pipe_plain_text(monkeypatch):
    shown = in_a_terminal(monkeypatch, "inspect", "-m", "digits", "-c", "deconvnet")
    assert ESCAPE + "[1mdigits, 10 classes, composite deconvnet" in shown
    assert "──" in shown
    piped = CliRunner().invoke(cli.app, ["inspect", "-m", "digits", "-c", "deconvnet"], env={"COLUMNS": "40"})
    assert (piped.exit_code, piped.stderr) == (0, "")
    assert ESCAPE not in piped.stdout
    assert piped.stdout.isascii()
    assert max(map(len, piped.stdout.splitlines())) > 80  # nothing is folded to the width of a terminal


def test_the_command_as_it_is_typed(broken, tmp_path):
    """In a process of its own, the one here that imports everything anew."""
    command = [*COMMAND, "dataset", str(broken), "-m", "digits", "-o", "x.h5"]
    run = subprocess.run(command, text=True, encoding="utf-8", capture_output=True, cwd=tmp_path)
    assert run.returncode == 3
    assert run.stdout.startswith("x.h5: 2 explanations\n")
    assert run.stderr.endswith("\nerror: b.png is no image that Pillow can read\n")


@pytest.mark.parametrize("columns", [20, 40, 60, 100])
def test_a_narrow_terminal_shows_all_that_there_is(columns, folder, tmp_path, monkeypatch):
    path = folder / "3" / "003.png"
    shown = in_a_terminal(
        monkeypatch, "image", path, "-m", "digits", "-c", "epsilon", "-o", tmp_path / "out", columns=columns
    )
    text = "".join(re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown).split())
    assert "…" not in text
    words = ("probability", "logit", "relevance", "sum", "3")
    assert [word for word in words if word not in text] == []
    assert str(path) in text or columns == 100  # where it is folded between columns


BAD = "\x1b[31mcat\x07\u202egpj.exe"


def test_names_of_classes_do_nothing_to_a_terminal(folder, tmp_path):
    tmp_path.joinpath("names.json").write_text(json.dumps([BAD] * 10))
    options = ("-m", "digits", "--categories", tmp_path / "names.json", "-o", tmp_path / "out")
    answer = fine("image", folder / "3" / "003.png", *options)
    assert "\\x1b[31mcat\\x07\\u202egpj.exe" in answer.stdout
    assert not {"\x1b", "\x07", "\u202e"} & set(answer.output)
    answer = lrp("image", folder / "3" / "003.png", *options, "-t", BAD + "!")
    assert not {"\x1b", "\x07", "\u202e"} & set(answer.output)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_any_encoding_will_do(encoding, folder, tmp_path):
    tmp_path.joinpath("names.json").write_text(json.dumps(["猫 ñ"] * 10))
    command = [*COMMAND, "image", str(folder / "3" / "003.png"), "-m", "digits", "-o", str(tmp_path / "out")]
    options = ["--categories", str(tmp_path / "names.json")]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    run = subprocess.run([*command, *options], capture_output=True, env=environment)
    assert (run.returncode, run.stderr) == (0, b"")
    assert "\\u732b" in run.stdout.decode(encoding)
    assert "3 pictures in" in run.stdout.decode(encoding)
    shown = subprocess.run([*COMMAND, "--help"], capture_output=True, env=environment)
    assert (shown.returncode, shown.stderr) == (0, b"")


@pytest.fixture
def interruptible():
    """Where tests run in the background, a shell has had ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("image", "Pictures that are whole stay; the same command with --overwrite makes all."),
        ("dataset", "The same command with --resume goes on from here."),
        ("inspect", "Nothing was written; the same command begins anew."),
    ],
)
def test_who_stops_a_command_is_told_how_to_go_on(
    sign, code, command, advice, folder, tmp_path, monkeypatch, interruptible
):
    def stop(*arguments, **options):
        os.kill(os.getpid(), sign)
        raise AssertionError("never here: the signal is dealt with first")

    monkeypatch.setattr(classifiers, "load", stop)
    options = {"image": [folder / "3" / "003.png"], "dataset": [folder, "-o", tmp_path / "x.h5"], "inspect": []}
    before = signal.getsignal(signal.SIGTERM)
    answer = lrp(command, *options[command], "-m", "digits")
    assert (answer.exit_code, answer.stdout, answer.stderr) == (code, "", f"\nstopped. {advice}\n")
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch, capsys):
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        command_ends(monkeypatch, "inspect", "-m", "digits")
        sys.stdout.flush()  # as Python does at its end, and would complain
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


# -- help and completion ----------------------------------------------------------------------------------------------


def test_h_is_help_everywhere():
    for command in ([], ["image"], ["dataset"], ["merge"], ["report"], ["inspect"], ["digits"], ["demo"], ["check"]):
        short, long = lrp(*command, "-h"), lrp(*command, "--help")
        assert short.exit_code == long.exit_code == 0
        assert short.output == long.output
        assert "Usage" in short.output


def test_the_shell_completes_commands_and_options():
    words = {"im": "image", "dataset --resu": "--resume"}
    for typed, expected in words.items():
        line = ["lrpfunc", *typed.split(" ")]
        asked = {"_LRPFUNC_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(line), "COMP_CWORD": str(len(line) - 1)}
        found = subprocess.run(COMMAND, env=os.environ | asked, capture_output=True, text=True)
        assert expected in found.stdout.split(), (found.stdout, found.stderr)
