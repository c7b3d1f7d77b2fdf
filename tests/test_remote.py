"""Data sets by their URLs: each kind is, to the byte, what it is on this machine, and what goes wrong has a name."""

import errno
import importlib
import os
import pickle
import re
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from lrpfunc.errors import FileError, MissingExtraError
from lrpfunc.extras import is_installed
from lrpfunc.pictures import distributed, merging, parts, remote, runs
from lrpfunc.pictures.distributed import ranks, worker
from lrpfunc.pictures.remote import place
from lrpfunc.pictures.samples import contents, open_samples
from tests.remote_sources import Failing, served
from tests.test_cli import complaint, fine, lrp
from tests.test_extras import COMMAND, loaded_by
from tests.test_packed import shards, tables, write_tar
from tests.test_runs import broken, content  # noqa: F401 (a fixture)

needs_http = pytest.mark.skipif(not is_installed("aiohttp"), reason="needs the extra remote")


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
    here, there = open_samples(source, classifier), open_samples(url, classifier)
    assert list(there.names) == list(here.names)
    assert there.notes == here.notes
    assert there.identity == here.identity


@needs_http
@pytest.mark.parametrize("kind", ["folder", "list", "tars", "parquet", "npz"])
def test_so_it_is_by_a_web_server_in_processes_that_read(kind, folder, classifier, tmp_path, monkeypatch):
    import aiohttp

    monkeypatch.setattr(remote, "WAITS", ())
    patience = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=60)}}
    monkeypatch.setitem(fsspec.config.conf, "http", patience)
    source = MAKE[kind](folder, tmp_path)
    expected = written(source, tmp_path / "here.h5", classifier)
    with served(tmp_path) as server:
        url = f"{server.url}/{source.relative_to(tmp_path)}"
        assert written(url, tmp_path / "forked.h5", classifier, workers=2) == expected
        assert len(contents(open_samples(url, classifier))) == 64  # the parent, too, reads on after it forked


def test_archives_may_be_folders(folder, classifier, tmp_path):
    with zipfile.ZipFile(tmp_path / "a b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, path.relative_to(folder.parent))
    expected = written(folder, tmp_path / "here.h5", classifier)
    url = put(tmp_path / "a b.zip")
    assert written(f"zip://digits::{url}", tmp_path / "there.h5", classifier, workers=2) == expected
    assert written(f"zip://digits::simplecache::{url}", tmp_path / "cached.h5", classifier) == expected
    assert [name.partition("/")[0] for name in open_samples(f"zip://::{url}", classifier).names] == ["digits"] * 40


def test_a_list_may_name_urls_and_files_beside(folder, classifier, tmp_path):
    put(folder)
    (tmp_path / "list.txt").write_text(
        f"memory://bucket/digits/3/003.png\n{folder / '4' / '004.png'}\nmemory://x/y.png\n"
    )
    samples = open_samples(tmp_path / "list.txt", classifier)
    assert list(samples.labels(10)) == [3, 4, -1]
    np.testing.assert_array_equal(samples.load(0), open_samples(folder, classifier).load(12))
    np.testing.assert_array_equal(samples.load(1), open_samples(folder, classifier).load(16))
    with pytest.raises(FileError, match=r"^is missing$"):
        samples.load(2)


# -- what is asked for ------------------------------------------------------------------------------------------------


@needs_http
def test_of_an_archive_what_lies_between_pictures_is_not_fetched(classifier, tmp_path):
    size = 4 * remote.PIECE
    write_tar(tmp_path / "x.tar", [(f"{i}.png", bytes([i]) * size) for i in range(4)])
    with served(tmp_path) as server:
        samples = open_samples(f"{server.url}/x.tar", classifier)
        assert all(is_part for *_, is_part in server.log)
        assert sum(sent for _, sent, _ in server.log) <= 6 * remote.PIECE
        server.log.clear()
        assert samples.store.read(2) == bytes([2]) * size
        assert server.log == [("/x.tar", size, True)]


@needs_http
def test_of_a_table_one_group_of_rows_is_fetched(folder, classifier, tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    noise = [np.random.default_rng(i).bytes(remote.PIECE) for i in range(8)]
    parquet.write_table(arrow.table({"image": noise}), tmp_path / "x.parquet", row_group_size=2)
    with served(tmp_path) as server:
        samples = open_samples(f"{server.url}/x.parquet", classifier)
        server.log.clear()
        assert [samples.store.read(i) == noise[i] for i in (4, 5)] == [True, True]
        assert sum(sent for _, sent, _ in server.log) < 4 * remote.PIECE


@needs_http
def test_pages_of_one_file_are_fetched_once(folder, classifier, tmp_path):
    scan(folder, tmp_path / "scan.tif")
    with served(tmp_path) as server:
        samples = open_samples(f"{server.url}/scan.tif", classifier)
        server.log.clear()
        for index in range(4):
            samples.load(index)
        assert [name for name, *_ in server.log] == ["/scan.tif"]


@needs_http
def test_a_server_that_sends_no_parts_is_named_with_the_way_out(folder, classifier, tmp_path):
    source = sorted(shards(folder, tmp_path / "shards").iterdir())[0]
    with served(source.parent, has_parts=False) as server:
        url = f"{server.url}/{source.name}"
        with pytest.raises(
            OSError, match="its server sends no parts of files: give " + re.escape(f"simplecache::{url}")
        ):
            open_samples(url, classifier).load(3)
        there = open_samples(f"simplecache::{url}", classifier)
        np.testing.assert_array_equal(there.load(3), open_samples(source, classifier).load(3))


def test_a_file_is_read_from_anywhere_in_it():
    data = np.random.default_rng(0).bytes(3 * remote.PIECE + 17)
    fsspec.filesystem("memory").pipe("/x/data", data)
    with place("memory://x/data").open("rb") as file:
        assert (file.read(10), file.tell()) == (data[:10], 10)
        assert file.seek(-5, os.SEEK_END) == len(data) - 5
        assert file.read() == data[-5:]
        assert file.read(1) == b""
        assert file.seek(100) == file.tell() == 100
        assert file.seek(2 * remote.PIECE, os.SEEK_CUR) == 2 * remote.PIECE + 100
        assert file.read() == data[2 * remote.PIECE + 100 :]


def test_nothing_is_left_on_this_machine(folder, classifier, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for number, kind in enumerate(("npz", "arrow", "pages", "folder")):
        (tmp_path / str(number)).mkdir()
        samples = open_samples(put(MAKE[kind](folder, tmp_path / str(number))), classifier)
        samples.load(5)
        assert list((tmp_path / "tmp").iterdir()) == []


# -- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "tars"])
def test_blocks_by_rank_merge_to_the_run_to_the_byte(kind, folder, classifier, tmp_path):
    source = put(MAKE[kind](folder, tmp_path))
    task = distributed.Task(source, tmp_path / "blocks", classifier, batch=4, block=8)
    assert task.absolute().source == place(source)
    task = pickle.loads(pickle.dumps(task.absolute()))
    for rank in range(2):
        ranks.run(task, ranks.Place(rank, 2))
    merging.merge([tmp_path / "blocks"], tmp_path / "all.h5")
    runs.run(source, tmp_path / "whole.h5", classifier, batch=4)
    assert (tmp_path / "all.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("kind", MAKE)
def test_a_source_that_changed_is_told(kind, folder, classifier, tmp_path):
    source = put(MAKE[kind](folder, tmp_path))
    put(tmp_path / "photos") if kind == "list" else None
    task = distributed.Task(source, tmp_path / "blocks", classifier)
    worker.Worker(task)
    worker.Worker(task)
    system = fsspec.filesystem("memory")
    changed = next(
        path for path in sorted(system.find("/bucket")) if not path.endswith(".txt") and ".hidden" not in path
    )
    system.pipe(changed, system.cat_file(changed))
    with pytest.raises(
        FileError, match=rf"^{source} has changed since the run in .* began: its files have other sizes"
    ):
        worker.Worker(task)


@needs_http
def test_a_web_server_says_when_a_file_changed(folder, classifier, tmp_path):
    source = copied(folder, tmp_path / "photos")
    with served(tmp_path) as server:
        before = contents(open_samples(f"{server.url}/photos", classifier))
        assert contents(open_samples(f"{server.url}/photos", classifier)) == before
        os.utime(source / "3" / "003.png", (1, 1))
        assert contents(open_samples(f"{server.url}/photos", classifier)) != before


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_line_that_is_dead_for_a_moment_is_tried_again(folder, classifier, tmp_path):
    source = put(folder, "failing")
    Failing.reset(range(20, 22))
    outcome = runs.run(source, tmp_path / "run.h5", classifier, batch=4)
    assert (outcome.rows, outcome.failures, Failing.asked) == (40, [], 1 + 40 + 2)


@pytest.mark.parametrize("kind", ["folder", "tars"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_line_that_stays_dead_ends_the_run_which_is_gone_on_with(kind, workers, folder, classifier, tmp_path):
    source = put(MAKE[kind](folder, tmp_path), "failing")
    runs.run(source, tmp_path / "whole.h5", classifier, batch=4)
    Failing.reset(range(20, 1000))
    with pytest.raises(ConnectionError) as stopped:
        runs.run(source, tmp_path / "run.h5", classifier, batch=4, workers=workers)
    assert stopped.value.strerror == "the connection failed (the line is dead)"
    assert stopped.value.filename.startswith(source)
    Failing.reset()
    outcome = runs.run(source, tmp_path / "run.h5", classifier, batch=4, resume=True)
    assert 0 < outcome.written < outcome.rows
    assert (tmp_path / "run.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_what_is_said_of_one_file_is_that_samples_error(folder, classifier, tmp_path):
    source = put(folder, "failing")
    Failing.reset(range(10, 11), PermissionError(errno.EACCES, "Access Denied"))
    outcome = runs.run(source, tmp_path / "run.h5", classifier)
    (failure,) = outcome.failures
    assert failure == (8, "2/002.png", "cannot be read: no permission, or no credentials (Access Denied)")


@needs_http
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (403, "cannot be read: no permission, or no credentials (403 Forbidden)"),
        (404, "is missing"),
        (418, "cannot be read: it cannot be had (418 I'm a Teapot)"),
    ],
)
def test_so_is_what_a_web_server_says(status, reason, folder, classifier, tmp_path):
    with served(folder) as server:
        server.errors["/3/003.png"] = status
        samples = open_samples(server.url, classifier)
        with pytest.raises(FileError) as error:
            samples.load(samples.names.index("3/003.png"))
        assert str(error.value) == reason
        server.errors["/3/003.png"] = 503
        with pytest.raises(ConnectionError, match=r"the connection failed \(503 Service Unavailable\)"):
            samples.load(samples.names.index("3/003.png"))


@needs_http
def test_sources_that_cannot_be_had_are_told_in_a_line(folder, tmp_path):
    command = ["-m", "digits", "-o", tmp_path / "run.h5"]
    with served(folder) as server:
        url = server.url
        assert complaint(lrp("dataset", f"{url}/none", *command), 2) == f"error: there is no folder or file {url}/none."
        server.errors["/3/"] = 401
        assert complaint(lrp("dataset", f"{url.replace('//', '//me:secret@')}/3/003.png?key=secret", *command), 2) == (
            f"error: {url}/3/003.png: no permission, or no credentials (401 Unauthorized). Ask who owns it for "
            "permission, or choose another place."
        )
    line = complaint(lrp("dataset", f"{url}/x", *command), 2)
    assert line.startswith(f"error: {url}/x: the connection failed (")
    assert line.endswith(
        "). Look whether it can be reached, and try again. The same command with --resume then goes on."
    )


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("no-such://x", FileError, "no-such://x cannot be read: no file system is called no-such://. Some that fsspec "
         "knows are https://, s3://, gs:// and hf://."),
        ("memory://nothing", FileError, "there is no folder or file memory://nothing."),
        ("memory://bucket/x.odd", FileError, "memory://bucket/x.odd is neither a folder of images nor a file .pt, .npz "
         "or .npy."),
        ("memory://bucket", FileError, None),
        (Path("s3://bucket/x"), FileError, "s3:/bucket/x was a URL before it became a Path: give it as a string."),
        ("zip://x::memory://bucket/x.odd", OSError, None),
    ],
)  # fmt: skip
def test_urls_that_lead_nowhere_are_named(url, kind, message, classifier):
    fsspec.filesystem("memory").pipe("/bucket/x.odd", b"odd")
    with pytest.raises(kind) as error:
        open_samples(url, classifier)
    expected = {
        "memory://bucket": "there are no images in memory://bucket or below it. Images end in .apng, ",
        "zip://x::memory://bucket/x.odd": "[Errno 5] it cannot be had (File is not a zip file): ",
    }
    assert str(error.value) == message if message else str(error.value).startswith(expected[url])


@pytest.mark.parametrize(
    ("scheme", "known", "message"),
    [
        ("s3", None, "reading s3:// needs no_such: pip install no-such"),
        ("https", None, "reading https:// needs aiohttp: pip install 'lrpfunc[remote]'"),
        ("zz", 'Needs "zz" to be installed.', 'reading zz:// needs more of fsspec: Needs "zz" to be installed.'),
    ],
)
def test_packages_that_are_missing_are_named(scheme, known, message, classifier, monkeypatch):
    registry = importlib.import_module("fsspec.registry")  # the package has a table of that name
    where = "fsspec.no_such.System" if known else "no_such.System"
    monkeypatch.setitem(registry.known_implementations, scheme, {"class": where, "err": known or "missing"})
    monkeypatch.setattr(registry, "_registry", {})
    for url in (f"{scheme}://x/y", f"simplecache::{scheme}://x/y"):
        with pytest.raises(MissingExtraError) as error:
            open_samples(url, classifier)
        assert str(error.value) == message


@pytest.mark.parametrize(
    "arguments",
    [
        ("dataset", "x", "-m", "digits", "-o", "s3://bucket/x"),
        ("image", "s3://bucket/x", "-m", "digits"),
        ("merge", "s3://bucket/x", "-o", "x.h5"),
        ("report", "s3://bucket/x"),
    ],
)
def test_what_is_on_this_machine_only_is_said(arguments):
    assert complaint(lrp(*arguments)) == (
        "error: s3://bucket/x is a URL, which only data sets are read by: give a path of this machine."
    )


# -- URLs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["photos", "/data/photos", "C:\\photos", "C:/photos", "c://photos", "a::b", "x:y"])
def test_paths_are_paths(text):
    assert place(text) == Path(text)


@pytest.mark.parametrize("text", ["file:///a%20b/c", "file://localhost/a b/c"])
def test_urls_of_files_of_this_machine_are_paths(text):
    assert place(text) == Path("/a b/c")


@pytest.mark.parametrize(
    ("url", "name", "beside", "below"),
    [
        ("s3://bucket/a/b c.png", "b c.png", "s3://bucket/a/x y.png", "s3://bucket/a/b c.png/d"),
        ("https://h/a/b%20c.png?k=1", "b c.png", "https://h/a/x%20y.png", "https://h/a/b%20c.png/d"),
        ("zip://a/b::s3://bucket/x.zip", "b", "zip://a/x y.png::s3://bucket/x.zip", "zip://a/b/d::s3://bucket/x.zip"),
        ("zip://::s3://bucket/x.zip", "", "zip://x y.png::s3://bucket/x.zip", "zip://d::s3://bucket/x.zip"),
        ("simplecache::s3://b/c/", "c", "simplecache::s3://b/x y.png", "simplecache::s3://b/c/d"),
    ],
)
def test_names_of_urls(url, name, beside, below):
    found = place(url)
    assert (found.url, found.name) == (url, name)
    assert found.with_name("x y.png").url == beside
    assert (found / "d").url == (found / "./e/../d").url == below
    assert pickle.loads(pickle.dumps(found)) == found


def test_passwords_and_signatures_are_not_told():
    assert str(place("https://me:secret@h/a/b.png?key=secret")) == "https://h/a/b.png"
    assert str(place("ftp://me:secret@h/a@b.png")) == "ftp://h/a@b.png"
    assert str(place("zip://a@b::https://me:secret@h/a.zip?key=secret")) == "zip://a@b::https://h/a.zip"


def test_nothing_of_it_is_imported_for_paths(folder, tmp_path):
    command = ["lrpfunc", "dataset", str(folder), "-m", "digits", "-o", str(tmp_path / "x.h5"), "--workers", "0"]
    assert not loaded_by(COMMAND.format(command)) & {"aiohttp", "pyarrow", "s3fs"}


def test_the_command_line_takes_urls(folder, tmp_path):
    url = put(folder)
    assert (
        fine("dataset", url, "-m", "digits", "-o", tmp_path / "x.h5").stdout
        == f"{tmp_path / 'x.h5'}: 40 explanations\n"
    )
    assert len(content(tmp_path / "x.h5")["attribution"]) == 40
