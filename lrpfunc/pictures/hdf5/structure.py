"""What a file of unknown origin holds, found out in a process of its own, which may hang, crash or ask for memory.

`examination` starts this module, hands the open file over as standard input, and reads lines of JSON. This process can
open no other file, has bounded memory and time, and reads no column: it says at which bytes each of them lies.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrpfunc.extras import extra
from lrpfunc.pictures.hdf5.schema import CATEGORIES, DETAILS, ERRORS, KINDS, Failure, Schema
from lrpfunc.pictures.hdf5.writing import built

if TYPE_CHECKING:
    import h5py

READY = "ready"
SECONDS, BYTES_PER_SECOND, MOST_SECONDS = 5, 10_000_000, 60  # of the processor
BASE_BYTES, SHARE = 1 << 26, 4  # memory: this much, and so many times the file
TEXTS = 64  # that are read at once
NAME_BYTES, PIXELS, DETAILS_BYTES, DEPTH = 1 << 16, 1 << 31, 1 << 20, 8
KNOWN = {
    **dict.fromkeys(("model", "parameters", "source", "names", "shard"), str),
    **dict.fromkeys(("samples", "batch"), int),
    "targets": list,
}  # types of details that someone relies on


def _library() -> Any:
    """What reads HDF5."""
    return extra("h5py", "cli", "reading HDF5")


class RefusedError(Exception):
    """The file is not one of a run: why."""


def main() -> None:
    """Print what the file at standard input holds, or why it is refused, as lines of JSON."""
    library = _library()
    source = Source(0, "rb", closefd=False)
    size = os.fstat(0).st_size
    _describe_a_good_one()  # which loads what is loaded when it is first used: then, no file can be opened
    _limit(size)
    print(READY, flush=True)
    try:
        try:
            file = library.File(source, "r")
        except OSError:
            raise RefusedError("is no HDF5 file, or a damaged one") from None
        for line in described(file, size):
            print(json.dumps(line))
        print(json.dumps({"whole": True}))
    except RefusedError as error:
        print(json.dumps({"refused": str(error)}))
    except Exception:  # what the library finds in a damaged file, it tells in any way
        print(json.dumps({"refused": "is damaged: parts of it cannot be read"}))
    sys.stdout.flush()
    os._exit(0)  # nothing of a damaged file is to be closed in order


def _describe_a_good_one() -> None:
    library = _library()
    memory, _ = built(Schema(1, (1, 1, 1), 1, 1), {"model": "ä"}, ["ä"], [Failure(0, "ä", "ä")])
    with library.File(memory, "r") as file:
        json.dumps(list(described(file, memory.size)))


class Source(io.FileIO):
    """A file of which less than asked for is an error; the library would take what was in memory before."""

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while view:
            count = super().readinto(view)
            if not count:
                raise OSError("the file ends here")
            view = view[count:]
        return memoryview(buffer).nbytes


def _limit(size: int) -> None:
    """Bound memory and time, and open nothing more, so that no link leads anywhere; where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    seconds = min(SECONDS + size // BYTES_PER_SECOND, MOST_SECONDS) + int(time.process_time()) + 1
    limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 3}
    statm = Path("/proc/self/statm")
    if statm.exists():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = now + BASE_BYTES + SHARE * size
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))


# -- the checks -------------------------------------------------------------------------------------------------------


def described(file: h5py.File, size: int) -> Iterator[dict[str, Any]]:
    """Schema, places and details in one line; names of classes and failures in as many as they need."""
    details = _details(file)
    datasets = {name: _own(file, name, size) for name in (*Schema(0, (0, 0, 0), 0, 0).columns(), CATEGORIES, ERRORS)}
    schema = _schema(datasets)
    if KINDS.get(details.get("output", {}).get("kind")) and schema.classes != 1:
        raise _not(f"of one logit for or against a class there is one, but it has {schema.classes}")
    offsets = _places(datasets, schema, size)
    yield {"schema": schema, "offsets": offsets, "details": details}
    for names in _texts(datasets[CATEGORIES], size):
        yield {"categories": names}
    for failures in _failures(datasets[ERRORS], size):
        yield {"failures": failures}


def _not(reason: str) -> RefusedError:
    return RefusedError(f"is an HDF5 file, but not one that `lrpfunc dataset` wrote: {reason}")


def _own(file: h5py.File, name: str, size: int) -> h5py.Dataset:
    """A dataset that is in the file itself, in one piece."""
    library = _library()
    if not file.id.links.exists(name.encode()):
        raise _not(f"it has no '{name}'")
    if file.id.links.get_info(name.encode()).type != library.h5l.TYPE_HARD:
        raise _not(f"'{name}' is a link to something else")
    dataset = file[name]
    if not isinstance(dataset, library.Dataset):
        raise _not(f"'{name}' is no dataset")
    creation = dataset.id.get_create_plist()
    if creation.get_layout() == library.h5d.VIRTUAL or creation.get_external_count():
        raise _not(f"the values of '{name}' are to come from another file")
    if creation.get_layout() != library.h5d.CONTIGUOUS or creation.get_nfilters():
        raise _not(f"'{name}' is in pieces or compressed")
    if dataset.shape is None or dataset.size * dataset.dtype.itemsize > size:
        raise _not(f"'{name}' would be larger than the file")
    return dataset


def _schema(datasets: dict[str, h5py.Dataset]) -> Schema:
    """What the shapes say. Each column must be as they say, too."""
    attribution, prediction, file = (datasets[name] for name in ("attribution", "prediction", "file"))
    if attribution.ndim != 4 or prediction.ndim != 2:
        raise _not("'attribution' needs four dimensions and 'prediction' two")
    rows, *image = attribution.shape
    classes, name_bytes = prediction.shape[1], file.dtype.itemsize
    if min(*image, classes) < 1 or max(int(np.prod(image, dtype=object)), classes) > PIXELS or name_bytes > NAME_BYTES:
        raise _not(
            f"rows of relevance {tuple(image)}, {classes} classes and names of {name_bytes} bytes are not in use"
        )
    schema = Schema(rows, tuple(image), classes, name_bytes)
    for name, (shape, dtype) in schema.columns().items():
        found = datasets[name]
        if found.dtype != dtype or found.shape != (rows, *shape):
            raise _not(
                f"'{name}' should be {dtype.str[1:]} of shape {(rows, *shape)}, but is {found.dtype} of {found.shape}"
            )
    return schema


def _places(datasets: dict[str, h5py.Dataset], schema: Schema, size: int) -> dict[str, int]:
    """At which byte each column begins. None reaches past the end or into another one."""
    if not schema.rows:
        return {}
    offsets = {name: datasets[name].id.get_offset() for name in schema.columns()}
    if None in offsets.values():
        raise _not("it has rows, but no values in them")
    end = 0
    for name, offset in sorted(offsets.items(), key=lambda item: item[1]):
        if offset < end:
            raise _not("its columns overlap")
        end = offset + datasets[name].size * datasets[name].dtype.itemsize
    if end > size:
        raise RefusedError("is cut off: columns reach past its end")
    return offsets


# -- texts ------------------------------------------------------------------------------------------------------------


def _details(file: h5py.File) -> dict[str, Any]:
    library = _library()
    if DETAILS not in file.attrs:
        raise _not(f"it has no attribute '{DETAILS}'")
    attribute = library.h5a.open(file.id, DETAILS.encode())
    if not isinstance(attribute.get_type(), library.h5t.TypeStringID) or attribute.shape != ():
        raise _not(f"its attribute '{DETAILS}' is no text")
    text = file.attrs[DETAILS]
    if len(text) > DETAILS_BYTES:
        raise _not(f"its attribute '{DETAILS}' is longer than {DETAILS_BYTES} bytes")
    try:
        details = json.loads(text, parse_constant=_number, parse_float=_number)
    except (ValueError, RecursionError):
        raise _not(f"its attribute '{DETAILS}' is no JSON") from None
    if not isinstance(details, dict) or _depth(details) > DEPTH:
        raise _not(f"its attribute '{DETAILS}' should be a JSON object, nested {DEPTH} deep at most")
    if "output" in details and not _is_meaning(details["output"]):
        raise _not(f"its detail 'output' is {details['output']!r:.80}, which means nothing")
    wrong = next((name for name, kind in KNOWN.items() if not isinstance(details.get(name, kind()), kind)), None)
    if wrong:
        raise _not(f"its detail '{wrong}' should be {KNOWN[wrong].__name__}, but is {details[wrong]!r:.40}")
    return details


def _is_meaning(output: Any) -> bool:
    """Whether it is one of `outputs.Meaning.as_json`."""
    types = {"kind": str, "unit": str, "are_probabilities": bool}
    return (
        isinstance(output, dict)
        and {name: type(value) for name, value in output.items()} == types
        and output["kind"] in KINDS
    )


def _number(text: str) -> float:
    """A number in JSON. Errors: `ValueError` if it is none, or larger than any."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _depth(value: Any, limit: int = DEPTH) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max((_depth(each, limit - 1) for each in inner), default=0) if limit >= 0 else 0


def _texts(dataset: h5py.Dataset, size: int) -> Iterator[list[str]]:
    """The strings of a dataset. Together they are no longer than the file, though many may stand in one place of it."""
    library = _library()
    if dataset.ndim != 1 or library.check_string_dtype(dataset.dtype) is None:
        raise _not(f"'{CATEGORIES}' should be a list of texts, but is {dataset.dtype} of shape {dataset.shape}")
    for start in range(0, len(dataset), TEXTS):
        part = [_decoded(text) for text in dataset[start : start + TEXTS]]
        size = _spent(size, part)
        yield part


def _failures(dataset: h5py.Dataset, size: int) -> Iterator[list[tuple[int, str, str]]]:
    library = _library()
    dtype = dataset.dtype
    fits = dtype.names == ("index", "file", "reason") and dtype["index"] == np.dtype("<i8")
    if dataset.ndim != 1 or not fits or not all(library.check_string_dtype(dtype[n]) for n in ("file", "reason")):
        raise _not(f"'{ERRORS}' should be a list of (index, file, reason), but is {dtype} of shape {dataset.shape}")
    for start in range(0, len(dataset), TEXTS):
        part = [(int(i), _decoded(name), _decoded(reason)) for i, name, reason in dataset[start : start + TEXTS]]
        if any(index < 0 for index, *_ in part):
            raise _not(f"a number in '{ERRORS}' is negative")
        size = _spent(size, [text for _, *texts in part for text in texts])
        yield part


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _spent(size: int, texts: list[str]) -> int:
    size -= sum(map(len, texts))
    if size < 0:
        raise _not("its texts are longer than the file")
    return size
