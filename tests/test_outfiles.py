"""Files that appear whole or not at all, replace nothing unasked, and follow no link."""

import errno
import os

import pytest

from lrpfunc.errors import FileError
from lrpfunc.pictures import outfiles
from lrpfunc.pictures.outfiles import check_outfile, outfile


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_when_it_is_whole(tmp_path):
    path = tmp_path / "a.png"
    with outfile(path) as part:
        assert part.suffix == ".png"
        assert part.parent == tmp_path
        part.write_text("half")
        assert not path.exists()
        part.write_text("whole")
    assert path.read_text() == "whole"
    assert names(tmp_path) == ["a.png"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_goes_wrong_leaves_nothing(error, overwrite, tmp_path):
    path = tmp_path / "a.png"
    if overwrite:
        path.write_text("old")

    def write():
        with outfile(path, overwrite) as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == ["a.png"] * overwrite
    assert not overwrite or path.read_text() == "old"


def test_what_exists_stays_unless_told(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("old")
    message = f"{path} exists: choose another --out, or give --overwrite."
    with pytest.raises(FileError) as caught, outfile(path):
        pass
    assert str(caught.value) == message
    assert path.read_text() == "old"
    with outfile(path, overwrite=True) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.png"]


@pytest.mark.parametrize("can_link", [True, False])
def test_what_another_process_puts_there_meanwhile_stays(can_link, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, "no links here")

    if not can_link:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.png"

    def write():
        with outfile(path) as part:
            part.write_text("ours")
            path.write_text("theirs")

    with pytest.raises(FileError, match="exists: choose another"):
        write()
    assert path.read_text() == "theirs"
    assert names(tmp_path) == ["a.png"]
    path.unlink()
    with outfile(path) as part:
        part.write_text("ours")
    assert path.read_text() == "ours"
    assert names(tmp_path) == ["a.png"]


def test_other_troubles_with_links_are_told(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(OSError, match="broken"), outfile(tmp_path / "a.png"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("target", ["thesis.png", "nowhere.png"])
def test_links_are_replaced_and_never_followed(target, tmp_path):
    (tmp_path / "thesis.png").write_text("years of work")
    link = tmp_path / "a.png"
    link.symlink_to(tmp_path / target)
    with pytest.raises(FileError, match=r"a\.png exists"), outfile(link):
        pass
    with outfile(link, overwrite=True) as part:
        part.write_text("new")
    assert not link.is_symlink()
    assert (link.read_text(), (tmp_path / "thesis.png").read_text()) == ("new", "years of work")
    assert names(tmp_path) == ["a.png", "thesis.png"]


def test_a_folder_is_never_replaced(tmp_path):
    with pytest.raises(FileError, match=r"is a folder: choose another name\."):
        check_outfile(tmp_path, overwrite=True)


def test_a_part_that_somebody_prepared_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(outfiles.secrets, "token_hex", lambda size: "known")
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / ".known.part.png").symlink_to(tmp_path / "thesis")
    with pytest.raises(FileExistsError), outfile(tmp_path / "a.png"):
        pass
    assert (tmp_path / "thesis").read_text() == "years of work"
