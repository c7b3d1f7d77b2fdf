"""Figures and images in files: where they may lie, which formats there are, and the text in them."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import check_path, figure, save


def image():
    return np.zeros((4, 4, 3), dtype=np.uint8)


# -- files ------------------------------------------------------------------------------------------------------------


def test_an_ending_that_names_no_format_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"must name a format, one of .*png"):
        save(figure([[image()]]), tmp_path / "grid.xyz")


def test_a_missing_folder_and_a_folder_as_path_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save(figure([[image()]]), tmp_path / "missing" / "grid.png")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        save(figure([[image()]]), tmp_path)


# -- text in files ----------------------------------------------------------------------------------------------------

ABOUT = {"model": "resnet50", "Größe": "5 µm", "target": "猫\nsecond line", "empty": ""}
LINES = "\n".join(f"{name}: {words}" for name, words in ABOUT.items())


def drawings():
    return [figure([[image()]]), Image.new("RGB", (4, 4), "red")]


@pytest.mark.parametrize("drawn", drawings(), ids=["figure", "image"])
def test_a_png_holds_text_as_it_was_given(drawn, tmp_path):
    with Image.open(save(drawn, tmp_path / "a.PNG", about=ABOUT)) as written:
        written.load()
        assert written.text == ABOUT
    chunks = (tmp_path / "a.PNG").read_bytes()
    assert chunks.count(b"tEXt") == 3
    assert chunks.count(b"iTXt") == 1
    with Image.open(save(drawn, tmp_path / "b.png")) as written:
        assert not set(written.text) - {"Software"}


@pytest.mark.parametrize("drawn", drawings(), ids=["figure", "image"])
@pytest.mark.parametrize("ending", ["jpg", "tiff", "webp"])
def test_formats_with_exif_hold_text_as_lines(drawn, ending, tmp_path):
    with Image.open(save(drawn, tmp_path / f"a.{ending}", about=ABOUT)) as written:
        assert written.getexif()[0x010E].encode("latin-1").decode() == LINES


def test_svg_and_pdf_hold_text_as_description_and_subject(tmp_path):
    root = ElementTree.parse(save(figure([[image()]]), tmp_path / "a.svg", about={**ABOUT, "odd": "\x1b<&"})).getroot()
    (description,) = root.iter("{http://purl.org/dc/elements/1.1/}description")
    assert description.text == f"{LINES}\nodd: ?<&"
    for drawn in drawings():
        written = save(drawn, tmp_path / "a.pdf", about={"Model": "r(e)snet"}).read_bytes()
        assert b"/Subject" in written
        assert b"Model: r\\(e\\)snet" in written or "Model: r".encode("utf-16-be") in written


@pytest.mark.parametrize("drawn", drawings(), ids=["figure", "image"])
def test_formats_without_text_are_written_all_the_same(drawn, tmp_path):
    assert save(drawn, tmp_path / "a.gif", about=ABOUT).stat().st_size > 0


def test_half_letters_and_nul_in_text_about_a_file_are_question_marks(tmp_path):
    with Image.open(save(drawings()[1], tmp_path / "a.png", about={"weights": "caf\udce9.pt\0"})) as written:
        assert written.text == {"weights": "caf?.pt?"}


@pytest.mark.parametrize("name", ["", " model", "猫", "a\nb", "m" * 80])
def test_names_that_a_png_cannot_hold_are_an_error(name, tmp_path):
    with pytest.raises(InputError, match=r"holds no text under the name .*: a name has 1 to 79 printable letters"):
        save(drawings()[1], tmp_path / "a.png", about={name: "x"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"about": "resnet"}, "about must be a mapping of names to texts, but is 'resnet'."),
        ({"about": []}, "about must be a mapping of names to texts, but is a list."),
        ({"about": {1: "a"}}, "a name in about must be text, but is 1."),
        ({"about": {"a": b"b"}}, "what about says under 'a' must be text, but is b'b'."),
        ({"about": {"a": None}}, "what about says under 'a' must be text, but is None."),
        ({"dpi": "120"}, "dpi must be a number above zero, but is '120'."),
        ({"dpi": True}, "dpi must be a number above zero, but is True."),
        ({"dpi": 0}, "dpi must be a number above zero, but is 0."),
        ({"dpi": float("nan")}, "dpi must be a number above zero, but is nan."),
        ({"dpi": torch.tensor(3)}, "dpi must be a number above zero, but is a Tensor of shape (). Take .item() of it."),
        ({"path": b"a.png"}, "the path to write to must be a str or a pathlib.Path, but is b'a.png'."),
        ({"path": None}, "the path to write to must be a str or a pathlib.Path, but is None."),
        ({"path": io.BytesIO()}, "the path to write to must be a str or a pathlib.Path, but is a BytesIO."),
        ({"path": "a\0.png"}, "the path to write to must be a path without the character NUL, but is 'a\\x00.png'."),
        ({"figure": np.zeros((2, 2))}, "must be a matplotlib figure or a PIL image, but is a ndarray of shape (2, 2)."),
        ({"figure": "a"}, "what is saved must be a matplotlib figure or a PIL image, but is 'a'."),
        ({"figure": [1]}, "but is a list. Save the images of a list one by one, or as one by heatmaps.grid."),
    ],
)
def test_save_refuses_what_is_of_another_type(arguments, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        save(**{"figure": drawings()[1], "path": tmp_path / "a.png", **arguments})
    assert not list(tmp_path.iterdir())


def test_an_image_is_written_in_formats_of_images(tmp_path):
    with pytest.raises(InputError, match="must name a format, one of png, jpg"):
        save(drawings()[1], tmp_path / "a.svg")
    with pytest.raises(InputError, match=r'a JPEG holds no image of mode RGBA\. Use image\.convert\("RGB"\)'):
        save(Image.new("RGBA", (2, 2)), tmp_path / "a.jpg")
    with pytest.raises(InputError, match="formats must be a list of texts, but is 'png'"):
        check_path(tmp_path / "a.png", "png")
    assert not list(tmp_path.iterdir())
