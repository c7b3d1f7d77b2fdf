"""A disk that loses power: what a process writes is noted, and any moment's remains can be laid out in a folder.

Of what was not synced, each block of 512 bytes is there or not, in whichever order the disk took them; so is each
change of a size, and each change of a name. What was synced is there. This knows nothing of lrpfunc.
"""

import os
import random
from contextlib import contextmanager

import pytest

BLOCK = 512


class Disk:
    """Notes what this process does to the files of one folder, while `watched`; what is there before is on the disk."""

    def __init__(self, folder):
        self.folder = folder
        self.names = {path.name: number for number, path in enumerate(sorted(folder.iterdir()))}
        self.kept = {number: (folder / name).read_bytes() for name, number in self.names.items()}
        self.events = []
        self._numbers = {os.stat(folder / name).st_ino: number for name, number in self.names.items()}
        self._count = len(self.names)

    @contextmanager
    def watched(self):
        real = {name: getattr(os, name) for name in (*WATCHED, "open")}
        with pytest.MonkeyPatch.context() as patch:
            for name in WATCHED:
                patch.setattr(os, name, self._noting(name, real[name]))
            patch.setattr(os, "open", self._opening(real["open"]))
            yield self

    def _opening(self, function):
        def call(path, flags, mode=0o777, **options):
            is_new = flags & os.O_CREAT and not os.path.lexists(path)
            descriptor = function(path, flags, mode, **options)
            if is_new and os.path.dirname(os.fspath(path)) == str(self.folder):
                self._numbers[os.fstat(descriptor).st_ino] = self._count
                self.events.append(("name", self._count, None, os.path.basename(path)))
                self._count += 1
            return descriptor

        return call

    def _noting(self, name, function):
        def call(*arguments, **options):
            event = self._event(name, *arguments)
            found = function(*arguments, **options)
            if event:
                self.events.append(event)
            return found

        return call

    def _event(self, name, *arguments):
        if name in ("replace", "unlink"):
            paths = [os.fspath(path) for path in arguments]
            if any(os.path.dirname(path) != str(self.folder) for path in paths) or not os.path.lexists(paths[0]):
                return None
            old, new = [*map(os.path.basename, paths), None][:2]
            return "name", self._numbers[os.lstat(paths[0]).st_ino], old, new
        descriptor, *rest = arguments
        information = os.fstat(descriptor)
        if os.path.samestat(information, os.stat(self.folder)):
            return "sync names", None
        if information.st_ino not in self._numbers:
            return None
        number = self._numbers[information.st_ino]
        if name == "pwrite":
            return "write", number, rest[1], bytes(rest[0])
        if name == "ftruncate":
            return "resize", number, rest[0]
        if name == "posix_fallocate":
            return "grow", number, sum(rest)
        return "sync", number

    # -- what is left -------------------------------------------------------------------------------------------------

    def lay_out(self, moment, folder, keeps):
        """Write what a power cut leaves after so many events. `keeps`: one of those below."""
        names, files = dict(self.names), {number: bytearray(data) for number, data in self.kept.items()}
        pending = {}
        for kind, number, *what in self.events[:moment]:
            if kind in ("sync", "sync names"):
                _apply(pending.pop(number, ()), names, files, everything)
            else:
                pending.setdefault(None if kind == "name" else number, []).append((kind, number, *what))
        for changes in pending.values():
            _apply(changes, names, files, keeps)
        folder.mkdir()
        for name, number in names.items():
            (folder / name).write_bytes(files.get(number, b""))


WATCHED = ("pwrite", "ftruncate", "posix_fallocate", "fsync", "fdatasync", "replace", "unlink")


def _apply(changes, names, files, keeps):
    for count, (kind, number, *what) in enumerate(changes, start=1):
        is_last = count == len(changes)
        data = files.setdefault(number, bytearray())
        if kind == "write":
            _write(data, *what, lambda is_last=is_last: keeps(is_last))
        elif not keeps(is_last):
            pass
        elif kind == "name":
            old, new = what
            names.pop(old, None)
            if new is not None:
                names[new] = number
        else:
            size = what[0] if kind == "resize" else max(len(data), what[0])
            del data[size:]
            data.extend(bytes(size - len(data)))


def _write(data, offset, written, keeps):
    """Block by block: each may be there, and if not, the file may still be as long as if it were."""
    start = 0
    while start < len(written):
        stop = min(len(written), start + BLOCK - (offset + start) % BLOCK)
        is_kept = keeps()
        if is_kept or keeps():
            data.extend(bytes(max(0, offset + stop - len(data))))
        if is_kept:
            data[offset + start : offset + stop] = written[start:stop]
        start = stop


# What came to the disk, each asked for one change and whether it was the last one.


def nothing(is_last):
    return False


def everything(is_last):
    return True


def the_last(is_last):
    return is_last


def by_chance(seed):
    generator = random.Random(seed)
    return lambda is_last: generator.random() < 0.5
