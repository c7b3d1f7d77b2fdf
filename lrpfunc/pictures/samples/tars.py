"""Pictures in tar archives, as WebDataset has them: a picture, and beside it a file `.cls` with its class.

Archives are looked through once; a picture is then read from where it lies.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lrpfunc.errors import FileError
from lrpfunc.pictures import images
from lrpfunc.pictures.remote import Place as File
from lrpfunc.pictures.remote import part

ENDING, CLASS = ".tar", ".cls"
LONGEST = 256  # bytes of a class


class Place(NamedTuple):
    """Where a picture lies: in which file, from which byte on, and how many."""

    file: int
    start: int
    size: int


class Tars:
    """The pictures of tar archives, in the order of archives and members."""

    class_names: Sequence[str] = ()

    def __init__(self, files: Sequence[File]):
        self.files, self.places = files, list[Place]()
        self.names, self.classes = list[str](), list[int | str | None]()
        for number, path in enumerate(files):
            self._look_through(number, path)
        if not self.names:
            raise FileError(f"there are no images in {files[0]}. Images end in {', '.join(sorted(images.ENDINGS))}.")

    def _look_through(self, number: int, path: File) -> None:
        classes, keys = dict[str, int | str](), list[str]()
        try:
            with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    key, ending = _parts(member.name)
                    if not member.isreg() or member.issparse() or key.rpartition("/")[2].startswith("."):
                        continue
                    if ending == CLASS and member.size <= LONGEST:
                        content = archive.extractfile(member)
                        classes[key] = _class((content.read() if content else b"").decode(errors="replace").strip())
                    elif images.ending(Path(member.name)) in images.ENDINGS:
                        self.places.append(Place(number, member.offset_data, member.size))
                        self.names.append(f"{path.name}/{member.name}")
                        keys.append(key)
        except (tarfile.TarError, EOFError) as error:
            raise FileError(f"{path} is no tar archive, or a damaged or compressed one ({error}).") from error
        self.classes += [classes.get(key, key.partition("/")[0] if "/" in key else None) for key in keys]

    def read(self, index: int) -> bytes:
        place = self.places[index]
        data = part(self.files[place.file], place.start, place.size)
        if len(data) < place.size:
            raise FileError(f"is cut off, as {self.files[place.file].name} is")
        return data


def _parts(name: str) -> tuple[str, str]:
    """A member's key, which all files of a sample share, and the rest: up to the first dot of its last part."""
    name = name.removeprefix("./")
    folder, slash, last = name.rpartition("/")
    stem, dot, rest = last.partition(".")
    return folder + slash + (stem or last), f"{dot}{rest}".lower()


def _class(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text
