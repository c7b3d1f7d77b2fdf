"""Figures and images in files, with text about them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import checks

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

IMAGE_FORMATS = ("png", "jpg", "jpeg", "tif", "tiff", "webp", "gif", "bmp", "pdf")
EXIF_FORMATS = ("jpg", "jpeg", "tif", "tiff", "webp")
IMAGE_DESCRIPTION = 0x010E  # in EXIF
LONGEST_KEYWORD = 79  # of a PNG


def save(figure: Figure | Image, path: str | Path, dpi: float = 120, about: Mapping[str, str] | None = None) -> Path:
    """Write a figure or an image in the format that its path's ending names (.png, .pdf, .jpg, ...); return the path.

    Args:
        figure: as `figure`, `show`, `flow` and `text.layers` return them, or a PIL image as of `heatmap` and `grid`.
        path: where to; a file that is there is replaced.
        dpi: dots per inch, of figures in formats that have dots. Images have their pixels.
        about: text to keep in the file, such as {"model": "resnet50"}. In a PNG each name is a text chunk of its own,
            one of UTF-8 where latin-1 does not do. Lines "name: text" are the description in SVG, the subject in PDF,
            and the image description of EXIF (UTF-8) in JPEG, TIFF and WebP. Other formats hold no text.
    Errors: as `check_path`; `InputError` for what is neither a figure nor an image, a dpi that is not above zero, text
    that is none, and names that a PNG cannot hold: they have 1 to 79 letters of latin-1, without blanks at the ends;
    `OSError` where the system refuses to write.

    >>> import lrpfunc, tempfile, torch
    >>> from PIL import Image
    >>> from lrpfunc import heatmaps
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = heatmaps.save(heatmaps.heatmap(torch.randn(8, 8)), f"{folder}/map.png", about={"model": "résnet 猫"})
    ...     path.name, Image.open(path).text
    ('map.png', {'model': 'résnet 猫'})
    """
    is_image = _is_image(figure)
    path = check_path(path, IMAGE_FORMATS if is_image else ())
    dpi = checks.number("dpi", dpi, "a number above zero", above=0.0)
    ending = path.suffix.lower().removeprefix(".")
    given = {} if about is None else checks.texts_by_name("about", about)
    kept = {_unicode(name): _unicode(words) for name, words in given.items()}
    options = _text_options(kept, ending, is_image) if kept else {}
    if is_image:
        _write_image(figure, path, ending, options)
    else:
        write(figure, path, dpi=dpi, **options)
    return path


def write(figure: Any, file: Any, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a box stands for a letter without a font
        figure.savefig(file, **options)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    write(figure, buffer, format="png")
    return buffer.getvalue()


def check_path(path: str | Path, formats: Collection[str] = ()) -> Path:
    """A path that a figure, or what has one of these formats, can be written to. Ask before long work, not after it.

    Args:
        path: of the file to write.
        formats: endings without the dot; those that matplotlib writes, unless given.
    Errors: `InputError` for an ending that names no image format, and for what is no path; `FileNotFoundError` for a
    folder that does not exist; `IsADirectoryError` if the path itself is a folder.

    >>> from lrpfunc import heatmaps
    >>> heatmaps.check_path("map.jpeg2")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    lrpfunc.errors.InputError: cannot write map.jpeg2: its ending must name a format, one of ...
    """
    from matplotlib.backend_bases import FigureCanvasBase

    path = checks.file_path("the path to write to", path)
    formats = checks.words("formats", formats) or FigureCanvasBase.get_supported_filetypes()
    named = checks.printable(path)
    if path.is_dir():
        raise IsADirectoryError(
            f"{named} is a folder: name a file in it, such as {checks.printable(path / 'heatmaps.png')}."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {named}: there is no folder {checks.printable(path.parent)}.")
    if path.suffix.lower().removeprefix(".") not in formats:
        raise InputError(f"cannot write {named}: its ending must name a format, one of {', '.join(formats)}.")
    return path


# -- parts ------------------------------------------------------------------------------------------------------------


def _is_image(value: Any) -> bool:
    from matplotlib.figure import Figure
    from PIL import Image

    if isinstance(value, Image.Image | Figure):
        return isinstance(value, Image.Image)
    hint = "Save the images of a list one by one, or as one by heatmaps.grid." if isinstance(value, list) else ""
    checks.refuse("what is saved", "a matplotlib figure or a PIL image", value, hint)


def _write_image(image: Any, path: Path, ending: str, options: dict[str, Any]) -> None:
    if ending in ("jpg", "jpeg") and image.mode not in ("L", "RGB", "CMYK"):
        named = checks.printable(path)
        raise InputError(f'cannot write {named}: a JPEG holds no image of mode {image.mode}. Use image.convert("RGB").')
    image.save(path, **options)


def _unicode(words: str) -> str:
    """The text with "?" for half letters, as in names of files that are no UTF-8."""
    return words.encode("utf-8", "replace").decode()


def _text_options(about: Mapping[str, str], ending: str, is_image: bool) -> dict[str, Any]:
    """How the writer of a format is told the text."""
    if ending == "png":
        return _png_text(about, is_image)
    lines = "\n".join(f"{name}: {words}" for name, words in about.items())
    if ending in EXIF_FORMATS:
        exif = {"exif": _exif(lines)}
        return exif if is_image else {"pil_kwargs": exif}
    if ending == "pdf":
        return {"subject": lines} if is_image else {"metadata": {"Subject": lines}}
    if ending in ("svg", "svgz"):
        return {"metadata": {"Description": _in_xml(lines)}}
    return {}


def _in_xml(words: str) -> str:
    return "".join(one if one.isprintable() or one in "\n\t" else "?" for one in words)


def _png_text(about: Mapping[str, str], is_image: bool) -> dict[str, Any]:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for name, words in about.items():
        if not _is_keyword(name):
            raise InputError(
                f"a PNG holds no text under the name {checks.described(name)}: a name has 1 to {LONGEST_KEYWORD} "
                "printable letters of latin-1 and no blank at its ends."
            )
        chunks.add_text(name, words.replace("\0", "?"))  # a NUL would end it
    return {"pnginfo": chunks} if is_image else {"pil_kwargs": {"pnginfo": chunks}}


def _is_keyword(name: str) -> bool:
    is_latin = all(one.isprintable() and ord(one) < 256 for one in name)
    return is_latin and name == name.strip() and 1 <= len(name) <= LONGEST_KEYWORD


def _exif(lines: str) -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = lines.encode()
    return exif
