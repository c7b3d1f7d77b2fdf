"""Single images explained: a heatmap, an overlay and a panel with both beside the input, for each wanted class."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lrpfunc import heatmaps
from lrpfunc.errors import FileError, LrpError
from lrpfunc.pictures import images
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.explainers import DEFAULT_COMPOSITE, Explainer, explainer, wanted_classes
from lrpfunc.pictures.samples import preprocessed

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console

LOOKABLE = 224  # pixels; smaller pictures are enlarged by a whole factor


class Style(NamedTuple):
    """How heatmaps are coloured; see `heatmaps.heatmap`."""

    colors: str = heatmaps.COLORS
    quantile: float = 1.0


class Drawn(NamedTuple):
    """One class of one image: what the model says of it, what its relevance sums to, and the pictures written."""

    image: Path
    target: int
    label: str
    probability: float
    logit: float
    relevance_sum: float
    heatmap: Path
    overlay: Path
    panel: Path


class Failed(NamedTuple):
    """An image that could not be explained, and why."""

    image: Path
    reason: str


def write(
    paths: Sequence[Path],
    out: Path,
    classifier: Classifier,
    composite: str = DEFAULT_COMPOSITE,
    targets: Sequence[str] = ("top",),
    canonize: bool = True,
    device: str = "cpu",
    style: Style = Style(),  # noqa: B008 (a constant)
    progress: Callable[[int, int, int], None] | None = None,
) -> tuple[list[Drawn], list[Failed]]:
    """Explain image files and write the pictures into the folder `out`, which is made; older ones of a name give way.

    An image that cannot be read, or whose preprocessing gives another size than the first one's, is among the failed.
    Errors: `FileError` for a folder among the images, and if none can be read; those of `explainers.explainer`,
    `explainers.wanted_classes` and `heatmaps.heatmap`; `OSError`.
    """
    for path in paths:
        if path.is_dir():
            raise FileError(f"{path} is a folder: give images, such as {path / '*.jpg'}, or use `lrpfunc dataset`.")
    heatmaps.heatmap(torch.zeros(1, 1), style.colors, quantile=style.quantile)  # complain before, not after long work
    names = _names(paths)
    ready: Explainer | None = None
    drawn: list[Drawn] = []
    failed: list[Failed] = []
    for number, (path, name) in enumerate(names.items(), start=1):
        try:
            x = preprocessed(classifier, images.read(path))[None]
        except FileError as error:
            failed.append(Failed(path, str(error)))
        else:
            if ready is None:
                ready = explainer(classifier, x, composite, canonize, device)
                wanted = wanted_classes(targets, classifier.categories, ready.classes)
                out.mkdir(parents=True, exist_ok=True)
            try:
                found = ready.attribute(x, wanted)
                drawn += _written(path, out / name, classifier, x, found, style)
            except LrpError as error:  # another size than the first one's, relevance that is not finite
                failed.append(Failed(path, str(error)))
        if progress is not None:
            progress(number, len(names), len(failed))
    if not drawn:
        raise FileError(
            f"none of the images can be explained: {images.printable(failed[0].image)} {failed[0].reason.rstrip('.')}."
        )
    return drawn, failed


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """What the pictures of each image begin with: as little of its path as tells the images apart."""
    # Links are not followed: what they lead to may have names that say nothing.
    given = {Path(os.path.abspath(path)): path for path in reversed(paths)}
    unique = list(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))
    names = [path.stem for path in unique]
    for parts in range(1, max(len(path.parts) for path in unique)):
        if _differ(names):
            break
        names = ["_".join(path.parts[-parts:]) for path in unique]
    if not _differ(names):  # a_b/c.png and a/b_c.png
        names = [f"{number}_{name}" for number, name in enumerate(names, start=1)]
    return {given[path]: name for path, name in zip(unique, names, strict=True)}


def _differ(names: Sequence[str]) -> bool:
    """Whether no two names are the same, also for file systems that take capitals for small letters."""
    return len({name.casefold() for name in names}) == len(names)


def _written(path: Path, stem: Path, classifier: Classifier, x: Tensor, found, style: Style) -> list[Drawn]:
    probabilities = found.prediction.softmax(1)[0]
    picture = _lookable(_picture(classifier.pixels(x)[0]))
    drawn = []
    for target in dict.fromkeys(found.target[0].tolist()):  # the same class may have been wanted twice
        relevance = found.relevance[0, found.target[0].tolist().index(target)]
        label = classifier.category(target)
        name = f"{stem.name}.{target}-{_slug(label)}" if label != str(target) else f"{stem.name}.{target}"
        one = Drawn(
            path,
            target,
            label,
            probabilities[target].item(),
            found.prediction[0, target].item(),
            relevance.sum(dtype=torch.float64).item(),
            *(stem.with_name(f"{name}.{kind}.png") for kind in ("heatmap", "overlay", "panel")),
        )
        _draw(one, picture, relevance, style)
        drawn.append(one)
    return drawn


def _slug(label: str) -> str:
    return re.sub(r"[^\w-]+", "_", label)[:60]


def _draw(one: Drawn, picture: Image.Image, relevance: Tensor, style: Style) -> None:
    heatmap = _lookable(_only(heatmaps.heatmap(relevance, style.colors, quantile=style.quantile)))
    # Enlarged before it is laid over, as the picture was: neither is smoothed.
    factor = picture.width // relevance.shape[-1]
    enlarged = relevance.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    overlay = _only(heatmaps.overlay(picture, enlarged, style.colors, quantile=style.quantile))
    heatmap.save(one.heatmap)
    overlay.save(one.overlay)
    name = images.printable(one.image.name)
    panel = heatmaps.figure(
        [[picture, heatmap, overlay]],
        columns=["input", "relevance", "both"],
        title=f"{images.printable(one.label)}: probability {one.probability:.1%}",
        caption=f"{name}: logit {one.logit:.3g}, relevance sum {one.relevance_sum:.3g}",
        scale=("against", "nothing", "for it"),
        colors=style.colors,
    )
    heatmaps.save(panel, one.panel, dpi=180)


def _only(images: Image.Image | list[Image.Image]) -> Image.Image:
    assert not isinstance(images, list)  # relevance without a batch gives one image
    return images


def _picture(pixels: Tensor) -> Image.Image:
    """Pixels (C, H, W) from 0 to 1 as an RGB picture: of three or four channels the first three, else their mean."""
    from PIL import Image

    shown = pixels[:3] if len(pixels) in (3, 4) else pixels.mean(0, keepdim=True).expand(3, -1, -1)
    return Image.fromarray((shown * 255).round().to(torch.uint8).movedim(0, -1).numpy())


def _lookable(image: Image.Image) -> Image.Image:
    """A picture enlarged by a whole factor if it is small, pixel by pixel."""
    factor = max(1, -(-LOOKABLE // max(image.size)))
    return image.resize((image.width * factor, image.height * factor), resample=0)


def table(drawn: Sequence[Drawn], console: Console) -> None:
    """Print what the model says, one line per image and class."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    listed = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    listed.add_column("image")
    listed.add_column("class")
    for heading in ("probability", "logit", "relevance sum"):
        listed.add_column(heading, justify="right")
    for one in drawn:
        label = one.label if one.label == str(one.target) else f"{one.target} {one.label}"
        numbers = (f"{one.probability:.2%}", f"{one.logit:.4g}", f"{one.relevance_sum:.4g}")
        listed.add_row(Text(images.printable(one.image)), Text(label), *numbers)
    console.print(listed)
