"""What people are told when a command fails: one line, with the next step, and an exit code."""

from __future__ import annotations

import errno
import os

import typer

from lrpfunc.errors import FileError, LrpError

FAILED, BAD_PATH, INCOMPLETE, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143

REMEDIES = {
    errno.ENOSPC: "There is no space left: make some, or write elsewhere with --out.",
    errno.EDQUOT: "Your quota is used up: make space, or write elsewhere with --out.",
    errno.ENAMETOOLONG: "Give it a shorter name.",
    errno.EFBIG: "The file would be larger than files may be here: see ulimit -f.",
    errno.EROFS: "Nothing can be written there: choose another place with --out.",
    errno.EACCES: "Ask who owns it for permission, or choose another place.",
    errno.EPERM: "Ask who owns it for permission, or choose another place.",
    errno.ELOOP: "Its links lead round in a circle: remove one.",
    errno.EMFILE: "This process may not open more files: raise the limit (ulimit -n), or give fewer --workers.",
    errno.ENFILE: "The system may not open more files: close other programs.",
    errno.ENOMEM: "The memory is used up: close other programs, or give a smaller --batch.",
    errno.EIO: "The disk, or the way to it, does not work: try again, or copy the file elsewhere.",
    errno.ECONNABORTED: "Look whether it can be reached, and try again.",
    errno.ESTALE: "The network drive has lost it: try again.",
}
# What a command leaves behind when it is stopped, and how to go on.
STOPPED = {
    "dataset": "The same command with --resume goes on from here.",
    "text": "Tables that are whole stay; the same command makes the rest.",
    "image": "Pictures that are whole stay; the same command with --overwrite makes all.",
    "digits": "The folder is not complete: remove it, and give the same command.",
}
# And after a disk was full.
GOES_ON = {
    "dataset": " The same command with --resume then goes on.",
    "text": " The same command then goes on.",
}
# How a command takes less memory, if not by --batch.
FEWER = {"text": "Fewer words at once need less: --chunk; so does --dtype bfloat16."}
NOTHING = "Nothing was written; the same command begins anew."


class Terminated(KeyboardInterrupt):
    """The system asked this process to end (SIGTERM); as an interruption it ends work where that may end."""


def complain(message: str) -> None:
    """Print an error in one red line."""
    from lrpfunc.pictures.images import printable

    typer.secho(f"error: {printable(' '.join(message.split()))}", fg="red", err=True)


def told(error: BaseException, command: str | None) -> int | None:
    """Say what went wrong in a line, if it can be said: the exit code, or None for what nobody expects."""
    if isinstance(error, LrpError):
        complain(str(error))
        return BAD_PATH if isinstance(error, FileError) else FAILED
    if isinstance(error, OSError):
        complain(_sentences(error, command))
        return BAD_PATH
    if isinstance(error, KeyboardInterrupt):
        typer.secho(f"\nstopped. {STOPPED.get(command or '', NOTHING)}", fg="yellow", err=True)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # of torch, which may be absent
        detail = f" ({str(error).rstrip('.')})" if str(error) else ""
        complain(
            f"the memory is used up{detail}. {FEWER.get(command or '', 'Fewer samples at once need less: --batch.')}"
        )
        return FAILED
    return None


def _sentences(error: OSError, command: str | None) -> str:
    """The file, what the system says of it, and what to do."""
    said = error.strerror or " ".join(str(error).split()) or type(error).__name__
    file = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    remedy = REMEDIES.get(error.errno or 0, "")
    if command in GOES_ON and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ECONNABORTED):
        remedy += GOES_ON[command]
    return f"{file}{said.rstrip('.')}. {remedy}".strip()
