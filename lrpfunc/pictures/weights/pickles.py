"""What `torch.save` writes, read without running anything: tensors and containers are made, all else is laid aside.

torch's own safe reader (`weights_only`) takes no class that it does not know. Training scripts leave many beside the
weights: options, paths, dates, numbers of numpy, objects of other packages. Their names are given to that reader as
placeholders of ours, which keep what they are given and do nothing. No code of a file is imported, let alone run; what
would have to run is refused by its name.
"""

from __future__ import annotations

import io
import pickletools
import re
import sys
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrpfunc.errors import FileError

# Names that stand for data in pickles of Python, numpy and torch. Whatever else of those packages is named would run.
DATA = re.compile(
    r"argparse\.Namespace|builtins\.(object|frozenset|set|slice|range|bytes|bytearray|complex|dict|list|tuple|int|float"
    r"|str|bool)|collections\.(defaultdict|deque|UserDict|UserList)|copyreg\._reconstructor|datetime\.\w+"
    r"|decimal\.Decimal|enum\.\w+|fractions\.Fraction|functools\.partial|ipaddress\.\w+|logging\.\w+"
    r"|pathlib\.(_local\.)?\w*Path|random\.Random|re\._compile|types\.SimpleNamespace|uuid\.(UUID|SafeUUID)"
    r"|zoneinfo\.ZoneInfo(\._unpickle)?"
    r"|numpy(\._?core)?\.multiarray\.(scalar|_reconstruct)|numpy\._?core\.numeric\._frombuffer|numpy\.ma\.core\.\w+"
    r"|numpy\.(dtype|ndarray|matrix|dtypes\.\w+|(bool|u?int|float|complex|str|bytes|void|long|u?long|datetime)\w*)"
    r"|numpy\.random\.(_\w+|mtrand|bit_generator)\.\w+"
    r"|torch\.(nn|optim|amp|cuda\.amp|torch_version|utils\.data|ao|return_types)\.[\w.]+"
    r"|torch\.distributed\.(?!tensor|_tensor|device_mesh)[\w.]+|torch\.(_C\.Generator|layout|memory_format)"
)
NUMBERS = "biufc"  # the kinds of numpy's arrays that hold numbers, and no objects


class Aside:
    """An object of a file that was not made: only what it was to be made of is kept, and nothing done with it."""

    name = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **options: Any) -> Aside:
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __init__(self, *args: Any, **options: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Array(Aside):
    """An array of numpy, which `tensor` reads: numpy's own unpickling trusts what the file says of its memory."""

    def tensor(self) -> Tensor | None:
        """The numbers in it, None if it holds something else or is not whole."""
        try:
            _, shape, kind, is_fortran, data = self.state
            order = "=" if kind.state is None else kind.state[1]
            dtype = np.dtype(kind.args[0]).newbyteorder(order if order in "<>" else "=")
            if dtype.kind not in NUMBERS or not isinstance(data, bytes):
                return None
            array = np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")
            return torch.from_numpy(array.astype(dtype.newbyteorder("="), order="C"))
        except (TypeError, ValueError, AttributeError, IndexError):
            return None


def _dictionary(*args: Any) -> OrderedDict:
    """In place of a class that is a dict, with the items that follow; their default is not needed."""
    return OrderedDict()


def _list(*args: Any) -> list:
    """In place of a class that is a list."""
    return []


class Loaded(NamedTuple):
    """What a file holds, and the names of other people's classes in it of which nothing was made."""

    content: Any
    aside: tuple[str, ...] = ()


def unpickled(path: Path, mmap: bool = False) -> Loaded:
    """What `torch.save` wrote. Errors: `FileError` that names what would have to run; nearly any for broken files."""
    names = _named(path)
    _refuse_code(path, names)
    aside = tuple(name for name in names if not DATA.fullmatch(name) and _is_foreign(name))
    try:
        return Loaded(_read(path, mmap, names, is_dict=False), aside)
    # Classes that are dicts get items, which a plain placeholder cannot take; nothing tells them apart before.
    except Exception as error:
        if not aside:
            raise _told(path, names, error) from error
        try:
            return Loaded(_read(path, mmap, names, is_dict=True), aside)
        except Exception:
            raise _told(path, names, error) from error


def _read(path: Path, mmap: bool, names: list[str], is_dict: bool) -> Any:
    known: list[Any] = [
        (_placeholder(name, is_dict), name) for name in names if DATA.fullmatch(name) or _is_foreign(name)
    ]
    with warnings.catch_warnings(), torch.serialization.safe_globals(known):
        warnings.simplefilter("ignore")  # of pickle protocols, and of tensors of older kinds
        if mmap and zipfile.is_zipfile(path):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:  # by its name it would be read otherwise if that ends in .safetensors
            return torch.load(file, map_location="cpu", weights_only=True)


def _is_foreign(name: str) -> bool:
    """Whether a name belongs to neither Python nor torch nor numpy: a class of somebody's package or script."""
    return name.partition(".")[0] not in {*sys.stdlib_module_names, "torch", "numpy"} or name.startswith("__main__.")


def _placeholder(name: str, is_dict: bool) -> Any:
    if name == "collections.defaultdict" or (is_dict and _is_foreign(name)):
        return _dictionary if name == "collections.defaultdict" else type("Items", (), {"__new__": _dictionary})
    if name == "collections.deque":
        return _list
    if name.startswith("numpy.") and name.endswith("._reconstruct"):
        return Array
    return type("Placeholder", (Aside,), {"name": name})


# -- what a pickle names ----------------------------------------------------------------------------------------------


def _named(path: Path) -> list[str]:
    """All classes and functions that the pickles in a file name, as 'module.name'. Errors: nearly any."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return _named_in(file, 4)  # of older versions: a number, a version, the machine, then what was saved
        with zipfile.ZipFile(file) as archive:
            inside = [name for name in archive.namelist() if name.partition("/")[2] == "data.pkl"]
            return _named_in(io.BytesIO(archive.read(inside[0])), 1) if inside else []


def _named_in(file: BinaryIO, pickles: int) -> list[str]:
    found: dict[str, None] = {}
    for _ in range(pickles):
        for argument in _globals(file):
            module, _, name = argument.partition(" ")
            # Pickles have the names of Python 2, also those that are written now.
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            found[f"{module}.{name}"] = None
    return list(found)


def _globals(file: BinaryIO) -> Iterator[str]:
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("GLOBAL", "INST"):
            yield str(argument)


# -- what is refused --------------------------------------------------------------------------------------------------


def _refuse_code(path: Path, names: list[str]) -> None:
    """Refuse what Python itself brings and is no data; of torch and numpy, torch's reader refuses it."""
    for name in names:
        is_pythons = name.partition(".")[0] in sys.stdlib_module_names and not name.startswith("__main__.")
        is_known = DATA.fullmatch(name) or name.startswith(("collections.", "_codecs.encode"))
        if is_pythons and not is_known:
            raise FileError(_would_run(path, name))


def _would_run(path: Path, name: str) -> str:
    return (
        f"'{path}' holds no weights alone: reading it would run {name}, which is not done. If you trust the file, load "
        "it by torch.load(path, weights_only=False) and write torch.save(model.state_dict(), new_path)."
    )


def holds_model(path: Path | str, name: str) -> str:
    """What to say of a file with a model instead of its parameters."""
    return (
        f"'{path}' holds a whole model of class {name}, whose code is not run. Load it where that code is, and write "
        "its parameters alone: torch.save(model.state_dict(), path)."
    )


def _told(path: Path, names: list[str], error: Exception) -> Exception:
    """An error of torch's reader, by the name in it if it is about one."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return FileError(_would_run(path, named[1]))
    if "Unsupported operand" in str(error):
        return FileError(
            f"'{path}' is written in a protocol of pickle that cannot be read safely. Write it anew by "
            "torch.save(state_dict, path) without pickle_protocol."
        )
    if "persistent_load" in str(error):  # older versions wrote a model's source code, too
        return FileError(holds_model(path, names[0]))
    if "DTensor" in str(error):
        return FileError(
            f"'{path}' holds parts of tensors that lie on several devices (DTensor). Save whole ones: "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True."
        )
    return error


def first_sentence(error: Exception) -> str:
    """What an error of another library says, in a line, after its type: some say nothing, or just a number."""
    said = " ".join(str(error).split(". ")[0].split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
