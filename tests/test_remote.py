"""Data sets by their URLs: each kind is, to the byte, what it is on this machine, and what goes wrong has a name."""

import errno
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from lrpfunc.errors import FileError, MissingExtraError
from lrpfunc.pictures import distributed, merging, parts, remote, runs
from lrpfunc.pictures.distributed import ranks, worker
from lrpfunc.pictures.remote import Remote, place
from lrpfunc.pictures.samples import contents, open_samples
from tests.remote_sources import Failing, served
from tests.test_cli import complaint, fine, lrp
from tests.test_extras import COMMAND, loaded_by
from tests.test_packed import pictures, shards, tables, write_tar
from tests.test_runs import broken, content  # noqa: F401 (a fixture)

needs_http = pytest.mark.skipif(not remote.extra("importlib.util", "", "").find_spec("aiohttp"), reason="needs aiohttp")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """File systems in memory are empty, and nothing is waited for."""
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    fsspec.register_implementation("failing", Failing, clobber=True)
    yield
    for system in (fsspec.filesystem("memory"), fsspec.filesystem("failing")):
        system.store.clear()
        system.pseudo_dirs[:] = [""]
    Failing.reset()


def put(source, protocol="memory"):
    """A copy of a file or folder in memory: its URL."""
    fsspec.filesystem(protocol).put(str(source), f"/bucket/{source.name}", recursive=source.is_dir())
    return f"{protocol}://bucket/{source.name}"


def written(source, out, classifier, **options):
    """The bytes of a run's file that does not say what its source was called."""
    job = runs.prepared(source, classifier, batch=8, **options)
    job = job._replace(details=job.details | {"source": "somewhere"})
    runs.run_part(job, parts.Shard(), out)
    return out.read_bytes()


def list_of(folder, to):
    lines = [os.path.relpath(path, to.parent) for path in sorted(folder.rglob("*.png"))]
    to.write_text("\n".join([*lines, "", "not/there.png"]) + "\n")
    return to


def scan(folder, to):
    """A TIFF with a page for each picture."""
    first, *others = [Image.open(path) for path in sorted(folder.rglob("*.png"))]
    first.save(to, save_all=True, append_images=others)
    return to


def arrays(folder, to, is_packed=False):
    data = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))])
    if to.suffix == ".npy":
        np.save(to, data)
    else:
        (np.savez_compressed if is_packed else np.savez)(to, data=data, label=np.arange(len(data)) // 4)
    return to


def copied(folder, to):
    """A folder with what folders have: pages, other files, hidden ones, spaces."""
    to.mkdir()
    for path in folder.rglob("*.png"):
        (to / path.parent.name).mkdir(exist_ok=True)
        (to / path.parent.name / path.name).write_bytes(path.read_bytes())
    scan(folder, to / "7" / "scan one.tif")
    (to / "3" / "notes 100% #1.txt").write_text("none")
    (to / "3" / "a 100% #1.png").write_bytes((folder / "3" / "003.png").read_bytes())
    (to / "3" / "bare").write_bytes((folder / "3" / "003.png").read_bytes())
    (to / "3" / "barer").write_text("none")
    (to / ".hidden").mkdir()
    (to / ".hidden" / "a.png").write_text("none")
    (to / "9" / "empty.png").write_text("")
    (to / "9" / "worse.png").write_text("no picture")
    return to


def archives(folder, to):
    return shards(folder, to)


MAKE = {
    "folder": lambda folder, tmp: copied(folder, tmp / "photos"),
    "list": lambda folder, tmp: list_of(copied(folder, tmp / "photos"), tmp / "list.txt"),
    "tars": lambda folder, tmp: shards(folder, tmp / "shards"),
    "tar": lambda folder, tmp: sorted(shards(folder, tmp / "shards").iterdir())[-1],
    "parquet": lambda folder, tmp: tables(folder, tmp / "tables"),
    "arrow": lambda folder, tmp: tables(folder, tmp / "tables", kind="arrow"),
    "pages": lambda folder, tmp: scan(folder, tmp / "scan.tif"),
    "npy": lambda folder, tmp: arrays(folder, tmp / "x.npy"),
    "npz": lambda folder, tmp: arrays(folder, tmp / "x.npz"),
    "packed": lambda folder, tmp: arrays(folder, tmp / "x.npz", is_packed=True),
}


@pytest.mark.parametrize("kind", MAKE)
def test_a_run_is_that_on_this_machine_to_the_byte(kind, folder, classifier, tmp_path):
    source = MAKE[kind](folder, tmp_path)
    expected = written(source, tmp_path / "here.h5", classifier)
    if kind == "list":
        put(tmp_path / "photos")
    url = put(source)
    assert written(url, tmp_path / "there.h5", classifier) == expected
    assert written(url, tmp_path / "forked.h5", classifier, workers=2) == expected
    here, there = open_samples(source, classifier), open_samples(url, classifier)
    assert list(there.names) == list(here.names)
    assert there.notes == here.notes
    assert there.identity == here.identity


@needs_http
@pytest.mark.parametrize("kind", MAKE)
def test_so_it_is_by_a_web_server(kind, folder, classifier, tmp_path):
    source = MAKE[kind](folder, tmp_path)
    expected = written(source, tmp_path / "here.h5", classifier)
    with served(tmp_path) as server:
        url = f"{server.url}/{source.relative_to(tmp_path)}"
        assert written(url, tmp_path / "there.h5", classifier) == expected
        assert written(url, tmp_path / "forked.h5", classifier, workers=2) == expected
        if source.is_dir():
            assert open_samples(f"{url}/", classifier).names == open_samples(source, classifier).names
