"""Image files as people have them, as RGB pictures: rotated by cameras, 16 bits deep, transparent, in ink, broken."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrpfunc.errors import FileError, MissingExtraError
from lrpfunc.extras import extra
from lrpfunc.pictures.images import dicom, nifti
from lrpfunc.pictures.images.gray import Window, guessed, in_bytes
from lrpfunc.pictures.images.kinds import AVIF, DICOM, HEIF, NIFTI, TIFF, kind
from lrpfunc.pictures.images.names import numbered, page_of

if TYPE_CHECKING:
    from PIL import Image

PAPER = (255, 255, 255)  # what shows through transparent pixels
MAX_PIXELS = 178_956_970  # a picture of 13,377 x 13,377; where Pillow, too, suspects a trap
MOST_PAGES = 100_000
REDUCED, BITS, WHITE_IS_ZERO = 254, 258, 262  # TIFF's tags


class Reading(NamedTuple):
    """How pictures are read: the most pixels that one may have, 0 for any; which gray values are black and white."""

    max_pixels: int = MAX_PIXELS
    window: Window | None = None


class Seen(NamedTuple):
    """A picture in RGB, and what to say of how it was read."""

    image: Image.Image
    notices: tuple[str, ...] = ()


def read(path: str | Path, reading: Reading = Reading()) -> Image.Image:  # noqa: B008 (a constant)
    """An image file in RGB, as a viewer shows it; see `look`."""
    return look(path, reading).image


def look(path: str | Path, reading: Reading = Reading()) -> Seen:  # noqa: B008 (a constant)
    """An image file, or a page of one (`scan.tif#2`), in RGB, as a viewer shows it.

    Turned as its EXIF data says; the first frame of an animation; transparency on white; in 8 bits. DICOM and gray
    values of more than 8 bits are shown in the window of `reading`, or that of the file, or what their range suggests.
    Errors: `FileError` with the reason if it is missing, empty, no image, truncated, too large or out of range.
    """
    try:
        file, page = page_of(Path(path))
        if not file.is_file():
            raise FileError("is no file" if file.exists() else "is missing")
        if file.stat().st_size == 0:
            raise FileError("is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow and others warn of odd metadata, which do not matter here
            return _look(file, page, reading)
    except FileError:
        raise
    except MissingExtraError as error:
        raise FileError(f"cannot be read: {error}") from None
    except MemoryError:
        raise FileError("is too large for the memory") from None
    # Decoders raise nearly anything for broken data: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise FileError(f"cannot be read: {_in_a_line(error)}") from None


def look_at(data: bytes, ending: str = "", reading: Reading = Reading()) -> Seen:  # noqa: B008 (a constant)
    """A picture by the bytes of its file, whose name had that ending; see `look`.

    They are put into a file for a moment, as not every decoder takes them otherwise.
    """
    with tempfile.NamedTemporaryFile(prefix="lrpfunc-", suffix=ending) as file:
        file.write(data)
        file.flush()
        return look(file.name, reading)


def pages(path: Path) -> list[Path]:
    """The pages of a file that has several, each by its name, such as `scan.tif#2`; else the file itself."""
    count: dict[str, Callable[[Path], Sequence[int]]] = {
        TIFF: _tiff_pages,
        DICOM: lambda file: range(1, dicom.frames(file) + 1),
        NIFTI: lambda file: range(1, nifti.slices(file) + 1),
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            numbers = count.get(kind(path), lambda _: (1,))(path)
    except Exception:  # what is wrong with it is said when it is read
        return [path]
    return [numbered(path, number) for number in numbers] if 1 < len(numbers) <= MOST_PAGES else [path]


def expanded(paths: Sequence[Path]) -> list[Path]:
    """Files with a name for each of their pages."""
    return [page for path in paths for page in (pages(path) if page_of(path)[1] == 0 else [path])]


def _look(file: Path, page: int, reading: Reading) -> Seen:
    from PIL import Image

    sort = kind(file)
    module: Any = {DICOM: dicom, NIFTI: nifti}.get(sort)
    if module is not None:
        _check_size(module.size(file), reading.max_pixels)
        pixels, notices = module.picture(file, max(page, 1) - 1, reading.window)
        return Seen(Image.fromarray(pixels).convert("RGB"), notices)
    if page and sort != TIFF:
        raise FileError(f"has no page {page}: only TIFF, DICOM and NIfTI have pages here")
    if sort == HEIF:
        return _heif(file, reading)
    with _opened(file, sort, reading.max_pixels) as image:
        said: tuple[str, ...] = ()
        if page:
            _turn_to(image, page)
            _check_size(image.size, reading.max_pixels)
        elif getattr(image, "is_animated", False) and image.format in ("GIF", "PNG", "WEBP", "AVIF"):
            said = ("it is an animation, of which the first frame is taken",)
        deep = _deep(image)  # told by how it lies in the file, which is forgotten when it is read
        image.load()
        shown, more = _rgb(_upright(image), deep, reading.window)
        return Seen(shown, (*said, *more))


@contextlib.contextmanager
def _opened(file: Path, sort: str, max_pixels: int) -> Iterator[Image.Image]:
    """An image file whose header was read. Errors: `FileError`; nearly any."""
    from PIL import Image, UnidentifiedImageError

    limit = Image.MAX_IMAGE_PIXELS
    try:
        if not 0 < max_pixels <= MAX_PIXELS:
            Image.MAX_IMAGE_PIXELS = None  # the user's word counts, which is checked below
        with Image.open(file) as image:
            _check_size(image.size, max_pixels)
            yield image
    except UnidentifiedImageError:
        remedy = "AVIF, which Pillow 11.3 and later read: pip install -U pillow"
        raise FileError(f"is {remedy if sort == AVIF else 'no image that Pillow can read'}") from None
    except Image.DecompressionBombError as error:
        raise FileError(f"is too large: {_in_a_line(error)} --max-pixels N allows N, 0 any") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check_size(size: tuple[int, int], most: int) -> None:
    width, height = size
    if 0 < most < width * height:
        raise FileError(
            f"is too large: {width:,} x {height:,} pixels, and {most:,} are allowed (--max-pixels N allows N, 0 any)"
        )


def _heif(file: Path, reading: Reading) -> Seen:
    opened = extra("pillow_heif", "heif", "reading HEIC").open_heif(file)
    _check_size(opened.size, reading.max_pixels)
    shown, said = _rgb(opened.to_pillow(), 0, reading.window)
    return Seen(shown, said)


def _tiff_pages(file: Path) -> list[int]:
    """The numbers of the pages that are pictures of their own, and no smaller copies or masks of others."""
    found = []
    with _opened(file, TIFF, 0) as image:
        for number in range(min(getattr(image, "n_frames", 1), MOST_PAGES)):
            image.seek(number)
            if not int(image.tag_v2.get(REDUCED, 0) or 0) & 0b101:  # type: ignore[attr-defined]
                found.append(number + 1)
    return found


def _turn_to(image: Any, page: int) -> None:
    count = getattr(image, "n_frames", 1)  # before any is sought that is not there, which some versions count then
    if page > count:
        raise FileError(f"has {count} pages, and none with the number {page}")
    image.seek(page - 1)


def _deep(image: Any) -> int:
    """How many bits per channel a file says that it has, if more than the 8 of which pictures are made; else 0."""
    layout = str(getattr(image, "tile", ""))
    stated = getattr(image, "tag_v2", {}).get(BITS)
    bits = stated[0] if isinstance(stated, tuple) and stated else stated
    if isinstance(bits, int) and bits > 8:
        return bits
    return 16 if ";16" in layout or image.mode.startswith("I") else 0


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    with contextlib.suppress(Exception):  # broken EXIF data are no reason to lose the picture
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _in_a_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _rgb(image: Image.Image, bits: int, window: Window | None) -> tuple[Image.Image, tuple[str, ...]]:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return _gray(image, bits, window)
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (*PAPER, 255))
        image = Image.alpha_composite(paper, image)
    image = image.convert("RGB")
    return image, _dark(image) if bits > 8 else ()


def _gray(image: Image.Image, bits: int, window: Window | None) -> tuple[Image.Image, tuple[str, ...]]:
    """A gray picture of more than 8 bits."""
    from PIL import Image

    values = np.asarray(image)
    said: tuple[str, ...] = ()
    if window is None:
        window, said = guessed(values, bits if 8 < bits < 16 else None)
    shown = in_bytes(values, window)
    if getattr(image, "tag_v2", {}).get(WHITE_IS_ZERO) == 0:
        shown = 255 - shown
    return Image.fromarray(shown).convert("RGB"), said


def _dark(image: Image.Image) -> tuple[str, ...]:
    """What to say of deep colours of which hardly anything is left in 8 bits: Pillow takes the upper ones."""
    highest = max(int(high) for _, high in image.getextrema())  # type: ignore[misc, arg-type]
    said = f"of its 16 bits per colour the upper 8 are taken, and they end at {highest}; save it with 8"
    return (said,) * (0 < highest < 64)
