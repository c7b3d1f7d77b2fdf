"""Odd and broken image files: converted as a viewer would show them, or refused with the reason."""

import io
import os
import pathlib
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from lrpfunc.errors import FileError
from lrpfunc.pictures import classifiers, hdf5, images, runs
from lrpfunc.pictures.images import Reading, Window

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


def tiff_pages(*pictures, **options):
    """Pages one after another; the second of them, if wanted, as a smaller copy of the first."""
    return encoded(pictures[0], "TIFF", save_all=True, append_images=pictures[1:], **options)


def twelve(values):
    """A gray picture of 16 bits."""
    return Image.fromarray(np.asarray(values, np.uint16))


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
    found = [entry.path.relative_to(tmp_path).as_posix() for entry in images.listing(tmp_path).entries]
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
    assert explained == set(READABLE) - {"pages.tif"} | {"pages.tif#1", "pages.tif#2"}
    assert failed.keys() == {*BROKEN, "link.png"}
    assert all(failed.values())
    assert samples == list(range(len(corpus) + 2))
    assert outcome.rows == len(READABLE) + 1


# -- deep pictures ----------------------------------------------------------------------------------------------------


def seen(path, image, kind="PNG", **options):
    """A picture written and read: its gray values, and what is said of it."""
    path.write_bytes(encoded(image, kind))
    found = images.look(path, Reading(**options))
    return np.asarray(found.image)[..., 0], found.notices


@pytest.mark.parametrize(
    ("highest", "white"), [(4095, 4095), (1800, 4095), (256, 4095), (255, 255), (4096, 16383), (9000, 16383)]
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_scans_of_fewer_bits_in_sixteen_are_not_black(highest, white, kind, tmp_path):
    values = np.linspace(0, highest, 12).round().reshape(3, 4)
    got, said = seen(tmp_path / "a.png", twelve(values), kind)
    np.testing.assert_array_equal(got, np.round(values * 255 / white))
    assert said == (
        f"its values end at {highest}, so {white} is taken for white; --window 0,{white} says so for all files",
    )


@pytest.mark.parametrize("highest", [65535, 16384, 40000, 0])
def test_pictures_of_sixteen_bits_are_as_they_are(highest, tmp_path):
    values = np.linspace(0, highest, 12).round().reshape(3, 4)
    got, said = seen(tmp_path / "a.png", twelve(values))
    np.testing.assert_array_equal(got, np.round(values * (255 / 65535)))
    assert said == ()


def test_a_window_of_the_users(tmp_path):
    values = np.array([[0, 100, 160, 200, 300]])
    got, said = seen(tmp_path / "a.png", twelve(values), window=Window(100, 200))
    assert (got.tolist(), said) == ([[0, 0, 153, 255, 255]], ())
    negative = Image.fromarray(np.array([[-1000, 0, 1000]], np.float32))
    got, said = seen(tmp_path / "b.tif", negative, "TIFF", window=Window(-1000, 1000))
    assert (got.tolist(), said) == ([[0, 128, 255]], ())
    with pytest.raises(FileError, match=r"which is white\? Say it by --window low,high, or save it with 8 or 16 bits"):
        images.read(tmp_path / "b.tif")
    assert seen(tmp_path / "c.png", Image.new("L", (1, 1), 77), window=Window(0, 10))[0] == 77  # bytes are bytes


def test_floats_say_what_is_guessed(tmp_path):
    values = np.array([[0, 1000, 4000]], np.float32)
    got, said = seen(tmp_path / "a.tif", Image.fromarray(values), "TIFF")
    assert got.tolist() == [[0, 62, 249]]
    assert said[0].startswith("its values end at 4000, so 4095 is taken for white")


def test_white_may_be_zero(tmp_path):
    inverted = encoded(twelve(SIXTEEN), "TIFF", tiffinfo={262: 0})
    tmp_path.joinpath("a.tif").write_bytes(inverted)
    np.testing.assert_allclose(corners(images.read(tmp_path / "a.tif")), 255 - np.array(GRAYS), atol=1)


def test_deep_colours_that_are_hardly_any_are_said(tmp_path):
    """Pillow takes the upper 8 of 16 bits, which are nothing for 12."""
    row = b"\0" + struct.pack(">HHH", 4095, 2000, 0) * 4
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    tmp_path.joinpath("a.png").write_bytes(data)
    said = ("of its 16 bits per colour the upper 8 are taken, and they end at 15; save it with 8",)
    assert images.look(tmp_path / "a.png").notices == said
    tmp_path.joinpath("b.png").write_bytes(sixteen_bit_rgb_png())
    assert images.look(tmp_path / "b.png").notices == ()


# -- pages and animations ---------------------------------------------------------------------------------------------


def test_pages_of_a_tiff_are_pictures(tmp_path):
    path = tmp_path / "scan.tif"
    path.write_bytes(tiff_pages(*(Image.new("RGB", (4, 4), color) for color in (RED, GREEN, BLUE))))
    pages = images.pages(path)
    assert [page.name for page in pages] == ["scan.tif#1", "scan.tif#2", "scan.tif#3"]
    assert [images.read(page).getpixel((0, 0)) for page in pages] == [RED, GREEN, BLUE]
    assert images.read(path).getpixel((0, 0)) == RED
    for wrong in (4, 99):
        with pytest.raises(FileError, match=f"has 3 pages, and none with the number {wrong}"):
            images.read(f"{path}#{wrong}")
    tmp_path.joinpath("a.png").write_bytes(READABLE["plain.png"][0])
    with pytest.raises(FileError, match="has no page 2: only TIFF, DICOM and NIfTI have pages here"):
        images.read(tmp_path / "a.png#2")
    assert images.expanded([path, tmp_path / "a.png", tmp_path / "scan.tif#2"]) == [
        *pages,
        tmp_path / "a.png",
        tmp_path / "scan.tif#2",
    ]


def test_smaller_copies_in_a_tiff_are_no_pages(tmp_path):
    path = tmp_path / "pyramid.tif"
    for kinds, pages in {(0, 1, 0): ["pyramid.tif#1", "pyramid.tif#3"], (0, 1): ["pyramid.tif"]}.items():
        with tifffile.TiffWriter(path) as writer:
            for kind in kinds:
                writer.write(np.zeros((4, 4, 3), np.uint8), photometric="rgb", subfiletype=kind)
        assert [page.name for page in images.pages(path)] == pages


def test_a_sign_in_a_files_own_name_is_no_page(tmp_path):
    for name in ("a#2.png", "b#1"):
        tmp_path.joinpath(name).write_bytes(READABLE["plain.png"][0])
        assert corners(images.read(tmp_path / name)) == QUARTERS
    with pytest.raises(FileError, match="is missing"):
        images.read(tmp_path / "absent.tif#2")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_that_an_animation_moves_is_said(kind, tmp_path):
    tmp_path.joinpath("a").write_bytes(animation(kind))
    assert images.look(tmp_path / "a").notices == ("it is an animation, of which the first frame is taken",)


# -- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP", "JPEG", "WEBP", "PPM"])
def test_no_more_pixels_are_made_than_allowed(kind, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(encoded(Image.new("RGB", (30, 20)), kind))
    assert images.read(path, Reading(max_pixels=600)).size == (30, 20)
    assert images.read(path, Reading(max_pixels=0)).size == (30, 20)
    with pytest.raises(
        FileError, match=r"too large: 30 x 20 pixels, and 599 are allowed \(--max-pixels N allows N, 0 any"
    ):
        images.read(path, Reading(max_pixels=599))


def test_pages_are_bounded_too(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_pages(Image.new("L", (2, 2)), Image.new("L", (30, 20))))
    assert images.read(f"{path}#1", Reading(max_pixels=4)).size == (2, 2)
    with pytest.raises(FileError, match="too large: 30 x 20 pixels, and 4 are allowed"):
        images.read(f"{path}#2", Reading(max_pixels=4))


def test_the_users_bound_counts_more_than_pillows(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    tmp_path.joinpath("a.png").write_bytes(encoded(Image.new("L", (30, 20)), "PNG"))
    with pytest.raises(
        FileError, match=r"is too large: Image size \(600 pixels\) exceeds.*--max-pixels N allows N, 0 any"
    ):
        images.read(tmp_path / "a.png")
    for most in (0, 2**40):
        assert images.read(tmp_path / "a.png", Reading(max_pixels=most)).size == (30, 20)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_avif_says_what_reads_it(tmp_path):
    tmp_path.joinpath("a.avif").write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0mif1avifmiaf")
    with pytest.raises(FileError, match=r"is AVIF, which Pillow 11\.3 and later read|cannot be read"):
        images.read(tmp_path / "a.avif")


# -- folders ----------------------------------------------------------------------------------------------------------


def test_files_without_an_ending_are_known_by_their_bytes(tmp_path):
    kinds = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]
    for kind in kinds:
        tmp_path.joinpath(kind.lower()).write_bytes(encoded(quarters(), kind))
    tmp_path.joinpath("IM0001").write_bytes(bytes(128) + b"DICM")
    tmp_path.joinpath("1.2.840.10008.5").write_bytes(bytes(128) + b"DICM")
    tmp_path.joinpath("DICOMDIR").write_bytes(bytes(128) + b"DICM")
    for name, content in {"Makefile": b"all:", "empty": b"", "v1.2": b"text"}.items():
        tmp_path.joinpath(name).write_bytes(content)
    found = images.listing(tmp_path)
    assert [entry.path.name for entry in found.entries] == sorted(["1.2.840.10008.5", "IM0001", *map(str.lower, kinds)])
    assert found.notes == ("4 files left out that are no images: 3 without an ending, 1 .2",)


def test_what_is_left_out_is_counted_and_named(tmp_path):
    names = [
        "a.png",
        "b.csv",
        "c.csv",
        "d.txt",
        "e.svg",
        "f.jxl",
        "g.mp4",
        "h.psd",
        "i.cr2",
        ".hidden",
        ".git/x.png",
        "x.gz",
    ]
    for name in names:
        tmp_path.joinpath(name).parent.mkdir(exist_ok=True)
        tmp_path.joinpath(name).touch()
    tmp_path.joinpath("two.tif").write_bytes(animation("TIFF"))
    found = images.listing(tmp_path)
    assert [entry.path.name for entry in found.entries] == ["a.png", "two.tif#1", "two.tif#2"]
    assert found.notes == (
        "9 files left out that are no images: 2 .csv, 1 .cr2, 1 .gz, 1 .jxl, 1 .mp4, 1 .psd, ...",
        "2 hidden files or folders left out",
        "1 file with several pages: each page is a sample",
    )


@pytest.fixture
def locked(monkeypatch):
    """Folders and files that may not be read, also for an administrator, who may read all."""
    names = set()

    def denied(original):
        def guarded(self, *args, **options):
            if names & set(self.parts):
                raise PermissionError(13, "Permission denied", str(self))
            return original(self, *args, **options)

        return guarded

    for method in ("iterdir", "open"):
        monkeypatch.setattr(pathlib.Path, method, denied(getattr(pathlib.Path, method)))
    return names


def test_what_cannot_be_looked_into_has_a_place(tmp_path, locked):
    for name in ("a/1.png", "b/1.png", "c/bare", "d/1.png"):
        tmp_path.joinpath(name).parent.mkdir()
        tmp_path.joinpath(name).write_bytes(READABLE["plain.png"][0])
    os.symlink("loop", tmp_path / "loop")
    locked.update(["b", "bare"])
    found = [(entry.path.relative_to(tmp_path).as_posix(), *entry[1:]) for entry in images.listing(tmp_path).entries]
    denied = "cannot be read: Permission denied"
    assert found == [("a/1.png", "", False), ("b", denied, True), ("c/bare", denied, False), ("d/1.png", "", False)]


def test_folders_lie_deep_in_each_other(tmp_path, monkeypatch):
    """Deeper than functions may call each other, and so what removes them does it one by one, too."""
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    pathlib.Path("a.png").touch()
    found = images.listing(tmp_path)
    os.remove("a.png")
    for _ in range(1200):
        os.chdir("..")
        os.rmdir("d")
    assert [entry.path.name for entry in found.entries] == ["a.png"]
