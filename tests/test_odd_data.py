"""The command line given data as people have it: what is taken is said, what cannot be is listed, runs go on."""

import os
import pathlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lrpfunc import cli, digits
from lrpfunc.errors import FileError
from lrpfunc.pictures import hdf5, panels, runs
from lrpfunc.pictures.images import Reading, Window
from lrpfunc.pictures.samples import Notices
from tests.test_cli import complaint, fine, lrp
from tests.test_images import locked  # noqa: F401 (a fixture)


def gray(path, values):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint16)).save(path)
    return path


def rows(path):
    """Names and pictures of a run, and what failed why."""
    with hdf5.opened(path) as run:
        names = [name.decode() for name in run.column("file")[:]]
        return names, run.column("data")[:], {failure.file: failure.reason for failure in run.errors}


def squares(highest, seed=0):
    values = np.random.default_rng(seed).integers(0, highest + 1, (8, 8))
    values[0, 0] = highest
    return values


def test_the_weights_that_were_taken_are_said(folder, tmp_path):
    torch.manual_seed(5)
    state, other = digits.DigitsNet().state_dict(), digits.DigitsNet().state_dict()
    path = tmp_path / "w.ckpt"
    beside = {f"net.{name}": tensor for name, tensor in state.items()} | {"criterion.weight": torch.ones(10)}
    torch.save({"state_dict": beside, "state_dict_ema": other}, path)
    options = ["-m", "digits", "--weights", path]
    answer = fine("image", folder / "3" / "003.png", *options, "-o", tmp_path / "out")
    said = [
        f"note: weights: {path}, set 'state_dict', prefix 'net.' removed",
        f"note: weights: 'state_dict_ema' fits too: --weights {path}#state_dict_ema takes it",
        "note: weights: not of the model and left out: criterion.weight",
    ]
    assert answer.stderr.splitlines() == said
    assert fine("dataset", folder, *options, "-o", tmp_path / "r.h5").stderr.splitlines()[-3:] == said
    with hdf5.opened(tmp_path / "r.h5") as run:
        assert run.details["weights"] == f"{path}#state_dict.net"
    line = complaint(lrp("inspect", "-m", "digits", "--weights", f"{path}#ema"), cli.BAD_PATH)
    assert line.startswith(f"error: '{path}' has no set 'ema'.")


def test_deep_gray_values_are_shown_and_that_is_said(tmp_path):
    for name, highest in {"a": 4000, "b": 1000, "c": 65535}.items():
        gray(tmp_path / "scans" / f"{name}.png", squares(highest))
    answer = fine("dataset", tmp_path / "scans", "-m", "digits", "-o", tmp_path / "r.h5", "--workers", 1)
    assert answer.stderr.splitlines()[-1] == (
        "note: a.png and 1 other, such as this: its values end at 4000, so 4095 is taken for white; --window 0,4095 "
        "says so for all files"
    )
    names, pictures, _ = rows(tmp_path / "r.h5")
    whites = dict(zip(names, pictures[:, 0, 0, 0], strict=True))
    assert whites == {"a.png": round(4000 / 4095 * 255), "b.png": round(1000 / 4095 * 255), "c.png": 255}
    answer = fine("dataset", tmp_path / "scans", "-m", "digits", "-o", tmp_path / "w.h5", "--window", "-100,900")
    assert "note" not in answer.stderr
    assert rows(tmp_path / "w.h5")[1][:, 0, 0, 0].tolist() == [255, 255, 255]
    answer = fine("image", tmp_path / "scans" / "a.png", "-m", "digits", "-o", tmp_path / "out")
    said = "its values end at 4000, so 4095 is taken for white; --window 0,4095 says so for all files"
    assert answer.stderr == f"note: {tmp_path / 'scans' / 'a.png'}: {said}\n"


def test_a_run_goes_on_with_the_window_it_began_with(folder, classifier, tmp_path):
    out = tmp_path / "r.h5"
    windowed = replace(classifier, reading=Reading(window=Window(0, 99)))
    runs.run(folder, out, windowed)
    with pytest.raises(FileError, match="preprocess"):
        runs.run(folder, out, classifier, resume=True)
    assert runs.run(folder, out, windowed, resume=True).was_finished


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--window 3", "--window takes the lowest and the highest value, such as -160,240, but got '3'."),
        ("--window 3,2", "--window takes the lowest and the highest value, such as -160,240, but got '3,2'."),
        ("--window nan,2", "--window takes the lowest and the highest value, such as -160,240, but got 'nan,2'."),
        ("--window a,b", "--window takes numbers with commas between, such as -160,240, but got 'a,b'."),
    ],
)
def test_windows_that_are_none(options, message, folder, tmp_path):
    answer = lrp("image", folder / "3" / "003.png", "-m", "digits", "-o", tmp_path / "o", *options.split())
    assert complaint(answer) == f"error: {message}"


def test_images_with_too_many_pixels_are_left_out_and_strips_are_none(folder, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    Image.new("L", (1, 60000), 99).save(data / "strip.png")
    Image.new("L", (300, 300), 99).save(data / "large.png")
    Image.new("L", (30, 30), 99).save(data / "small.png")
    answer = lrp("dataset", data, "-m", "digits", "-o", tmp_path / "r.h5", "--max-pixels", "60000", "--workers", 1)
    assert answer.exit_code == cli.INCOMPLETE
    names, _, failed = rows(tmp_path / "r.h5")
    assert names == ["small.png", "strip.png"]
    said = "is too large: 300 x 300 pixels, and 60,000 are allowed (--max-pixels N allows N, 0 any)"
    assert failed == {"large.png": said}
    assert (
        lrp("dataset", data, "-m", "digits", "-o", tmp_path / "r.h5", "--max-pixels", "60000", "--resume").exit_code
        == 3
    )
    answer = lrp("image", *sorted(data.iterdir()), "-m", "digits", "-o", tmp_path / "o", "--max-pixels", "60000")
    assert answer.exit_code == cli.INCOMPLETE
    assert answer.stderr.splitlines() == [f"error: {data / 'large.png'} {said}"]
    fine("image", *sorted(data.iterdir()), "-m", "digits", "-o", tmp_path / "p", "--max-pixels", 0)


def test_what_a_folder_holds_besides_is_said(tmp_path):
    data = tmp_path / "data"
    gray(data / "a.png", squares(65535))
    for name in ("notes.txt", "b.svg", ".hidden.png"):
        data.joinpath(name).touch()
    pages = [Image.new("L", (8, 8), value) for value in (0, 100, 200)]
    pages[0].save(data / "scan.tif", save_all=True, append_images=pages[1:])
    answer = fine("dataset", data, "-m", "digits", "-o", tmp_path / "r.h5")
    assert [line for line in answer.stderr.splitlines() if line.startswith("note")] == [
        "note: 2 files left out that are no images: 1 .svg, 1 .txt",
        "note: 1 hidden file or folder left out",
        "note: 1 file with several pages: each page is a sample",
    ]
    names, pictures, _ = rows(tmp_path / "r.h5")
    assert names == ["a.png", "scan.tif#1", "scan.tif#2", "scan.tif#3"]
    assert pictures[1:, 0, 0, 0].tolist() == [0, 100, 200]
    fine("dataset", data / "scan.tif", "-m", "digits", "-o", tmp_path / "s.h5")
    assert rows(tmp_path / "s.h5")[0] == ["scan.tif#1", "scan.tif#2", "scan.tif#3"]
    fine("image", data / "scan.tif", "-m", "digits", "-o", tmp_path / "out")
    assert {path.name.split(".")[0] for path in (tmp_path / "out").iterdir()} == {"scan_1", "scan_2", "scan_3"}
    fine("image", f"{data / 'scan.tif'}#2", "-m", "digits", "-o", tmp_path / "one")
    assert {path.name.split(".")[0] for path in (tmp_path / "one").iterdir()} == {"scan_2"}


def test_what_cannot_be_read_is_listed_and_the_run_goes_on(folder, tmp_path, locked):  # noqa: F811
    locked.update({"4", "013.png"})
    answer = lrp("dataset", folder, "-m", "digits", "-o", tmp_path / "r.h5", "--workers", 0)
    assert answer.exit_code == cli.INCOMPLETE
    assert [line for line in answer.stderr.splitlines() if line.startswith("error")] == [
        "error: 2 samples could not be explained:",
        "error: 3/013.png cannot be read: Permission denied",
        "error: 4/ cannot be read: Permission denied",
    ]
    names, _, failed = rows(tmp_path / "r.h5")
    assert len(names) == 40 - 4 - 1
    assert len(failed) == 2
    with hdf5.opened(tmp_path / "r.h5") as run:
        labels = run.column("label")[:]
    assert [name[0] for name in names] == list(map(str, labels))  # folders keep their classes
    answer = lrp("image", *sorted(folder.glob("3/*.png")), "-m", "digits", "-o", tmp_path / "out")
    assert answer.exit_code == cli.INCOMPLETE
    assert answer.stderr.splitlines() == [f"error: {folder / '3' / '013.png'} cannot be read: Permission denied"]


def test_an_image_below_a_folder_that_may_not_be_entered(folder, tmp_path, monkeypatch):
    def stat(self, **options):
        if "secret" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, **options)

    original = pathlib.Path.stat
    monkeypatch.setattr(pathlib.Path, "stat", stat)
    files = [tmp_path / "secret" / "a.png", folder / "3" / "003.png"]
    answer = lrp("image", *files, "-m", "digits", "-o", tmp_path / "out")
    assert answer.exit_code == cli.INCOMPLETE
    assert answer.stderr.splitlines() == [f"error: {files[0]} cannot be read: Permission denied"]


def test_a_folder_with_nothing_to_read_says_what_is_in_it(tmp_path, locked):  # noqa: F811
    (tmp_path / "data" / "b").mkdir(parents=True)
    for name in ("a.csv", "b/1.png"):
        (tmp_path / "data" / name).touch()
    locked.add("b")
    line = complaint(lrp("dataset", tmp_path / "data", "-m", "digits", "-o", tmp_path / "r.h5"), cli.BAD_PATH)
    assert line.endswith(
        f".webp. b{os.sep} cannot be read: Permission denied. 1 file left out that is no image: 1 .csv."
    )


def test_notices_of_one_kind_are_one_line():
    said = Notices()
    for number in range(5):
        said.add(f"{number}\n.png", [f"its values end at {number * 1.5:g}", "it moves"][: 1 + (number > 3)])
    assert said.lines == (
        "0\\n.png and 4 others, such as this: its values end at 0",
        "4\\n.png: it moves",
    )
    for number in range(20):
        said.add("x", [f"kind {chr(97 + number)}"])
    assert len(said.lines) == 8


def test_panels_say_what_was_read_how(classifier, tmp_path):
    path = gray(tmp_path / "a.png", squares(4000))
    written = panels.write([path], tmp_path / "out", classifier)
    assert written.notes[-1].startswith(f"{path}: its values end at 4000")
