"""DICOM files as pictures: a frame in the window that the file asks for, as a viewer shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lrpfunc.errors import FileError
from lrpfunc.extras import extra
from lrpfunc.pictures.images.gray import Window, in_bytes, spread

DEFLATED = "1.2.840.10008.1.2.1.99"
LARGEST_DEFLATED = 2**20  # bytes; it can unpack to a thousand times as many
READING = "reading DICOM"


def frames(path: Path) -> int:
    """How many pictures a file holds. Errors: nearly any."""
    return _frames(_header(path))


def size(path: Path) -> tuple[int, int]:
    """Columns and rows of its pictures, before any is decoded. Errors: `FileError` if it has none; nearly any."""
    header = _header(path)
    if "Rows" not in header or "Columns" not in header:
        what = header.get("SOPClassUID")
        raise FileError(f"is DICOM without a picture ({getattr(what, 'name', None) or 'of no class'})")
    return int(header.Columns), int(header.Rows)


def picture(path: Path, frame: int, window: Window | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """A frame, from 0, as bytes (H, W) or (H, W, 3), with what to say of it. Errors: `FileError`; nearly any."""
    pixels = extra("pydicom.pixels", "medical", READING)
    header = _header(path)
    if frame >= _frames(header):
        raise FileError(f"has {_frames(header)} frames, and none with the number {frame + 1}")
    values = _values(path, header, frame)
    if values.ndim == 3:
        return _in_color(values, header.get("BitsStored", 8)), ()
    if header.get("PhotometricInterpretation") == "PALETTE COLOR":
        table = pixels.apply_color_lut(values, header)
        return _in_color(table[..., :3], header.RedPaletteColorLookupTableDescriptor[2]), ()
    shown, said = _in_window(values, header, frame, window)
    return (255 - shown if header.get("PhotometricInterpretation") == "MONOCHROME1" else shown), said


def _values(path: Path, header: Any, frame: int) -> np.ndarray:
    """What is stored of a frame. Errors: `FileError` for what no decoder here can read; nearly any."""
    pydicom, pixels = extra("pydicom", "medical", READING), extra("pydicom.pixels", "medical", READING)
    syntax = header.file_meta.get("TransferSyntaxUID")
    try:
        if syntax == DEFLATED:  # all of it must be unpacked
            return pixels.pixel_array(pydicom.dcmread(path), index=frame)
        return pixels.pixel_array(str(path), index=frame, force=True)
    except RuntimeError as error:  # of decoders, with all that each of them says
        raise FileError(
            f"cannot be decoded ({getattr(syntax, 'name', syntax)}). Write it uncompressed: gdcmconv --raw"
        ) from error


def _header(path: Path) -> Any:
    """All but the pixels."""
    pydicom = extra("pydicom", "medical", READING)
    meta = extra("pydicom.filereader", "medical", READING).read_file_meta_info(path) if _is_marked(path) else {}
    if meta.get("TransferSyntaxUID") == DEFLATED and path.stat().st_size > LARGEST_DEFLATED:
        raise FileError(
            "is deflated DICOM of more than a megabyte, which is not unpacked. Write it as it is: dcmconv +te"
        )
    return pydicom.dcmread(path, stop_before_pixels=True, force=True)


def _is_marked(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _frames(header: Any) -> int:
    return max(1, int(header.get("NumberOfFrames") or 1))


def _in_color(values: np.ndarray, bits: int) -> np.ndarray:
    return values if values.dtype == np.uint8 and bits == 8 else in_bytes(values, Window(0, 2**bits - 1))


def _in_window(
    values: np.ndarray, header: Any, frame: int, window: Window | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Gray values in the user's window, the file's, or their own range."""
    pixels = extra("pydicom.pixels", "medical", READING)
    padding = header.get("PixelPaddingValue")
    is_padding = values == padding if isinstance(padding, int) else None
    stored = values
    values = pixels.apply_modality_lut(stored, _with(header, frame, "PixelValueTransformationSequence", "RescaleSlope"))
    if window is not None:
        return in_bytes(values, window), ()
    asking = _with(header, frame, "FrameVOILUTSequence", "WindowCenter")
    if "VOILUTSequence" in asking:
        table = pixels.apply_voi_lut(values, asking, prefer_lut=True)
        return in_bytes(table, Window(0, 2 ** asking.VOILUTSequence[0].LUTDescriptor[2] - 1)), ()
    center, width = _first(asking.get("WindowCenter")), _first(asking.get("WindowWidth"))
    if center is not None and width is not None and width > 0:
        return _windowed(values, center, width, str(asking.get("VOILUTFunction", "LINEAR"))), ()
    bits = int(header.get("BitsStored", 16))
    if bits <= 8 and not header.get("PixelRepresentation") and np.array_equal(values, stored):
        return in_bytes(values, Window(0, 2**bits - 1)), ()
    own = spread(values, is_padding)
    said = f"it asks for no window, so its values are shown {own.ends}"
    return in_bytes(values, own), (f"{said}; --window {own} says so for all files",)


def _windowed(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """DICOM's functions, PS3.3 C.11.2.1.2 and .3."""
    if function == "SIGMOID":
        with np.errstate(over="ignore"):  # far below the window: 255 / inf is black, as it should be
            return np.round(255 / (1 + np.exp(-4 * (values.astype(np.float64) - center) / width))).astype(np.uint8)
    if function == "LINEAR_EXACT":
        return in_bytes(values, Window(center - width / 2, center + width / 2))
    return in_bytes(values, Window(center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2))


def _with(header: Any, frame: int, sequence: str, name: str) -> Any:
    """What says something of a frame: the file, or what files of many frames have for each or for all of them."""
    if name in header:
        return header
    return next(_functional(header, frame, sequence), header)


def _functional(header: Any, frame: int, sequence: str) -> Iterator[Any]:
    each, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    for group in (each[frame] if each and frame < len(each) else None, shared[0] if shared else None):
        if group is not None and group.get(sequence):
            yield group[sequence][0]


def _first(value: Any) -> float | None:
    """The first of one or several numbers."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float)) else value[0])
