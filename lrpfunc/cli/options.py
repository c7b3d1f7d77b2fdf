"""Options that several commands have."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrpfunc.errors import InputError

if TYPE_CHECKING:
    from lrpfunc.pictures.classifiers import Classifier
    from lrpfunc.pictures.images import Reading
    from lrpfunc.pictures.outputs import Meaning


def here(text: str) -> Path:
    """A path of this machine. Errors: `InputError` for a URL."""
    from lrpfunc.pictures.remote import place

    found = place(text)
    if not isinstance(found, Path):
        raise InputError(f"{found} is a URL, which only data sets are read by: give a path of this machine.")
    return found


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="One of torchvision's classifiers, timm's as timm:NAME, 'efficientnet_lite0' or 'digits' (need no "
        "download), or your own: module.path:factory.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="DEFAULT or another of torchvision's names, a file (.safetensors, or a state dict by torch.save), or "
        "'random'.",
        show_default="DEFAULT; what your factory gives",
    ),
]
CompositeName = Annotated[
    str, typer.Option("--composite", "-c", help="The rules: a name, or your own as module.path:composite.")
]
Canonize = Annotated[bool, typer.Option("--canonize/--no-canonize", help="Fold batch norms into layers.")]
Size = Annotated[
    int | None,
    typer.Option(help="Height and width of the input, instead of the model's own.", min=1, show_default=False),
]
Numbers = Annotated[
    str | None, typer.Option(help="Of the input, instead of the model's own, as in 0.5,0.5,0.5.", show_default=False)
]
Categories = Annotated[
    Path | None,
    typer.Option("--categories", help="A file with a class name per line, or a JSON list.", show_default=False),
]
Cache = Annotated[bool, typer.Option("--cache/--no-cache", help="Keep traces of models that packages bring.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
Colors = Annotated[str, typer.Option(help="A colour map of matplotlib or zennit.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")]


MultiLabel = Annotated[
    bool, typer.Option("--multi-label", help="The outputs are labels that do not exclude each other: a sigmoid each.")
]
Regression = Annotated[bool, typer.Option("--regression", help="The outputs are values, not logits of classes.")]
Unit = Annotated[str | None, typer.Option(help="Of the values, such as years.", show_default=False)]
AsIs = Annotated[
    bool, typer.Option("--as-is", help="Explain what a softmax or sigmoid at the end gives, not the logit before it.")
]


MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        help="The most that an image may have; 0 for any. Larger ones are left out.",
        min=0,
        show_default="178956970",
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        "--window",
        metavar="LOW,HIGH",
        help="The values that are black and white, in DICOM, NIfTI and gray images of more than 8 bits.",
        show_default="what the file says; else by its values",
    ),
]


def reading_of(max_pixels: int | None, window: str | None) -> Reading:
    """How images are read. Errors: `InputError`."""
    from lrpfunc.pictures import images

    most = images.MAX_PIXELS if max_pixels is None else max_pixels
    ends = numbers("--window", window, "-160,240")
    if ends is None:
        return images.Reading(most)
    if len(ends) != 2 or not all(map(math.isfinite, ends)) or ends[0] >= ends[1]:
        raise InputError(f"--window takes the lowest and the highest value, such as -160,240, but got '{window}'.")
    return images.Reading(most, images.Window(*ends))


METHODS = "gradient, gradient_times_input, smooth_grad, integrated_gradients or occlusion"


def meaning_of(multi_label: bool, regression: bool, unit: str | None, as_is: bool) -> Meaning | None:
    """What the options say of the outputs, None if nothing. Errors: `InputError`."""
    from lrpfunc.pictures.outputs import LABELS, VALUES, Meaning

    is_value = regression or unit is not None
    if multi_label and is_value:
        raise InputError("outputs are either labels or values: give --multi-label, or --regression and --unit.")
    if not (multi_label or is_value or as_is):
        return None
    return Meaning(LABELS if multi_label else VALUES if is_value else None, unit or "", as_is)


def classifier_of(
    model: str,
    weights: str | None,
    size: int | None,
    mean: str | None,
    std: str | None,
    categories: Path | None,
    cache: bool,
    meaning: Meaning | None,
    reading: Reading | None = None,
) -> Classifier:
    """The classifier that the options describe."""
    from lrpfunc.pictures import classifiers

    classifier = classifiers.load(model, weights, size, numbers("--mean", mean), numbers("--std", std), categories)
    if meaning is not None:
        classifier = replace(classifier, meaning=meaning)
    if reading is not None:
        classifier = replace(classifier, reading=reading)
    return classifier if cache else replace(classifier, packages=())


def numbers(option: str, text: str | None, example: str = "0.5,0.5,0.5") -> tuple[float, ...] | None:
    """What stands between commas. Errors: `InputError`."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} takes numbers with commas between, such as {example}, but got '{text}'.") from error
