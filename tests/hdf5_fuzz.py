"""Damaged and hostile files of runs, made by chance from a good one: `python -m tests.hdf5_fuzz [how many] [seed]`.

Each is given to a report, a merge or a resumed run. It must be read or refused in one line: no other error, no hang, no
memory of more than four times the file, and no byte of another file, which links and storages in it point at.
"""

import base64
import io
import json
import os
import random
import re
import resource
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from lrpfunc.errors import FileError, InputError
from lrpfunc.pictures import hdf5, merging
from lrpfunc.pictures.report import page
from lrpfunc.pictures.workfile import claimed

ROWS, IMAGE, CLASSES = 6, (3, 5, 7), 4
MARKER = b"TopSecr3"
BASE, SHARE = 64 << 20, 4  # memory: this much, and so many times the file
SECONDS = 60.0
DETAILS = {
    "model": "net", "weights": None, "parameters": "ab", "preprocess": "Standard()", "mean": [0.5], "std": [0.5],
    "categories": "cd", "output": {"kind": "classes", "unit": "", "are_probabilities": False}, "composite": "epsilon",
    "canonized": True, "targets": ["top"], "shard": "1/2", "source": "folder", "samples": 13, "names": "ef", "batch": 4,
    "device": "cpu", "versions": {"python": "3"},
}  # fmt: skip


def write_good(path, shard=1):
    generator = np.random.default_rng(shard)
    prediction = generator.normal(size=(ROWS, CLASSES)).astype("f4")
    target = prediction.argmax(1)
    columns = {
        "attribution": generator.normal(size=(ROWS, *IMAGE)),
        "prediction": prediction,
        "label": generator.integers(-1, CLASSES, ROWS),
        "index": np.arange(ROWS) * 2 + shard - 1,
        "target": target,
        "logit": prediction[np.arange(ROWS), target],
        "relevance_sum": generator.normal(size=ROWS),
        "data": generator.integers(0, 256, (ROWS, *IMAGE)),
        "file": np.array([f"cat/{i}.png" for i in range(ROWS)], dtype="S9"),
    }
    failures = [hdf5.Failure(20 + shard, "dog/7.png", "is cut off"), hdf5.Failure(30 + shard, "dog/8.png", "is empty")]
    names = ["cat", "dog", "a long name " * 9, "ä"]
    schema = hdf5.Schema(ROWS, IMAGE, CLASSES, 9)
    hdf5.write(path, schema, DETAILS | {"shard": f"{shard}/2"}, names, failures, [(0, columns)])
    return path


# -- what is done to a file: functions of its path, of chance, and of a secret file -----------------------------------

ODD = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
COLUMNS = list(hdf5.Schema(0, (0, 0, 0), 0, 0).columns())
DATASETS = [*COLUMNS, hdf5.CATEGORIES, hdf5.ERRORS]


def _edited(path, function):
    data = bytearray(path.read_bytes())
    path.write_bytes(function(data) or data)


def flip(path, chance, secret):
    def edit(data):
        for _ in range(chance.choice([1, 1, 1, 2, 4, 16, 64])):
            data[chance.randrange(len(data))] = chance.randrange(256)

    _edited(path, edit)


def place_numbers(path, chance, secret):
    def edit(data):
        for _ in range(chance.choice([1, 1, 2, 4])):
            size = chance.choice([1, 2, 4, 8])
            at = chance.randrange(0, len(data) - 8)
            data[at : at + size] = (chance.choice(ODD) & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    _edited(path, edit)


def wipe(path, chance, secret):
    def edit(data):
        at, size = chance.randrange(len(data)), chance.choice([1, 8, 50, 200, 500, 2000])
        data[at : at + size] = bytes(min(size, len(data) - at))

    _edited(path, edit)


def wipe_heap(path, chance, secret):
    """The texts of a global heap, as in the file that the HDF5 library never finished reading."""

    def edit(data):
        heaps = [match.start() for match in re.finditer(b"GCOL", data)]
        at = chance.choice(heaps) + chance.randrange(0, 64)
        data[at : at + 200] = bytes(200)

    _edited(path, edit)


def move_bytes(path, chance, secret):
    def edit(data):
        size, here, there = chance.randrange(1, 600), chance.randrange(len(data)), chance.randrange(len(data))
        data[here : here + size] = data[there : there + size]

    _edited(path, edit)


def cut(path, chance, secret):
    _edited(path, lambda data: bytes(data[: chance.randrange(len(data))]))


def lengthen(path, chance, secret):
    _edited(path, lambda data: bytes(data) + os.urandom(chance.randrange(1, 5000)))


def _replaced(path, name, make):
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        make(file)


def drop(path, chance, secret):
    _replaced(path, chance.choice(DATASETS), lambda file: None)


def reshape(path, chance, secret):
    name = chance.choice(COLUMNS)
    with h5py.File(path, "r") as file:
        values = file[name][:]
    values = chance.choice(
        [values[:-1], values[:0], np.concatenate([values, values]), values[None], values.reshape(-1), values[..., None]]
    )
    _replaced(path, name, lambda file: file.create_dataset(name, data=values))


def retype(path, chance, secret):
    name = chance.choice(COLUMNS)
    dtype = chance.choice(["<f8", ">f4", ">i8", "i1", "u8", "?", "c8", "S3", "S9", "V4", h5py.string_dtype(), "f2"])
    with h5py.File(path, "r") as file:
        shape = file[name].shape
    _replaced(path, name, lambda file: file.create_dataset(name, shape, dtype))


def revalue(path, chance, secret):
    name = chance.choice(["label", "target", "index", "prediction", "attribution", "logit", "relevance_sum", "file"])
    with h5py.File(path, "r+") as file:
        dataset = file[name]
        place = tuple(chance.randrange(size) for size in dataset.shape)
        if dataset.dtype.kind == "i":
            dataset[place] = chance.choice([-1, -2, CLASSES, 1 << 40, -(1 << 63), (1 << 63) - 1])
        elif dataset.dtype.kind == "f":
            dataset[place] = chance.choice([np.nan, np.inf, -np.inf, 3.4e38, 1e-45, -0.0])
        else:
            dataset[place] = chance.choice([b"\xff\xfe", b"</script>", b"", b"\x1b[31m", b"../../x"])


def soft_link(path, chance, secret):
    name = chance.choice(DATASETS)
    target = chance.choice(["/label", "/nowhere", f"/{name}"])
    _replaced(path, name, lambda file: file.__setitem__(name, h5py.SoftLink(target)))


def external_link(path, chance, secret):
    name = chance.choice(DATASETS)
    other = path.with_name("other.h5")
    _replaced(path, name, lambda file: file.__setitem__(name, h5py.ExternalLink(str(other), f"/{name}")))


def external_storage(path, chance, secret):
    name = chance.choice(COLUMNS)
    with h5py.File(path, "r") as file:
        shape, dtype = file[name].shape, file[name].dtype
    size = int(np.prod(shape)) * dtype.itemsize
    _replaced(
        path,
        name,
        lambda file: file.create_dataset(name, shape, dtype, external=[(str(secret), chance.choice([0, 5]), size)]),
    )


def virtual(path, chance, secret):
    name = chance.choice(COLUMNS)
    with h5py.File(path, "r") as file:
        shape, dtype = file[name].shape, file[name].dtype
    layout = h5py.VirtualLayout(shape, dtype)
    layout[:] = h5py.VirtualSource(chance.choice([str(path.with_name("other.h5")), "."]), name, shape)
    _replaced(path, name, lambda file: file.create_virtual_dataset(name, layout))


def in_pieces(path, chance, secret):
    name = chance.choice(DATASETS)
    with h5py.File(path, "r") as file:
        values, dtype = file[name][:], file[name].dtype
    kinds = [{"chunks": True}, {"compression": "gzip"}, {"maxshape": (None,) * values.ndim}, {"fletcher32": True}]
    options = chance.choice(kinds if name in COLUMNS else kinds[:3])  # texts take no checksums
    _replaced(path, name, lambda file: file.create_dataset(name, data=values, dtype=dtype, **options))


def vast(path, chance, secret):
    """Columns that would be larger than any memory, of which nothing is there."""
    names = chance.choice([[chance.choice(COLUMNS)], COLUMNS])
    rows = chance.choice([1 << 20, 1 << 40, 1 << 50])
    for name in names:
        with h5py.File(path, "r") as file:
            shape, dtype = (rows, *file[name].shape[1:]), file[name].dtype
        chunks = chance.choice([None, (1, *shape[1:])])
        _replaced(path, name, lambda file: file.create_dataset(name, shape, dtype, chunks=chunks))  # noqa: B023


def wide(path, chance, secret):
    """No rows, but of a vast size."""
    size = chance.choice([(1 << 30, 1 << 20, 1), (3, 1 << 31, 1 << 31), (0, 5, 7), (1 << 16, 1 << 14, 2)])
    for name in COLUMNS:
        with h5py.File(path, "r") as file:
            shape, dtype = file[name].shape, file[name].dtype
        shape = (0, *(size if name in ("attribution", "data") else shape[1:]))
        _replaced(path, name, lambda file: file.create_dataset(name, shape, dtype))  # noqa: B023


def no_dataset(path, chance, secret):
    name = chance.choice(DATASETS)
    makers = [
        lambda file: file.create_group(name),
        lambda file: file.create_dataset(name, data=7),
        lambda file: file.create_dataset(name, data=h5py.Empty("f4")),
        lambda file: file.__setitem__(name, np.dtype("f4")),
        lambda file: file.create_dataset(name, data=np.array([file.ref] * ROWS, dtype=h5py.ref_dtype)),
    ]
    _replaced(path, name, chance.choice(makers))


def texts(path, chance, secret):
    """Names of classes and failures: of other types, too many, too long, one text a million times."""
    text = h5py.string_dtype()
    failure = np.dtype([("index", "<i8"), ("file", text), ("reason", text)])
    name, values, dtype = chance.choice(
        [
            (hdf5.CATEGORIES, ["a"] * (CLASSES + 1), text),
            (hdf5.CATEGORIES, [b"\xff", b"\xed\xa0\x80", b"x", b""], text),
            (hdf5.CATEGORIES, [["a"] * CLASSES], text),
            (hdf5.CATEGORIES, np.arange(CLASSES), "i8"),
            (hdf5.CATEGORIES, np.array([b"a", b"b", b"c", b"d"]), "S1"),
            (hdf5.CATEGORIES, ["a" * 300_000] * 4, text),
            (hdf5.ERRORS, [(-5, "a", "b")], failure),
            (hdf5.ERRORS, [(5, "a")], np.dtype([("index", "<i8"), ("file", text)])),
            (hdf5.ERRORS, [(5, 6, 7)], np.dtype([("index", "<i8"), ("file", "<i8"), ("reason", "<i8")])),
            (hdf5.ERRORS, [(1 << 62, "<script>", "\x1b[31m")], failure),
            (hdf5.ERRORS, ["a", "b"], text),
        ]
    )
    _replaced(path, name, lambda file: file.create_dataset(name, data=np.array(values, dtype=dtype), dtype=dtype))


def repeat_text(path, chance, secret):
    """A long text that thousands of entries point at."""
    name, text = chance.choice(DATASETS[-2:]), h5py.string_dtype()
    failure = np.dtype([("index", "<i8"), ("file", text), ("reason", text)])
    count = chance.choice([500, 5000])
    long = "x" * 50_000
    first = {hdf5.CATEGORIES: (long, text), hdf5.ERRORS: ((1, long, "y"), failure)}[name]
    _replaced(path, name, lambda file: file.create_dataset(name, data=np.array([first[0]] * 2, dtype=first[1])))
    with h5py.File(path, "r+") as file:
        offset, size = file[name].id.get_offset(), file[name].dtype.itemsize
        entry = path.read_bytes()[offset : offset + (16 if name == hdf5.CATEGORIES else 40)]
        del file[name]
        made = file.create_dataset(name, (count,), first[1])
        made[:] = np.array([("" if name == hdf5.CATEGORIES else (1, "", ""))] * count, dtype=first[1])
        offset = made.id.get_offset()
    assert size
    _edited(path, lambda data: data.__setitem__(slice(offset, offset + count * len(entry)), entry * count))


def attribute(path, chance, secret):
    nested = "[" * 100_000 + "]" * 100_000
    value = chance.choice(
        [
            None, 7, 1.5, "", "no JSON", "[1]", "null", '"text"', "{", nested, '{"model": ' + nested + "}", b"\xff{}",
            ["{}"], h5py.Empty("f4"), np.bytes_(b"{}"), '{"model": NaN}', '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}",
            json.dumps({"a": "x" * 60_000}), '{"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": 1}}}}}}}}}',
        ]
    )  # fmt: skip
    with h5py.File(path, "r+") as file:
        del file.attrs[hdf5.DETAILS]
        if value is not None:
            file.attrs[hdf5.DETAILS] = value


def detail(path, chance, secret):
    names = [*DETAILS, "nobody knows it", "<b>", "\ud800"]
    values = [None, 7, -1, 1 << 70, 1.5, True, "", "x" * 999, [], [[]], {}, {"kind": 7}, "0/0", "9/2", "1+2/3", HOSTILE]
    details = DETAILS | {chance.choice(names): chance.choice(values) for _ in range(chance.choice([1, 1, 2]))}
    with h5py.File(path, "r+") as file:
        file.attrs[hdf5.DETAILS] = json.dumps(details)


def large_attribute(path, chance, secret):
    with h5py.File(path, "r+") as file:
        del file.attrs[hdf5.DETAILS]
        names = chance.choice([(hdf5.DETAILS,), ("other",)])
        for name in names:
            file.attrs[name] = json.dumps({"a": "x" * chance.choice([100_000, 2_000_000])})


HOSTILE = "</script><img src=x onerror=alert(1)>"
OF_BYTES = [flip, flip, place_numbers, place_numbers, wipe, wipe_heap, move_bytes, cut, lengthen]
OF_PARTS = [
    drop, reshape, retype, revalue, soft_link, external_link, external_storage, virtual, in_pieces, vast, wide,
    no_dataset, texts, repeat_text,
]  # fmt: skip
OF_ATTRIBUTES = [attribute, detail, large_attribute]


# -- what must not happen ---------------------------------------------------------------------------------------------


def traces():
    """How the marker would look in a page: as text, and as the numbers that its bytes are."""
    shifted = [(MARKER * 3)[start : start + 8] for start in range(8)]
    numbers = [float(np.frombuffer(each[:4], dtype="<f4")[0]) for each in shifted]
    floats = {repr(float(f"{number:.7g}")) for number in numbers}
    whole = {str(int.from_bytes(each, "little")) for each in shifted}
    return {MARKER.decode(), *floats, *whole}


def leaks(text):
    """What of the secret is in a page: as text, as numbers, or in its pictures."""
    found = {each for each in traces() if each in text}
    for packed in re.findall(r"[A-Za-z0-9+/=]{40,}", text):
        data = base64.b64decode(packed + "=" * (-len(packed) % 4))
        if data.startswith(b"\x89PNG"):
            data = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1).tobytes()
        elif data[:1] == b"\x78":
            data = zlib.decompress(data)
        if any((MARKER * 2)[start : start + 6] in data for start in range(8)):
            found.add("in a picture")
    return found


def report(path, folder):
    out = folder / "page.html"
    page.write([path], out, overwrite=True)
    found = leaks(out.read_text(encoding="utf-8"))
    assert not found, f"a page holds another file: {found}"


def compare(path, folder):
    """As the second run of a page, beside a good one of the same samples."""
    out = folder / "page.html"
    page.write([folder / "good.h5"], out, overwrite=True, beside=[path])
    assert not leaks(out.read_text(encoding="utf-8")), "a page holds another file"


def merge(path, folder):
    merging.merge([path, folder / "second.h5"], folder / "merged.h5", incomplete=True, overwrite=True)


def resume(path, folder):
    """As a run that goes on with it, and as one that finds it finished."""
    work = folder / "run.h5.part"
    os.replace(path, work)
    try:
        with claimed(folder / "run.h5", resume=True, overwrite=False) as workfile:
            assert workfile.begun(DETAILS)
            workfile.progress()
    finally:
        work.unlink()


USES = [report, report, compare, merge, resume]


def bounded(size):
    """From now on no more memory than a file of this size may need."""
    now = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (now + BASE + SHARE * size, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def unbounded():
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def attempt(number, seed, folder, good, secret):
    """One file, made and used: what was changed, how it ended, and how long it took."""
    chance = random.Random(f"{seed} {number}")
    change = chance.choice(chance.choice([OF_BYTES, OF_BYTES, OF_PARTS, OF_PARTS, OF_ATTRIBUTES]))
    use = chance.choice(USES)
    path = folder / "file.h5"
    path.write_bytes(good.read_bytes())
    change(path, chance, secret)
    began = time.monotonic()
    bounded(path.stat().st_size)
    try:
        use(path, folder)
        outcome = "read"
    except (FileError, InputError) as error:
        outcome = "refused" if "\n" not in str(error) else f"refused in more than a line: {error}"
    finally:
        unbounded()
    seconds = time.monotonic() - began
    assert seconds < SECONDS, f"it took {seconds:.0f} s"
    assert outcome in ("read", "refused"), outcome
    return change.__name__, outcome, seconds


def main(count=2000, seed=0):
    """The number of files that went wrong."""
    ended, wrong, longest = Counter(), 0, 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        good, secret = write_good(folder / "good.h5"), folder / "secret.txt"
        secret.write_bytes(MARKER * 1000)
        write_good(folder / "second.h5", shard=2)
        write_good(folder / "other.h5")
        _edited(folder / "other.h5", lambda data: data.replace(b"cat/", MARKER[:4]))
        report(good, folder)  # all is imported now
        for number in range(count):
            try:
                change, outcome, seconds = attempt(number, seed, folder, good, secret)
                ended[change, outcome] += 1
                longest = max(longest, seconds)
            except Exception as error:
                wrong += 1
                print(f"number {number} of seed {seed}: {type(error).__name__}: {error}", flush=True)
            left = {path.name for path in folder.iterdir()} - {
                "good.h5", "second.h5", "other.h5", "secret.txt", "file.h5", "page.html", "merged.h5", "run.h5.journal",
            }  # fmt: skip
            if left:
                wrong += 1
                print(f"number {number} of seed {seed} left {left}", flush=True)
                for name in left:
                    (folder / name).unlink()
    for change in dict.fromkeys([*OF_BYTES, *OF_PARTS, *OF_ATTRIBUTES]):
        print(
            f"{change.__name__:20}{ended[change.__name__, 'refused']:6} refused{ended[change.__name__, 'read']:6} read"
        )
    print(f"{count} files of seed {seed}: {wrong} wrong, {longest:.1f} s at most")
    return wrong


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])) > 0)
