"""Power cuts: at any moment of a run, whatever the disk made of what was not synced, `--resume` ends all the same."""

import os
import random
import shutil
from dataclasses import dataclass, replace

import pytest
import torch

from lrpfunc.pictures import hdf5, runs
from lrpfunc.pictures.classifiers import Standard
from lrpfunc.pictures.hdf5 import reading
from tests.examinations import examined_here
from tests.power_cuts import Disk, by_chance, nothing, the_last

NAMES = ["1/001.png", "3/003.png", "5/005.png", "6/006.png", "8/008.png"]
BATCH = 2


@dataclass(frozen=True)
class Counting:
    """Preprocessing that notes each image that it sees."""

    seen: list
    standard: Standard

    def __call__(self, image):
        self.seen.append(image)
        return self.standard(image)


@pytest.fixture
def run(classifier, folder, tmp_path, monkeypatch):
    """Runs that trace nothing again and start no process. They give the number of images that they read."""
    ready = runs.explainer(classifier, torch.rand(1, 1, 8, 8))
    monkeypatch.setattr(runs, "explainer", lambda *arguments: ready)
    monkeypatch.setattr(hdf5, "examined", examined_here)
    monkeypatch.setattr(reading, "examined", examined_here)
    seen = []
    counting = replace(classifier, preprocess=Counting(seen, classifier.preprocess))

    def run(source, out, resume=False, progress=None):
        seen.clear()
        runs.run(source, out, counting, batch=BATCH, resume=resume, progress=progress)
        return len(seen)

    return run


def images(folder, to, broken):
    for name in NAMES:
        to.joinpath(name).parent.mkdir(parents=True)
        shutil.copy(folder / name, to / name)
    if broken:
        (to / "4" / "004.png").parent.mkdir()
        (to / "4" / "004.png").write_bytes(b"this is no image")
    return to


def cut_everywhere(source, tmp_path, run, kinds, cuts=1):
    """Cut the power at every moment of a run, and resume each; with more cuts, each resumed run is cut as well."""
    samples = len(list(source.glob("*/*")))
    (tmp_path / "disk").mkdir()
    disk, told = Disk(tmp_path / "disk"), [(0, 0)]
    with disk.watched():
        run(source, disk.folder / "run.h5", progress=lambda done, *_: told.append((len(disk.events), done)))
    expected = (disk.folder / "run.h5").read_bytes()
    assert [path.name for path in disk.folder.iterdir()] == ["run.h5"]
    assert len(disk.events) > 40
    for moment in range(len(disk.events) + 1):
        done = max(number for when, number in told if when <= moment)
        for kind, keeps in kinds:
            left = tmp_path / f"{moment}-{kind}"
            disk.lay_out(moment, left, keeps)
            if cuts > 1:
                again, keeps = Disk(left), by_chance(moment)
                with again.watched():
                    run(source, left / "run.h5", resume=True)
                shutil.rmtree(left)
                again.lay_out(random.Random(moment).randint(0, len(again.events)), left, keeps)
            read = run(source, left / "run.h5", resume=True)
            assert (left / "run.h5").read_bytes() == expected, left
            assert [path.name for path in left.iterdir()] == ["run.h5"], left
            assert cuts > 1 or read <= samples - done + 1, left  # and one whose size it wants to know
    return moment + 1


@pytest.mark.parametrize("broken", [False, True])
def test_a_power_cut_at_any_moment_costs_a_batch_at_most(broken, folder, run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing but the watched disk need last
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)
    kinds = [("nothing", nothing), ("the last", the_last), ("some", by_chance(0))]  # all: as killed, in test_runs.py
    cut_everywhere(images(folder, tmp_path / "source", broken), tmp_path, run, kinds)


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_two_power_cuts_at_any_moments(broken, folder, run, tmp_path, monkeypatch):
    """The second one in the run that goes on; twenty draws of what came to the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)
    kinds = [(seed, by_chance(seed)) for seed in range(20)]
    cut_everywhere(images(folder, tmp_path / "source", broken), tmp_path, run, kinds, cuts=2)
