"""A file of unknown origin is examined by another process; what comes back are numbers and texts, and no HDF5."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lrpfunc.errors import FileError
from lrpfunc.pictures import sidefiles
from lrpfunc.pictures.hdf5 import structure
from lrpfunc.pictures.hdf5.schema import Contents, Failure, Schema

SECONDS = 120.0  # of the clock, should it wait for something; its time of the processor is bounded by itself
CHUNK = 1 << 16
ESCAPED = 6  # bytes in JSON for one of a text, at most
CODE = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from lrpfunc.pictures.hdf5 import structure
structure.main()"""


def examined(path: Path, file: io.FileIO) -> Contents:
    """What an open file holds but for its rows. Errors: `FileError` if it is not one of a run, or a damaged one."""
    answer, was_stopped = _answer(path, file)
    lines = answer.split(b"\n")
    if lines[0] != structure.READY.encode():
        raise FileError(f"{path} cannot be examined: no process could be started for it ({sys.executable}).")
    try:
        found = [json.loads(line) for line in lines[1:-1]]
        last = found[-1]
        if "refused" not in last and last["whole"]:
            return contents(found)
    except (ValueError, TypeError, LookupError):  # it died in the midst of a line, or before
        reason = "reading it does not come to an end" if was_stopped else "reading it crashes, or needs too much memory"
        raise FileError(f"{path} is no HDF5 file, or a damaged one: {reason}.") from None
    raise FileError(f"{path} {last['refused']}.")


def contents(lines: Sequence[Mapping[str, Any]]) -> Contents:
    """The lines of `structure.described` in one."""
    rows, image, classes, name_bytes = lines[0]["schema"]
    return Contents(
        Schema(rows, tuple(image), classes, name_bytes),
        lines[0]["offsets"],
        lines[0]["details"],
        [name for line in lines for name in line.get("categories", ())],
        [Failure(*failure) for line in lines for failure in line.get("failures", ())],
    )


def _answer(path: Path, file: io.FileIO) -> tuple[bytes, bool]:
    """What the process prints, and whether it had to be stopped."""
    here = [str(Path(__file__).parents[3]), *filter(None, sys.path)]
    most = ESCAPED * os.fstat(file.fileno()).st_size + structure.BASE_BYTES
    with sidefiles.named(path):
        process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", CODE, json.dumps(here)],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
    assert process.stdout is not None
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        process.kill()

    timer = threading.Timer(SECONDS, stop)
    timer.start()
    try:
        answer = b"".join(_chunks(process.stdout, most))
    finally:
        timer.cancel()
        process.kill()
        process.stdout.close()
        code = process.wait()
    return answer, stopped.is_set() or code == -getattr(signal, "SIGXCPU", 0)


def _chunks(pipe: IO[bytes], most: int) -> Iterator[bytes]:
    """What comes, up to so many bytes. (One `read` of them would take their memory first.)"""
    while most > 0 and (chunk := os.read(pipe.fileno(), min(most, CHUNK))):
        most -= len(chunk)
        yield chunk
