"""What stands at the names of files that a run makes for itself: only its own are touched."""

import os
import socket
import stat

import h5py
import pytest

from lrpfunc.errors import FileError
from lrpfunc.pictures import hdf5, merging, runs, sidefiles, workfile
from tests.test_merging import written  # noqa: F401 (a fixture)
from tests.test_report import relevance, write_run
from tests.test_runs import assert_same, broken, interrupted, left_behind  # noqa: F401 (a fixture)

SIDE = [".journal", ".part", ".part.new", ".part.copy"]
THESIS = b"years of work\n"


def hdf5_of_another_program(path):
    with h5py.File(path, "w") as file:
        file["attribution"] = [1.0, 2.0]


KINDS = {
    "text": lambda path, thesis: path.write_bytes(THESIS),
    "a few zeros": lambda path, thesis: path.write_bytes(bytes(9)),
    "hdf5": lambda path, thesis: hdf5_of_another_program(path),
    "damaged hdf5": lambda path, thesis: path.write_bytes(hdf5.MAGIC + bytes(1000)),
    "link": lambda path, thesis: path.symlink_to(thesis),
    "link to nothing": lambda path, thesis: path.symlink_to(thesis.with_name("absent")),
    "link to itself": lambda path, thesis: path.symlink_to(path),
    "hard link": lambda path, thesis: os.link(thesis, path),
    "folder": lambda path, thesis: path.mkdir(),
    "pipe": lambda path, thesis: os.mkfifo(path),
    "socket": lambda path, thesis: make_socket(path),
}


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def everything(folder):
    """All that there is, and what is in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        information = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(information.st_mode) else b""
        found[path.name] = (information.st_ino, information.st_mode, information.st_nlink, content)
    return found


@pytest.mark.parametrize("side", SIDE)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_ours_is_named_and_stays(kind, side, folder, classifier, tmp_path):
    out, thesis = tmp_path / "run.h5", tmp_path / "thesis"
    thesis.write_bytes(THESIS)
    KINDS[kind](tmp_path / f"run.h5{side}", thesis)
    before = everything(tmp_path)
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(FileError) as error:
            runs.run(folder, out, classifier, **options)
        assert str(error.value).startswith(f"{out}{side} is")
        assert "in the way" in str(error.value)
        assert str(error.value).lower().endswith("move it, or choose another --out.")
        assert everything(tmp_path) == before


def test_messages_say_what_it_is(folder, classifier, tmp_path):
    said = {
        "text": "something else, no file of an lrpfunc run. Move it, or choose another --out.",
        "link": "a link, no file",
        "hard link": "a file that has other names, too (hard links), no file",
        "folder": "a folder, no file",
        "pipe": "a device, pipe or socket, no file",
    }
    (tmp_path / "thesis").write_bytes(THESIS)
    for kind, words in said.items():
        out = tmp_path / f"{kind}.h5"
        KINDS[kind](out.with_name(f"{out.name}.journal"), tmp_path / "thesis")
        with pytest.raises(FileError) as error:
            runs.run(folder, out, classifier)
        assert str(error.value).startswith(f"{out}.journal is in the way: it is {words}")


@pytest.mark.parametrize("side", [".part.new", ".part.copy"])
@pytest.mark.parametrize("kind", ["begun", "torn", "sealed", "empty", "zeros"])
def test_what_a_process_of_ours_left_is_removed(kind, side, folder, classifier, tmp_path):
    out = tmp_path / "run.h5"
    left = tmp_path / f"run.h5{side}"
    if kind in ("begun", "torn", "sealed"):
        write_run(left, relevance())
        if kind != "sealed":
            with left.open("r+b") as file:
                file.write(sidefiles.SIGNATURE if kind == "begun" else hdf5.MAGIC[:3] + sidefiles.SIGNATURE[3:])
    else:
        left.write_bytes(bytes(0 if kind == "empty" else 8))
    assert runs.run(folder, out, classifier).rows == 40
    assert left_behind(out) == ["run.h5"]


def test_overwriting_begins_anew_where_another_run_was(folder, broken, classifier, tmp_path):  # noqa: F811
    out = tmp_path / "run.h5"
    interrupted(folder, out, classifier, composite="epsilon")
    assert runs.run(broken, out, classifier, batch=3, overwrite=True).rows == 39
    runs.run(broken, tmp_path / "whole.h5", classifier, batch=3)
    assert (tmp_path / "whole.h5").read_bytes() == out.read_bytes()


def test_a_journal_of_another_run_says_nothing_of_this_one(folder, classifier, tmp_path):
    """It says that more is done than is."""
    out = tmp_path / "run.h5"
    interrupted(folder, tmp_path / "other.h5", classifier, after=4, composite="epsilon")
    interrupted(folder, out, classifier, after=1)
    os.replace(tmp_path / "other.h5.journal", tmp_path / "run.h5.journal")
    assert runs.run(folder, out, classifier, batch=8, resume=True).written == 40
    runs.run(folder, tmp_path / "whole.h5", classifier, batch=8)
    assert (tmp_path / "whole.h5").read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        (b'"rows": 8', b'"rows": 9999'),
        (b'"rows": 8', b'"rows": "8"'),
        (b'"failures": []', b'"failures": [[1, 2, 3]]'),
        (b'"failures": []', b'"failures": 7'),
        (b'"batch": 0', b'"batch": 1'),
        (b'{"batch": 0', b'[{"batch": 0'),
        (b'{"batch": 0, "rows": 8', b"[" * 100_000),
    ],
    ids=range(7),
)
def test_a_journal_with_anything_else_in_it_is_damaged(change, folder, classifier, tmp_path):
    out, journal = tmp_path / "run.h5", tmp_path / "run.h5.journal"
    interrupted(folder, out, classifier)
    text = journal.read_bytes()
    journal.write_bytes(text.replace(*change, 1))
    changed = everything(tmp_path)
    if b"9999" in change[1]:
        journal.write_bytes(journal.read_bytes().replace(b'"rows": 16', b'"rows": 9999'))
        changed = everything(tmp_path)
    with pytest.raises(FileError, match=r"run\.h5\.journal is damaged: begin anew with --overwrite\."):
        runs.run(folder, out, classifier, batch=8, resume=True)
    assert everything(tmp_path) == changed
    assert runs.run(folder, out, classifier, batch=8, overwrite=True).rows == 40


def test_a_file_that_took_the_name_during_the_run_is_kept(folder, classifier, tmp_path):
    out = tmp_path / "run.h5"

    def write(done, *_):
        if done == 16:
            out.write_bytes(THESIS)

    with pytest.raises(FileError, match=r"run\.h5 has come into being meanwhile: move it, then --resume ends this run"):
        runs.run(folder, out, classifier, progress=write)
    assert out.read_bytes() == THESIS
    with pytest.raises(
        FileError, match=r"run\.h5 exists, and this run has not written it: move it, then --resume goes"
    ):
        runs.run(folder, out, classifier, resume=True)
    assert out.read_bytes() == THESIS
    out.unlink()
    assert runs.run(folder, out, classifier, resume=True).written == 0


def test_what_came_between_at_the_names_of_side_files_is_kept(broken, classifier, tmp_path, monkeypatch):  # noqa: F811
    out = tmp_path / "run.h5"
    copy, part = tmp_path / "run.h5.part.copy", tmp_path / "run.h5.part"
    with pytest.raises(FileError, match=r"part\.copy is no HDF5 file, or a damaged one\. It is in the way"):
        runs.run(broken, out, classifier, progress=lambda *_: copy.write_bytes(THESIS))
    assert copy.read_bytes() == THESIS
    copy.unlink()
    assert runs.run(broken, out, classifier, resume=True).written == 0
    made = hdf5.made

    def late(*arguments):
        part.write_bytes(THESIS)
        return made(*arguments)

    monkeypatch.setattr(hdf5, "made", late)
    with pytest.raises(FileError, match=r"part is in the way: it is something that has come into being meanwhile, no"):
        runs.run(broken, out, classifier, overwrite=True)
    assert part.read_bytes() == THESIS
    assert left_behind(out) == ["run.h5", "run.h5.journal", "run.h5.part"]


def test_what_was_to_be_overwritten_is_so_by_the_resumed_run_too(folder, classifier, tmp_path):
    out = tmp_path / "run.h5"
    out.write_bytes(THESIS)
    interrupted(folder, out, classifier, overwrite=True)
    assert out.read_bytes() == THESIS
    assert runs.run(folder, out, classifier, batch=8, resume=True).rows == 40


def test_links_in_a_circle_are_an_error(folder, classifier, tmp_path):
    (tmp_path / "a.h5").symlink_to("b.h5")
    (tmp_path / "b.h5").symlink_to("a.h5")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(FileError, match=r"a\.h5 is a link that leads in a circle: choose another --out\."):
            runs.run(folder, tmp_path / "a.h5", classifier, **options)


def test_a_merge_touches_only_what_is_its_own_too(written, tmp_path):  # noqa: F811
    paths = [written / f"{number}.h5" for number in (1, 2, 3)]
    for side in (".journal", ".part.copy"):
        (tmp_path / f"all.h5{side}").write_bytes(THESIS)
        before = everything(tmp_path)
        with pytest.raises(FileError, match="in the way"):
            merging.merge(paths, tmp_path / "all.h5", overwrite=True)
        assert everything(tmp_path) == before
        (tmp_path / f"all.h5{side}").unlink()


def test_a_name_that_becomes_a_link_while_it_is_opened_is_refused(tmp_path, monkeypatch):
    path, thesis = tmp_path / "journal", tmp_path / "thesis"
    thesis.write_bytes(THESIS)
    path.symlink_to(thesis)
    monkeypatch.setattr(os, "lstat", os.stat)  # as if it had been a file when it was looked at
    with pytest.raises(FileError, match="journal is in the way: it is a link, no file of an lrpfunc run"):
        sidefiles.taken(path)


def test_an_error_of_the_system_names_the_file(folder, classifier, tmp_path, monkeypatch):
    def fails(*arguments):
        raise OSError(27, "File too large")

    calls = {"ftruncate": "run.h5.journal", "posix_fallocate": "run.h5.part.new", "fdatasync": "run.h5.journal"}
    for name, file in calls.items():
        monkeypatch.setattr(os, name, fails)
        with pytest.raises(OSError, match="File too large") as error:
            runs.run(folder, tmp_path / "run.h5", classifier)
        monkeypatch.undo()
        assert os.path.basename(error.value.filename) == file
        assert left_behind(tmp_path / "run.h5") == []


def test_a_folder_that_cannot_be_synced_will_do(folder, classifier, tmp_path, monkeypatch):
    def refuses(descriptor):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuses)
    assert runs.run(folder, tmp_path / "run.h5", classifier).rows == 40


def test_the_work_file_has_its_place_on_the_disk_from_the_start(folder, classifier, tmp_path):
    out = tmp_path / "run.h5"
    interrupted(folder, out, classifier)
    part = tmp_path / "run.h5.part"
    assert part.stat().st_blocks * 512 >= part.stat().st_size > 40 * 64 * 5
    with workfile.claimed(out, resume=True, overwrite=False) as claimed:
        assert not claimed.is_finished
    runs.run(folder, tmp_path / "whole.h5", classifier, batch=8)
    runs.run(folder, out, classifier, batch=8, resume=True)
    assert_same(out, tmp_path / "whole.h5")
