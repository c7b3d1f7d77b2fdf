"""Whatever is given to the drawing functions in place of what they take: one line that names the argument."""

import functools
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import lrpfunc
from lrpfunc import rules
from lrpfunc.errors import InputError
from lrpfunc.heatmaps import (
    colorize,
    colormap,
    figure,
    flow,
    grid,
    heatmap,
    lines,
    new_figure,
    overlay,
    show,
    slices,
    tail,
)

PICTURE = Image.new("RGB", (4, 4))
MAP, VOLUME = torch.randn(4, 4), torch.randn(3, 4, 4)
FEW_SLICES = {"relevance": VOLUME, "axis": 0, "count": 1}
DENSE = nn.Linear(3, 2)


class Odd:
    """Of a type that nobody has heard of."""


@functools.cache
def traced():
    return lrpfunc.functionalize(DENSE, torch.ones(1, 3))


def drawn_flow(**arguments):
    return flow(*traced(), torch.ones(1, 3), rules.epsilon(), **arguments)


def odd_tensors() -> list:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to drop the first, and the others are new
        quantized = torch.quantize_per_tensor(MAP, 0.1, 0, torch.qint8)
        rows = MAP.to_sparse_csr()
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    return [
        quantized,
        nested,
        MAP > 0,
        MAP.to_sparse(),
        rows,
        MAP.to(torch.complex64),
        MAP.to("meta"),
        torch.tensor(3.0),
        np.ma.masked_array([[1.0, 2.0]], [[0, 1]]),
        np.array([["a", "b"]]),
        np.array([[None, 1]]),
        np.array([["2020-01-01"]], dtype="datetime64[D]"),
        np.zeros((2, 2), dtype=[("a", float)]),
        np.zeros((0, 3)),
        np.array(3.0),
    ]


TEXTS, NUMBERS = ["x.png", b"x", "猫\n\x1b"], [3, 2.5, 10**400, 10**5000, float("nan"), float("inf"), np.float64(3)]
LISTS = [[1, 2, 3], [[1, 2], [3]], [MAP], (), [PICTURE], [[[PICTURE]]], [PICTURE, [PICTURE]], {}, {"a": 1}, range(3)]
OTHERS = [True, None, complex(1, 2), Path("x.png"), Odd(), len, PICTURE, Figure(), pyplot, DENSE, set(), iter([1])]
ODD = [*TEXTS, *NUMBERS, *LISTS, *OTHERS, *odd_tensors()]

# Each argument: what takes it, the word that names it in the message, and which of the odd ones it may be.
RELEVANCE = (heatmap, colorize, show, lambda **given: overlay(PICTURE, **given))
STYLE = {
    "colors": ("colou?r", ()),
    "limits": ("limits", (None, [0, None])),
    "quantile": ("quantile", ()),
}
ARGUMENTS = [
    *((draw, {}, "relevance", "relevance", ()) for draw in RELEVANCE),
    *((draw, {"relevance": MAP}, name, *rest) for draw in RELEVANCE for name, rest in STYLE.items()),
    *((draw, {"relevance": MAP}, "joint", "joint", (True,)) for draw in RELEVANCE),
    *((draw, {"relevance": MAP}, "channels", "channels", ()) for draw in RELEVANCE),
    (colormap, {}, "colors", "colou?r", ()),
    (overlay, {"relevance": MAP}, "image", "image", (PICTURE, [PICTURE])),
    (overlay, {"image": PICTURE, "relevance": MAP}, "opacity", "opacity", ()),
    (show, {"relevance": MAP}, "image", "image", (None, PICTURE, [PICTURE])),
    (show, {"relevance": MAP}, "title", "title", ("x.png", "猫\n\x1b")),
    (show, {"relevance": MAP}, "figure", "figure", (None, Figure)),
    (show, {"relevance": MAP}, "columns", "columns", (None, 3)),
    (grid, {}, "images", "images?|grid", ([PICTURE],)),
    (grid, {"images": [PICTURE]}, "columns", "columns", (None, 3)),
    (grid, {"images": [PICTURE]}, "gap", "gap", (3,)),
    (grid, {"images": [PICTURE]}, "scale", "scale", (3,)),
    (grid, {"images": [PICTURE]}, "background", "background|colour", ()),
    (figure, {}, "images", "images?|grid", ([[PICTURE]],)),
    (figure, {"images": [[PICTURE]]}, "columns", "column", ((),)),
    (figure, {"images": [[PICTURE]]}, "rows", "row", ((),)),
    (figure, {"images": [[PICTURE]]}, "title", "title", ("x.png", "猫\n\x1b")),
    (figure, {"images": [[PICTURE]]}, "caption", "caption", ("x.png", "猫\n\x1b")),
    (figure, {"images": [[PICTURE]]}, "scale", "scale", (None,)),
    (figure, {"images": [[PICTURE]], "scale": ("a", "b", "c")}, "colors", "colou?r", ()),
    (new_figure, {"height": 1}, "width", "width", (3, 2.5, np.float64(3))),
    (new_figure, {"width": 1}, "height", "height", (3, 2.5, np.float64(3))),
    (tail, {}, "name", "name", ("x.png", "猫\n\x1b")),
    (drawn_flow, {}, "title", "title", ("x.png", "猫\n\x1b")),
    (drawn_flow, {}, "figure", "figure", (None, Figure)),
    (lines, {}, "relevance", "relevance", ()),
    (lines, {"relevance": MAP}, "values", "values", (None,)),
    (lines, {"relevance": MAP}, "x", r"\bx\b", (None,)),
    (lines, {"relevance": MAP}, "names", "names", ((),)),
    (lines, {"relevance": MAP}, "x_label", "x_label", ("x.png", "猫\n\x1b")),
    (lines, {"relevance": MAP}, "unit", "unit", ("x.png", "猫\n\x1b")),
    (lines, {"relevance": MAP}, "title", "title", ("x.png", "猫\n\x1b")),
    (lines, {"relevance": MAP}, "joint", "joint", (True,)),
    (lines, {"relevance": MAP}, "figure", "figure", (None, Figure)),
    (slices, {}, "relevance", "relevance", ()),
    (slices, FEW_SLICES, "volume", "volume", (None,)),
    (slices, FEW_SLICES, "axis", "axis", (None,)),
    (slices, FEW_SLICES, "count", "count", (3,)),
    (slices, FEW_SLICES, "at", r"\bat\b", (None, range(3))),
    (slices, FEW_SLICES, "window", "window", (None,)),
    (slices, FEW_SLICES, "spacing", "spacing", ([1, 2, 3],)),
    (slices, FEW_SLICES, "title", "title", ("x.png", "猫\n\x1b")),
    (slices, FEW_SLICES, "opacity", "opacity", ()),
    (slices, FEW_SLICES, "figure", "figure", (None, Figure)),
    *((lines, {"relevance": MAP}, name, *rest) for name, rest in STYLE.items()),
    *((slices, FEW_SLICES, name, *rest) for name, rest in STYLE.items()),
]  # fmt: skip


def may_be(value: object, fine: tuple) -> bool:
    """Whether it is one of them, as much as that can be asked of arrays."""
    return any(
        isinstance(value, one) if isinstance(one, type) else type(value) is type(one) and value == one for one in fine
    )


@pytest.mark.parametrize(("draw", "given", "name", "word", "fine"), ARGUMENTS)
def test_what_is_of_another_type_is_named_in_one_line(draw, given, name, word, fine):
    for value in ODD:
        if may_be(value, fine):
            continue
        with pytest.raises(InputError) as caught:
            draw(**{**given, name: value})
        message = str(caught.value)
        assert re.search(word, message), message
        assert message.isprintable() or "猫" not in message, message
        assert "\n" not in message, message
        assert len(message) < 1000


@pytest.mark.parametrize(("draw", "given", "name", "word", "fine"), ARGUMENTS)
def test_what_is_fine_is_taken(draw, given, name, word, fine):
    for value in fine:
        draw(**{**given, name: Figure() if value is Figure else value})


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: overlay("x.png", MAP), "or a list of those, but is 'x.png'. Open it with PIL.Image.open."),
        (lambda: overlay([Path("x.png")], MAP), "but is a PosixPath. Open it with PIL.Image.open."),
        (lambda: show(MAP, b"x"), "but is b'x'. Open it with PIL.Image.open."),
        (lambda: heatmap("r.pt"), "relevance must be a tensor or an array of numbers, but is 'r.pt'. Load it"),
        (lambda: heatmap([MAP]), "but is a list. Make one of it by torch.stack or torch.tensor."),
        (lambda: heatmap(PICTURE), "but is an Image. heatmaps.overlay takes the image first"),
        (lambda: heatmap(MAP > 0), "must be real numbers, but has dtype bool. Take .float()"),
        (lambda: heatmap(MAP + 0j), "but has dtype complex64. Take the real part or the magnitude."),
        (lambda: heatmap(MAP.to_sparse()), "a dense tensor, but is a Tensor of shape (4, 4). Take .to_"),
        (lambda: heatmap(odd_tensors()[0]), "not quantized, but is a Tensor of shape (4, 4). Take .dequantize()"),
        (lambda: heatmap(odd_tensors()[1]), "must be one tensor, but is nested. Take the tensors of .unbind()"),
        (lambda: heatmap(MAP.to("meta")), "must be numbers that can be read (dtype torch.float32, device meta)"),
        (lambda: heatmap(np.ma.masked_array([[1.0]])), "without a mask, but is a MaskedArray"),
        (lambda: heatmap(MAP, limits=3), "limits must be None or a pair (low, high), but is 3."),
        (lambda: heatmap(MAP, limits="01"), "limits must be None or a pair (low, high), but is '01'."),
        (lambda: heatmap(MAP, limits=torch.ones(2)), "a pair (low, high), but is a Tensor of shape (2,)."),
        (lambda: heatmap(MAP, limits=(0, MAP.max())), "but is a Tensor of shape (). Take .item() of it."),
        (lambda: heatmap(MAP, limits=(False, 1)), "each of limits must be None or a number, but is False."),
        (lambda: heatmap(MAP, colors=["red"]), "but is a list. matplotlib.colors.ListedColormap makes one"),
        (lambda: heatmap(MAP, joint=1), "joint must be True or False, but is 1."),
        (lambda: heatmap(MAP, channels="all"), "channels must be 'sum' or 'each', but is 'all'."),
        (lambda: grid(PICTURE), "the images must be rows of images, a list of lists, but is an Image. Put it in"),
        (lambda: grid([MAP]), "image 0 of a grid must be a PIL image, but is a Tensor of shape (4, 4). heatmaps."),
        (lambda: grid(["x.png"]), "must be a PIL image, but is 'x.png'. Open it with PIL.Image.open."),
        (lambda: grid([PICTURE, [PICTURE]]), "row 0 of the images must be a list of images, but is an Image."),
        (lambda: grid([[[PICTURE]]]), "image 0 of row 0 must be a PIL image, but is a list."),
        (lambda: grid([PICTURE], background="rot"), "no colour is called 'rot': PIL has names such as"),
        (lambda: grid([PICTURE], scale=2**20), "room for 268,435,456 pixels, but would have 4194304 x 4194304"),
        (lambda: figure([PICTURE]), "row 0 of the images must be a list of images, but is an Image. Put it"),
        (lambda: figure([[np.zeros((4, 4))]]), "image 0 of row 0 must be an array (H, W, 3) or (H, W, 4) of bytes"),
        (lambda: figure([[PICTURE]], columns="a"), "the labels of columns must be a list of texts, but is 'a'. Put"),
        (lambda: figure([[PICTURE]], rows=[3]), "number 0 of the labels of rows must be text, but is 3."),
        (lambda: figure([[PICTURE]], scale=("a",)), "the scale needs three texts, of its low end, middle and"),
        (lambda: show(MAP, figure=Figure().subplots()), "but is an Axes. Give its .figure."),
        (lambda: show(MAP, columns=0), "columns must be one or more, but are 0."),
    ],
)  # fmt: skip
def test_the_messages_say_the_way_out(draw, message):
    with pytest.raises(InputError, match=re.escape(message)):
        draw()


def test_images_of_more_than_eight_bits_are_an_error():
    for mode in ("I", "F", "I;16"):
        with pytest.raises(InputError, match=rf"eight bits .*, but one is of mode {mode}\. Scale its values"):
            overlay(Image.new(mode, (4, 4)), MAP)


def test_images_of_all_other_modes_are_taken():
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"):
        image = Image.new(mode, (4, 4))
        overlay(image, MAP)
        assert figure([[image]]).axes[0].images[0].get_array().shape[:2] == (4, 4)


def test_an_image_of_a_mode_that_pil_does_not_convert_is_an_error():
    with pytest.raises(InputError, match="a mode that PIL turns into RGB, but one is of La"):
        overlay(Image.new("La", (4, 4)), MAP)


def test_a_gray_image_is_gray_in_a_figure():
    (drawn,) = figure([[Image.new("L", (2, 2), 77)]]).axes
    assert drawn.images[0].get_array().reshape(-1, 3).tolist() == [[77, 77, 77]] * 4


def test_rows_of_a_figure_may_be_what_colorize_gives():
    assert len(figure([colorize(torch.randn(3, 1, 4, 4))]).axes) == 3


def test_views_and_transforms_of_tensors_are_read():
    turned = torch.tensor([[1j, 2 - 1j]]).conj().imag  # its sign is a flag
    np.testing.assert_array_equal(colorize(turned), colorize(np.array([[-1.0, 1.0]])))
    with pytest.raises(InputError, match="numbers that can be read"):
        torch.func.vmap(lambda one: colorize(one))(torch.randn(2, 4, 4))
