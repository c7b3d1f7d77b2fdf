"""What a file is by its first bytes, whatever it is called: weights, or something else, which one line says."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

from lrpfunc.errors import FileError

SAFETENSORS, ARCHIVE, LEGACY, ARRAYS, INDEX = "safetensors", "archive", "legacy", "arrays", "index"
LONGEST_HEADER = 100_000_000  # bytes, of safetensors
UNPACKED = 2**30  # bytes that any archive may hold
DENSEST = 20  # times its own size that a larger one may hold; weights hardly shrink, and crafted files do
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickled number before everything else

PORT = "lrpfunc explains PyTorch models: bring the model to PyTorch and give torch.save(model.state_dict(), path)."
AGAIN = "Copy or download it again."
UNPACK = "Unpack it, and give the file with the weights in it."
WEIGHTS = "Give the file with the weights: torch.save(model.state_dict(), path) or safetensors."
ONNX = "The package onnx2torch makes a module of it, to be given as module.path:factory."
SCRIPT = "Save its parameters: torch.save(torch.jit.load(path).state_dict(), new_path)."
PROGRAM = "Save its parameters: torch.save(torch.export.load(path).state_dict, new_path)."


class Magic(NamedTuple):
    """What stands where in files of a kind, what they are, and what to do instead."""

    at: int
    bytes: bytes
    what: str
    remedy: str


KINDS = (
    Magic(0, b"\x89HDF\r\n\x1a\n", "HDF5, as Keras keeps weights", PORT),
    Magic(4, b"TFL3", "a model of TFLite", PORT),
    Magic(4, b"PTMF", "a model for PyTorch Mobile", WEIGHTS),
    Magic(4, b"ET12", "a program of ExecuTorch", WEIGHTS),
    Magic(0, b"GGUF", "GGUF, weights of llama.cpp", PORT),
    Magic(0, b"ggml", "GGML, weights of llama.cpp", PORT),
    Magic(0, b"ftrt", "an engine of TensorRT", WEIGHTS),
    Magic(0, b"\x12\x01\x00\x00\x00\x00\x00\x00", "parameters of MXNet", PORT),
    Magic(0, b"7767517\n", "a network of ncnn", PORT),
    Magic(0, b"MATLAB 5.0", "a file of MATLAB", PORT),
    Magic(0, b"model_checkpoint_path:", "TensorFlow's list of checkpoints", PORT),
    Magic(0, b"version https://git-lfs", "a pointer of Git LFS and not the file itself", "Fetch it by `git lfs pull`."),
    Magic(0, b"\x1f\x8b", "a gzip archive", UNPACK),
    Magic(0, b"BZh", "a bzip2 archive", UNPACK),
    Magic(0, b"\xfd7zXZ\x00", "an xz archive", UNPACK),
    Magic(0, b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    Magic(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    Magic(0, b"Rar!", "a rar archive", UNPACK),
    Magic(257, b"ustar", "a tar archive", UNPACK),
    Magic(0, b"\x89PNG", "a picture (PNG)", WEIGHTS),
    Magic(0, b"\xff\xd8\xff", "a picture (JPEG)", WEIGHTS),
    Magic(0, b"GIF8", "a picture (GIF)", WEIGHTS),
    Magic(0, b"RIFF", "a file of pictures or sound (RIFF)", WEIGHTS),
    Magic(0, b"%PDF", "a PDF", WEIGHTS),
    Magic(
        0,
        b"\x93NUMPY",
        "a single array of numpy",
        "Give arrays by their parameters' names: numpy.savez(path, **arrays).",
    ),
    Magic(0, b"\x7fELF", "a program", WEIGHTS),
    Magic(0, b"MZ", "a program", WEIGHTS),
    Magic(0, b"SQLite format 3", "a database (SQLite)", WEIGHTS),
)
PAGES = ("<!doctype", "<html", "<head", "<body", "<?xml", "<error", "<script", "<!--")


def kind(path: Path) -> str:
    """How a file of weights is to be read: one of the words above. Errors: `FileError` that says what it is instead."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
        file.seek(max(0, size - 8))
        tail = file.read(8)
    if not size:
        raise refused(path, "empty", AGAIN)
    if head.startswith(b"PK"):
        return _in_zip(path)
    if head.startswith(LEGACY_MAGIC):
        return LEGACY
    if _is_safetensors(head):
        return SAFETENSORS
    if tail == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb":  # a table of LevelDB
        raise refused(path, "the index of a TensorFlow checkpoint", PORT)
    for magic in KINDS:
        if head[magic.at :].startswith(magic.bytes):
            raise refused(path, magic.what, magic.remedy)
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        raise refused(
            path, "a plain pickle, which may run anything", "Load it where you trust it, and write it by torch.save."
        )
    _refuse_protocol_buffers(path, head)
    return _in_text(path, head)


def refused(path: Path, what: str, remedy: str) -> FileError:
    """The error for a file that is something else."""
    return FileError(f"'{path}' is {what}. {remedy}")


def _is_safetensors(head: bytes) -> bool:
    """A header's length in eight bytes, then the header, which is JSON."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    return struct.unpack("<Q", head[:8])[0] <= LONGEST_HEADER


def _in_zip(path: Path) -> str:
    """PyTorch and numpy write zip archives; so do Keras, torch.export and people."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile:
        raise refused(path, "a zip archive that breaks off, as PyTorch and others write them", AGAIN) from None
    names = {entry.filename for entry in entries}
    inner = {name.partition("/")[2] for name in names}
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(UNPACKED, DENSEST * path.stat().st_size):
        raise refused(path, f"an archive that unpacks to {unpacked:,} bytes", "Pack it anew without compression.")
    if "constants.pkl" in inner:
        raise refused(path, "TorchScript", SCRIPT)
    if "data.pkl" in inner:
        return ARCHIVE
    if "archive_format" in inner | names or any(name.endswith("serialized_exported_program.json") for name in names):
        raise refused(path, "a program of torch.export", PROGRAM)
    if "model.weights.h5" in names:
        raise refused(path, "a model of Keras", PORT)
    if names and all(name.endswith(".npy") for name in names):
        return ARRAYS
    listed = ", ".join(sorted(names)[:3]) or "nothing"
    raise refused(path, f"a zip archive with {listed}", UNPACK)


def _refuse_protocol_buffers(path: Path, head: bytes) -> None:
    """Those begin with the number of a field and its type; what ONNX and TensorFlow put there tells them apart."""
    if len(head) < 3 or head[0] not in (0x08, 0x0A):
        return
    if head[0] == 0x08 and head[1] == 1 and head[2] == 0x12 and path.suffix == ".pb":
        raise refused(path, "a SavedModel of TensorFlow", PORT)
    if head[0] == 0x08 and 0 < head[1] < 0x20 and head[2] in (0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42):
        raise refused(path, "a model of ONNX", ONNX)
    if path.suffix in (".pb", ".caffemodel", ".onnx", ".mlmodel"):
        raise refused(path, f"a protocol buffer, as {path.suffix} says", PORT)


def _in_text(path: Path, head: bytes) -> str:
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) < 4096 else "ignore").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or any(not (letter.isprintable() or letter.isspace()) for letter in text):
        begins = head[:8].hex(" ")
        raise refused(path, f"no kind of weights that is known: it begins with the bytes {begins}", WEIGHTS)
    if text.lower().startswith(PAGES):
        raise refused(path, "a web page, such as the message of a download that failed", AGAIN)
    if text[0] in "{[":
        if b'"weight_map"' in head or _has_weight_map(path):
            return INDEX
        raise refused(path, "JSON", WEIGHTS)
    raise refused(path, f"text, which begins with '{' '.join(text[:40].split())}'", WEIGHTS)


def _has_weight_map(path: Path) -> bool:
    """Whether it is the list of shards that a large model has; its other entries may be long."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return path.stat().st_size < LONGEST_HEADER and "weight_map" in json.load(file)
    except (OSError, ValueError, TypeError, RecursionError):
        return False
