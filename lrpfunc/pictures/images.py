"""Image files as people have them, as RGB pictures: rotated by cameras, 16 bits deep, transparent, in ink, broken."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lrpfunc.errors import FileError

if TYPE_CHECKING:
    from PIL import Image

# fmt: off
ENDINGS = frozenset((
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx",
    ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on
PAPER = (255, 255, 255)  # what shows through transparent pixels
SIXTEEN_BITS = 65535


def read(path: str | Path) -> Image.Image:
    """An image file in RGB, as a viewer shows it.

    Turned as its EXIF data says; the first frame of an animation; transparency on white; 16 bits reduced to 8.
    Errors: `FileError` with the reason if it is missing, empty, no image, truncated, too large or out of range.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if not Path(path).is_file():
            raise FileError("is no file" if Path(path).exists() else "is missing")
        if Path(path).stat().st_size == 0:
            raise FileError("is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which do not matter here
            with Image.open(path) as image:
                image.load()
                return _rgb(_upright(image))
    except FileError:
        raise
    except UnidentifiedImageError:
        raise FileError("is no image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise FileError(f"is too large: {error}") from None
    except MemoryError:
        raise FileError("is too large for the memory") from None
    # Pillow's decoders raise nearly anything for broken data: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise FileError(f"cannot be read: {_in_a_line(error)}") from None


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    with contextlib.suppress(Exception):  # broken EXIF data are no reason to lose the picture
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_in_bytes(np.asarray(image))).convert("RGB")
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (*PAPER, 255))
        return Image.alpha_composite(paper, image).convert("RGB")
    return image.convert("RGB")


def _in_bytes(values: np.ndarray) -> np.ndarray:
    """Gray values as bytes: of 16 bits, of 32 that use no more, or floating-point ones with white at 1, 255, 65535."""
    if not np.isfinite(values).all():
        raise FileError("has values that are nan or infinite")
    low, high = float(values.min()), float(values.max())
    known = (1, 255, SIXTEEN_BITS) if values.dtype.kind == "f" else (SIXTEEN_BITS,)
    largest = next((white for white in known if high <= white), 0)
    if low < 0 or not largest:
        raise FileError(f"has gray values from {low:g} to {high:g}: which is white? Save it with 8 or 16 bits")
    return np.round(values * (255 / largest)).astype(np.uint8)


def printable(name: str | Path) -> str:
    """A file's name in a line that any terminal may print, also where its bytes are no text."""
    text = os.fsencode(name).decode(errors="replace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def listed(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The image files in a folder and below it, by their endings, in a fixed order; hidden ones are left out."""
    above = above | {folder.resolve()}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or path.name == "__MACOSX":
            continue
        if not path.is_dir():
            if path.suffix.lower() in ENDINGS:
                yield path
        elif path.resolve() not in above:  # a link to a folder above would lead round in circles
            yield from listed(path, above)
