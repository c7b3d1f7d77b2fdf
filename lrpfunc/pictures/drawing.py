"""What was found of one image as files: heatmap, overlay, panel, and the numbers themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import lrpfunc
from lrpfunc import heatmaps
from lrpfunc.pictures import images
from lrpfunc.pictures.explainers import Explainer
from lrpfunc.pictures.outfiles import outfile

if TYPE_CHECKING:
    from PIL import Image

LOOKABLE = 224  # pixels; smaller pictures are enlarged by a whole factor
FORMATS = ("npz", "npy")
OWN, ONE = "own", "one"  # scales of a sheet


class Style(NamedTuple):
    """How heatmaps are coloured, see `heatmaps.heatmap`; `scale`: of a sheet, each map its `own` or `one` for all."""

    colors: str = heatmaps.COLORS
    quantile: float = 1.0
    scale: str = OWN


class Found(NamedTuple):
    """One target of one image under one composite: what the model says of it, and its relevance (C, H, W).

    `score`: its logit or value; `word` is which. `probability`: None for values. `input` (C, H, W), `outputs` (O,).
    """

    image: Path
    composite: str
    target: int
    label: str
    probability: float | None
    score: float
    word: str
    relevance: Tensor
    input: Tensor
    outputs: Tensor
    model: str
    weights: str
    canonized: bool

    @classmethod
    def of(
        cls, image: Path, composite: str, ready: Explainer, choice: int, x: Tensor, outputs: Tensor, relevance: Tensor
    ) -> Found:
        """What an explainer found for an input (C, H, W), with outputs (1, O)."""
        meaning, classifier = ready.meaning, ready.classifier
        probabilities = meaning.probabilities(outputs)
        return cls(
            image,
            composite,
            choice,
            ready.name(choice),
            None if probabilities is None else probabilities[0, choice].item(),
            meaning.scores(outputs)[0, choice].item(),
            meaning.word,
            relevance,
            x,
            outputs[0],
            classifier.name,
            classifier.weights,
            ready.report is not None,
        )

    @property
    def relevance_sum(self) -> float:
        """What the relevance sums to."""
        return self.relevance.sum(dtype=torch.float64).item()

    @property
    def says(self) -> str:
        """What the model says of the choice, in words."""
        if self.probability is None:
            return f"{self.label}: {self.score:.4g} {self.word.partition(' in ')[2]}".rstrip()
        return f"{self.label}: probability {self.probability:.1%}"

    @property
    def maker(self) -> str:
        """What made the relevance, in a line."""
        return f"{maker(self.model, self.weights)} · {self.composite} · lrpfunc {lrpfunc.__version__}"

    def about(self) -> dict[str, str]:
        """What is written into the files: in words, and for programs."""
        facts: dict[str, Any] = {
            "model": self.model,
            "weights": self.weights,
            "composite": self.composite,
            "canonized": self.canonized,
            "target": self.target,
            "class": self.label,
            "probability": self.probability,
            "score": self.score,
            "score_is": self.word,
            "relevance_sum": self.relevance_sum,
            "image": images.printable(self.image),
            "lrpfunc": lrpfunc.__version__,
        }
        return {
            "Software": f"lrpfunc {lrpfunc.__version__}",
            "Description": f"{images.printable(self.says)}; {self.maker}",
            "lrpfunc": json.dumps(facts),
        }


def maker(model: str, weights: str) -> str:
    """A model and its weights."""
    weights = Path(weights).name if "/" in weights else weights
    return images.printable(f"{model} ({weights})" if weights else model)


def names(stem: Path, relevance: str | None) -> list[Path]:
    """The files that `draw` writes, whose names begin as `stem`."""
    endings = ["heatmap.png", "overlay.png", "panel.png", *([] if relevance is None else [f"relevance.{relevance}"])]
    return [stem.with_name(f"{stem.name}.{ending}") for ending in endings]


def draw(
    one: Found, picture: Image.Image, stem: Path, style: Style, overwrite: bool, relevance: str | None
) -> list[Path]:
    """Write the files of what was found, whose names begin as `stem`. Errors: `FileError` if one exists; `OSError`."""
    heatmap, overlay = _pictures(one, picture, style)
    about = one.about()
    panel = _panel(one, lookable(picture), heatmap, overlay, style)
    writers: list[Callable[[Path], Any]] = [
        lambda path: heatmaps.save(heatmap, path, about=about),
        lambda path: heatmaps.save(overlay, path, about=about),
        lambda path: heatmaps.save(panel, path, dpi=180, about=about),
        lambda path: _save(one, path),
    ]
    files = names(stem, relevance)
    for path, write in zip(files, writers, strict=False):  # the last one, if relevance is wanted
        with outfile(path, overwrite) as part:
            write(part)
    return files


def _pictures(one: Found, picture: Image.Image, style: Style) -> tuple[Image.Image, Image.Image]:
    # As a batch of one: of whatever shape, it is of a picture.
    heatmap = lookable(_only(heatmaps.heatmap(one.relevance[None], style.colors, quantile=style.quantile)))
    # Enlarged before it is laid over, as the picture is: neither is smoothed.
    under = lookable(picture)
    factor = under.width // one.relevance.shape[-1]
    enlarged = one.relevance.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return heatmap, _only(heatmaps.overlay(under, enlarged[None], style.colors, quantile=style.quantile))


def _panel(one: Found, picture: Image.Image, heatmap: Image.Image, overlay: Image.Image, style: Style):
    name = images.printable(one.image.name)
    return heatmaps.figure(
        [[picture, heatmap, overlay]],
        columns=["input", "relevance", "both"],
        title=images.printable(one.says),
        caption=f"{name}: {one.word} {one.score:.3g}, relevance sum {one.relevance_sum:.3g}\n{one.maker}",
        scale=("against", "nothing", "for it"),
        colors=style.colors,
    )


def _save(one: Found, path: Path) -> None:
    relevance = one.relevance.numpy()
    if path.suffix == ".npy":
        np.save(path, relevance)
    else:
        arrays: dict[str, Any] = {"relevance": relevance, "input": one.input.numpy(), "output": one.outputs.numpy()}
        np.savez_compressed(path, **arrays, target=one.target, about=one.about()["lrpfunc"])


def _only(images: Image.Image | list[Image.Image]) -> Image.Image:
    assert isinstance(images, list)  # of a batch
    (image,) = images
    return image


def picture_of(pixels: Tensor) -> Image.Image:
    """Pixels (C, H, W) from 0 to 1 as an RGB picture: of three or four channels the first three, else their mean."""
    from PIL import Image

    shown = pixels[:3] if len(pixels) in (3, 4) else pixels.mean(0, keepdim=True).expand(3, -1, -1)
    return Image.fromarray((shown * 255).round().to(torch.uint8).movedim(0, -1).numpy())


def lookable(image: Image.Image) -> Image.Image:
    """A picture enlarged by a whole factor if it is small, pixel by pixel."""
    factor = max(1, -(-LOOKABLE // max(image.size)))
    return image.resize((image.width * factor, image.height * factor), resample=0)
