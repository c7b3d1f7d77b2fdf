"""Odd and broken image files: converted as a viewer would show them, or refused with the reason."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lrpfunc.errors import FileError
from lrpfunc.pictures import classifiers, hdf5, images, runs

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def quarters(mode="RGB", colors=(RED, GREEN, BLUE, WHITE), size=16):
    """A picture whose four quarters tell how it is turned."""
    image = Image.new(mode, (size, size))
    half = size // 2
    for position, color in zip([(0, 0), (half, 0), (0, half), (half, half)], colors, strict=True):
        image.paste(color, (*position, position[0] + half, position[1] + half))
    return image


def corners(image):
    """The colours in the middle of the four quarters."""
    width, height = image.size
    places = [(1, 1), (3, 1), (1, 3), (3, 3)]
    return [image.getpixel((x * width // 4, y * height // 4)) for x, y in places]


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width, height):
    """A PNG that says it is huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def sixteen_bit_rgb_png():
    row = b"\0" + b"".join(struct.pack(">HHH", 0xFFFF, 0x8000, 0) for _ in range(4))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")


def rotated(orientation):
    """A JPEG that is stored turned, with the note which way, so that it shows as `quarters`."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = quarters() if undo is None else quarters().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", quality=95, exif=exif)


def animation(kind):
    frames = [quarters(), quarters(colors=(BLACK, BLACK, BLACK, BLACK))]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def see_through(mode):
    """Red and nothing: what shows through must be white, whatever colour the transparent pixels have."""
    return encoded(quarters("RGBA", ((*RED, 255), (*GREEN, 0), (*BLACK, 0), (*BLUE, 255))).convert(mode), "PNG")


def gray(array):
    return encoded(Image.fromarray(array), "PNG")


def with_broken_exif():
    return encoded(quarters(), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")


SIXTEEN = np.array([[0, 65535], [32768, 16384]], dtype=np.uint16).repeat(4, 0).repeat(4, 1)
FLOAT = (SIXTEEN / 65535).astype(np.float32)
QUARTERS = [RED, GREEN, BLUE, WHITE]
GRAYS = [BLACK, WHITE, (128,) * 3, (64,) * 3]

# What each file is to look like in the middle of its four quarters, and how near.
READABLE = {
    "plain.png": (encoded(quarters(), "PNG"), QUARTERS, 0),
    "plain.PNG": (encoded(quarters(), "PNG"), QUARTERS, 0),
    "plain.bmp": (encoded(quarters(), "BMP"), QUARTERS, 0),
    "plain.jpg": (encoded(quarters(), "JPEG", quality=95), QUARTERS, 5),
    "progressive.jpeg": (encoded(quarters(), "JPEG", quality=95, progressive=True), QUARTERS, 5),
    "plain.tif": (encoded(quarters(), "TIFF"), QUARTERS, 0),
    "plain.webp": (encoded(quarters(), "WEBP", lossless=True), QUARTERS, 0),
    "plain.ppm": (encoded(quarters(), "PPM"), QUARTERS, 0),
    "plain.tga": (encoded(quarters(), "TGA"), QUARTERS, 0),
    "palette.png": (encoded(quarters().quantize(8), "PNG"), QUARTERS, 0),
    "ink.jpg": (encoded(quarters().convert("CMYK"), "JPEG", quality=95), QUARTERS, 5),
    "ink.tif": (encoded(quarters().convert("CMYK"), "TIFF"), QUARTERS, 0),
    "gray.png": (gray((SIXTEEN >> 8).astype(np.uint8)), GRAYS, 0),
    "gray16.png": (gray(SIXTEEN), GRAYS, 1),
    "gray16.tif": (encoded(Image.fromarray(SIXTEEN), "TIFF"), GRAYS, 1),
    "gray32.tif": (encoded(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"), GRAYS, 1),
    "float.tif": (encoded(Image.fromarray(FLOAT), "TIFF"), GRAYS, 1),
    "float255.tif": (encoded(Image.fromarray(FLOAT * 255), "TIFF"), GRAYS, 1),
    "rgb16.png": (sixteen_bit_rgb_png(), [(255, 128, 0)] * 4, 0),
    "bits.png": (encoded(quarters("1", (0, 1, 1, 0)), "PNG"), [BLACK, WHITE, WHITE, BLACK], 0),
    "see-through.png": (see_through("RGBA"), [RED, WHITE, WHITE, BLUE], 0),
    "see-through-gray.png": (
        encoded(quarters("LA", ((0, 255), (0, 0), (0, 0), (0, 255))), "PNG"),
        [BLACK, WHITE, WHITE, BLACK],
        0,
    ),
    "see-through-palette.png": (
        encoded(quarters().quantize(4), "PNG", transparency=quarters().quantize(4).getpixel((0, 0))),
        [WHITE, GREEN, BLUE, WHITE],
        0,
    ),
    "see-through.webp": (
        encoded(quarters("RGBA", ((*RED, 255), (*GREEN, 0), (*BLACK, 0), (*BLUE, 255))), "WEBP", lossless=True),
        [RED, WHITE, WHITE, BLUE],
        0,
    ),
    "moving.gif": (animation("GIF"), QUARTERS, 0),
    "moving.webp": (animation("WEBP"), QUARTERS, 0),
    "moving.png": (animation("PNG"), QUARTERS, 0),
    "pages.tif": (animation("TIFF"), QUARTERS, 0),
    **{f"turned{n}.jpg": (rotated(n), QUARTERS, 5) for n in range(1, 9)},
    "broken-exif.jpg": (with_broken_exif(), QUARTERS, 5),
    "broken-exif.png": (encoded(quarters(), "PNG", exif=b"garbage!"), QUARTERS, 0),
    "really-a-png.jpg": (encoded(quarters(), "PNG"), QUARTERS, 0),
    "one.png": (encoded(Image.new("RGB", (1, 1), RED), "PNG"), [RED] * 4, 0),
    "long.png": (encoded(Image.new("RGB", (2000, 1), RED), "PNG"), [RED] * 4, 0),
    "grüße \n<b>.png": (encoded(quarters(), "PNG"), QUARTERS, 0),
}
BROKEN = {
    "empty.png": (b"", "is empty"),
    "text.jpg": (b"hello", "is no image that Pillow can read"),
    "page.png": (b"<html><body>404</body></html>", "is no image that Pillow can read"),
    "truncated.jpg": (encoded(quarters(size=64), "JPEG")[:400], "cannot be read"),
    "truncated.png": (encoded(quarters(size=64), "PNG")[:100], "cannot be read"),
    "header.png": (encoded(quarters(), "PNG")[:20], "cannot be read|is no image"),
    "damaged.png": (encoded(quarters(), "PNG").replace(b"IDAT", b"IDAX"), "cannot be read|is no image"),
    "truncated.gif": (encoded(quarters(size=64), "GIF")[:40], "cannot be read"),
    "truncated.webp": (encoded(quarters(size=64), "WEBP")[:60], "cannot be read|is no image"),
    "truncated.tif": (encoded(quarters(size=64), "TIFF")[:90], "cannot be read|is no image"),
    "bomb.png": (png_claiming(60000, 60000), "is too large"),
    "negative.tif": (encoded(Image.fromarray(-FLOAT), "TIFF"), "gray values from -1 to"),
    "deep.tif": (encoded(Image.fromarray(SIXTEEN.astype(np.int32) * 9), "TIFF"), "which is white"),
    "nan.tif": (encoded(Image.fromarray(FLOAT * np.float32("nan")), "TIFF"), "nan or infinite"),
}


@pytest.mark.parametrize("name", READABLE)
def test_an_odd_image_looks_as_in_a_viewer(name, tmp_path):
    data, expected, tolerance = READABLE[name]
    path = tmp_path / name
    path.write_bytes(data)
    image = images.read(path)
    assert image.mode == "RGB"
    np.testing.assert_allclose(corners(image), expected, atol=tolerance)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_refused_with_the_reason(name, tmp_path):
    data, reason = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(FileError, match=reason):
        images.read(path)


def test_what_is_missing_or_no_file_is_refused(tmp_path):
    tmp_path.joinpath("link.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(FileError, match="is missing"):
        images.read(tmp_path / "link.png")
    with pytest.raises(FileError, match="is no file"):
        images.read(tmp_path)


def test_an_image_beyond_the_memory_is_refused(tmp_path, monkeypatch):
    def no_memory(self):
        raise MemoryError

    tmp_path.joinpath("a.png").write_bytes(READABLE["plain.png"][0])
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", no_memory)
    with pytest.raises(FileError, match="too large for the memory"):
        images.read(tmp_path / "a.png")


def test_listing_finds_images_only_in_a_fixed_order(tmp_path):
    for name in (
        "b/2.JPG",
        "b/10.png",
        "a.tiff",
        "b/.hidden.png",
        ".git/x.png",
        "__MACOSX/y.png",
        "b/notes.txt",
        "c/d/e.gif",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    tmp_path.joinpath("c", "round").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in images.listed(tmp_path)]
    assert found == ["a.tiff", "b/10.png", "b/2.JPG", "c/d/e.gif"]


def test_a_folder_of_all_that_goes_through_a_run_without_a_lost_sample(tmp_path):
    corpus = READABLE | BROKEN
    assert len(corpus) > 50
    folder = tmp_path / "corpus"
    for i, (name, (data, *_)) in enumerate(corpus.items()):
        path = folder / str(i % 10) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    os.symlink(tmp_path / "nowhere", folder / "1" / "link.png")
    outcome = runs.run(folder, tmp_path / "run.h5", classifiers.load("digits"), workers=1)
    with hdf5.opened(tmp_path / "run.h5") as run:
        explained = {name.decode().split("/", 1)[1] for name in run.column("file")[:]}
        failed = {failure.file.split("/", 1)[1]: failure.reason for failure in run.errors}
        samples = sorted([*run.column("index")[:].tolist(), *(failure.sample for failure in run.errors)])
    assert explained == set(READABLE)
    assert failed.keys() == {*BROKEN, "link.png"}
    assert all(failed.values())
    assert samples == list(range(len(corpus) + 1))
    assert outcome.rows == len(READABLE)
