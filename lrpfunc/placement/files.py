"""Parameters in safetensors files, read one by one when they are needed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lrpfunc.errors import FileError

INDEX = "*.safetensors.index.json"  # which names are in which file, as Hugging Face's folders have it


Stamp = tuple[int, int]  # a file's size and when it was written, in nanoseconds


class Stored:
    """A tensor in a file, which is read whenever it is moved to a device, as long as the file is what it was.

    It is no dataclass: a program in a file, which may be anyone's, must not say what is read on whose machine.
    """

    is_meta = False

    def __init__(self, path: str, name: str, shape: tuple[int, ...], stamp: Stamp):
        self.path, self.name, self.shape, self.stamp = path, name, shape, stamp

    def __repr__(self) -> str:
        return f"Stored({self.path!r}, {self.name!r})"

    def to(self, device: torch.device) -> Tensor:
        """The tensor on a device; on "meta", where it has no numbers, nothing is read. Errors: `FileError`."""
        with self._opened() as file:
            if device.type == "meta":
                return torch.empty(self.shape, dtype=_dtype(file, self.name), device=device)
            return file.get_tensor(self.name).to(device)

    @property
    def dtype(self) -> torch.dtype:
        """Errors: `FileError`."""
        with self._opened() as file:
            return _dtype(file, self.name)

    def _opened(self):
        file = _opened(self.path)
        if _stamp(self.path) != self.stamp:  # asked when it is open: what is written later is another file, or torn
            raise FileError(
                f"{self.path} has changed since its parameters were offloaded, and an explanation of two models would "
                "be of none: call lrpfunc.offload again."
            )
        return file


def _dtype(file, name: str) -> torch.dtype:
    part = file.get_slice(name)
    return (part[:0] if part.get_shape() else file.get_tensor(name)).dtype


def stored_in(files: str | os.PathLike | Sequence[str | os.PathLike]) -> dict[str, Stored]:
    """All tensors in files, or in a folder of files, by their names. Nothing of them is read but their shapes.

    Errors: `FileError` for what cannot be read, a folder without files, and a name that is in several of them.
    """
    listed = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    found: dict[str, Stored] = {}
    for path in (path for one in listed for path in _paths(Path(one))):
        for name, one in _content(path).items():
            if name in found:
                raise FileError(f"'{name}' is in {found[name].path} and in {path}: say which files are meant.")
            found[name] = one
    return found


def _paths(path: Path) -> list[Path]:
    """A file, or the files of a folder: those of its index, if it has one."""
    if not path.is_dir():
        return [path]
    indices = sorted(path.glob(INDEX))
    if indices:
        try:
            return [path / name for name in sorted(set(json.loads(indices[0].read_text())["weight_map"].values()))]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise FileError(f"{indices[0]} is no index of safetensors files.") from None
    if paths := sorted(path.glob("*.safetensors")):
        return paths
    raise FileError(f"there is no safetensors file in {path}.")


def _content(path: Path) -> Mapping[str, Stored]:
    stamp = _stamp(path)  # before it is open: who writes meanwhile is found out when it is read
    with _opened(str(path)) as file:
        names = file.keys()
        return {name: Stored(str(path), name, tuple(file.get_slice(name).get_shape()), stamp) for name in names}


def _stamp(path: str | Path) -> Stamp:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise FileError(f"there is no file {path}.") from None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error}") from None
    return found.st_size, found.st_mtime_ns


def _opened(path: str):
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise FileError(f"there is no file {path}.") from None
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path} cannot be read: {error}") from None
