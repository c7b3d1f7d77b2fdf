"""The folder of a run: `run.json` says which run it is, and who takes part must be about to do the same.

The first process writes it, in one piece; nobody changes it. No process is told apart: neither a first nor a driver.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lrpfunc.errors import FileError
from lrpfunc.pictures import sidefiles
from lrpfunc.pictures.outfiles import outfile
from lrpfunc.pictures.workfile import differences

# Readers of tables in folders pass over what begins so.
NAME = "_run.json"
CHANGED = {
    "pictures": "its files have other sizes or times (rsync -a and cp -p keep times)",
    "texts": "something else stands in its files",
}


def agree(folder: Path, mine: Mapping[str, Any], same: Iterable[str]) -> None:
    """Make a folder that of this run, if it is nobody's yet; else it must be of the same run.

    `mine`: the run's details, the samples in a block, and what tells whether the source has changed; `same`: which of
    the details must be the same, but for the part.

    Errors: `FileError` for a folder of something else or of another run, a source that has changed, and other versions
    than those that the run was begun with; `OSError`.
    """
    path = folder / NAME
    if not folder.parent.is_dir():
        raise FileError(f"cannot write {folder}: there is no folder {folder.parent}.")
    if folder.exists() and not folder.is_dir():
        raise FileError(f"{folder} is a file, and blocks need a folder: choose another --out.")
    folder.mkdir(exist_ok=True)
    if not path.exists():
        others = [each.name for each in folder.iterdir() if not each.name.startswith(".")]
        if others and not path.exists():  # of another process, since
            raise FileError(f"{folder} holds something else, such as {others[0]}: choose a new folder with --out.")
        _write(path, mine)
    theirs = _read(path)
    if theirs.get("kind") != mine["kind"]:
        raise FileError(f"{folder} holds {theirs.get('kind')}: choose a new folder with --out.")
    check_versions(f"the run in {folder} began", theirs["versions"], mine["versions"])
    differing = differences(theirs, mine, ("block", *(key for key in same if key != "shard")))
    if differing:
        raise FileError(
            f"{folder} is of another run, with {', '.join(differing)}. Give the same options, or another --out."
        )
    if theirs["contents"] != mine["contents"]:
        raise FileError(
            f"{mine['source']} has changed since the run in {folder} began: {CHANGED[mine['kind']]}. Begin anew with "
            "another --out."
        )


def _write(path: Path, mine: Mapping[str, Any]) -> None:
    try:
        with outfile(path) as part:
            part.write_text(json.dumps(mine, indent=1) + "\n")
        sidefiles.sync_folder(path.parent)
    except FileError:  # another process was faster
        return


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict) and isinstance(found.get("versions"), dict) and "contents" in found:
            return found
    except (ValueError, RecursionError, IsADirectoryError):
        pass
    raise FileError(f"{path} is in the way: it is no file of an lrpfunc run. Move it, or choose another --out.")


def check_versions(who: str, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Ask whether two processes run the same code. Errors: `FileError` that names what differs."""
    names = [name for name in {**theirs, **mine} if name != "python" and theirs.get(name) != mine.get(name)]
    if names:
        have, has = (", ".join(f"{name} {of.get(name)}" for name in names) for of in (theirs, mine))
        raise FileError(f"{who} with {have}, but a process has {has}: install the same everywhere.")
