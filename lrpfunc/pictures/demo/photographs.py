"""The photographs that scikit-image ships in its wheel, and why what else is there is not among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lrpfunc.extras import extra
from lrpfunc.pictures.classifiers.shipped import PHOTOS as EXTRA

if TYPE_CHECKING:
    from PIL import Image

# Functions of skimage.data. Those that a picture shows come first.
PHOTOS = ("chelsea", "coffee", "rocket", "stereo_motorcycle", "astronaut", "camera", "coins")
TITLES = {"chelsea": "cat", "stereo_motorcycle": "motorcycle"}  # where the name of the file says too little

# Files of skimage.data that are none of these.
LEFT_OUT: Mapping[str, str] = {
    "motorcycle_right": "the scene of motorcycle_left from a few centimetres beside: no photo of its own",
    "clock_motion": "blurred on purpose, beyond recognition",
    **dict.fromkeys(("brick", "grass", "gravel"), "textures: there is no object in them"),
    **dict.fromkeys(("hubble_deep_field", "moon"), "seen through a telescope"),
    **dict.fromkeys(("cell", "ihc"), "seen through a microscope"),
    **dict.fromkeys(("retina", "microaneurysms"), "medical"),
    **dict.fromkeys(("page", "text"), "text"),
    **dict.fromkeys(("chessboard_GRAY", "chessboard_RGB", "color", "horse", "logo", "phantom"), "drawn"),
}


def photograph(name: str) -> Image.Image:
    """One of `PHOTOS`, RGB; nothing is downloaded. Errors: `MissingExtraError`."""
    from PIL import Image

    found = getattr(extra("skimage.data", EXTRA, "a photo"), name)()
    pixels = found[0] if isinstance(found, tuple) else found  # the left one of a pair, with depths
    return Image.fromarray(pixels).convert("RGB")


def title(name: str) -> str:
    """What a photo shows, in a word."""
    return TITLES.get(name, name)
