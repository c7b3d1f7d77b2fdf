"""Single images explained: a heatmap, an overlay and a panel with both beside the input, for each wanted class.

Several composites are also laid side by side, see `sheets`. What is looked at says what made it: its name, its caption
and its file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lrpfunc import heatmaps
from lrpfunc.errors import FileError, InputError, LrpError, ModelError
from lrpfunc.pictures import images
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.drawing import FORMATS, Found, Style, draw, lookable, names, picture_of
from lrpfunc.pictures.explainers import CLASS, DEFAULT_COMPOSITE, Explainer, Wanted
from lrpfunc.pictures.explainers import explainer as made_ready
from lrpfunc.pictures.outfiles import check_outfile
from lrpfunc.pictures.outputs import VALUES, Meaning
from lrpfunc.pictures.samples import Notices, preprocessed
from lrpfunc.pictures.sheets import Sheets
from lrpfunc.pictures.tables import print_table

if TYPE_CHECKING:
    from rich.console import Console

LETTERS = 40  # of a model's, a composite's or a class's name in the name of a file


class Failed(NamedTuple):
    """An image that could not be explained, and why."""

    image: Path
    reason: str


class Written(NamedTuple):
    """What was explained, which images were not, the files made, what the outputs mean, and what to say of that."""

    found: list[Found]
    failed: list[Failed]
    files: list[Path]
    meaning: Meaning
    notes: tuple[str, ...]


def write(
    paths: Sequence[Path],
    out: Path,
    classifier: Classifier,
    composites: Sequence[str] = (DEFAULT_COMPOSITE,),
    targets: Sequence[str] = (),
    canonize: bool = True,
    device: str = "cpu",
    style: Style = Style(),  # noqa: B008 (a constant)
    overwrite: bool = False,
    relevance: str | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Written:
    """Explain image files, page by page, and write the pictures into the folder `out`, which is made.

    `relevance`: the format, npy or npz, in which relevance is written beside the pictures.
    An image is among the failed that cannot be read, whose preprocessing gives another size than the first one's, or
    of which a picture exists (without `overwrite`).
    Errors: `FileError` for a folder among the images, and if no image can be explained; `InputError` for an unknown
    format; those of `explainers.explainer`, `explainers.wanted_classes` and `heatmaps.heatmap`; `OSError`.
    """
    for path in paths:
        if os.path.isdir(path):  # says no where it cannot tell
            raise FileError(f"{path} is a folder: give images, such as {path / '*.jpg'}, or use `lrpfunc dataset`.")
    if relevance not in (None, *FORMATS):
        raise InputError(f"relevance is saved as {' or '.join(FORMATS)}, but '{relevance}' was asked for.")
    heatmaps.heatmap(torch.zeros(1, 1), style.colors, quantile=style.quantile)  # complain before, not after long work
    job = _Job(out, classifier, list(dict.fromkeys(composites)), targets, canonize, device, style, overwrite, relevance)
    named = _names(images.expanded(paths))
    failed: list[Failed] = []
    for number, (path, name) in enumerate(named.items(), start=1):
        try:
            job.explain(path, name)
        except _Unusable as error:
            failed.append(Failed(path, str(error)))
        if progress is not None:
            progress(number, len(named), len(failed))
    if not job.found:
        raise FileError(
            f"none of the images can be explained: {images.printable(failed[0].image)} {failed[0].reason.rstrip('.')}."
        )
    job.sheets.finish()
    return Written(job.found, failed, [*job.files, *job.sheets.files], job.ready[0].meaning, job.notes)


class _Unusable(Exception):
    """An image is at fault, and others may be well."""


class _Job:
    """What is to be done with each image, and what came of it."""

    def __init__(
        self,
        out: Path,
        classifier: Classifier,
        composites: Sequence[str],
        targets: Sequence[str],
        canonize: bool,
        device: str,
        style: Style,
        overwrite: bool,
        relevance: str | None,
    ):
        self.out, self.classifier, self.composites, self.targets = out, classifier, composites, targets
        self.canonize, self.device, self.style = canonize, device, style
        self.overwrite, self.relevance = overwrite, relevance
        self.ready: list[Explainer] = []
        self.wanted: list[Wanted] = []
        self.found: list[Found] = []
        self.files: list[Path] = []
        self.said = Notices()
        beginning = f"{_short(classifier.name)}.{'+'.join(map(_short, composites))[:80]}"
        self.sheets = Sheets(out, beginning, composites, style, overwrite)

    def explain(self, path: Path, name: str) -> None:
        """Explain an image under all composites, and write its pictures. Errors: `_Unusable`, and as `write`."""
        try:
            seen = images.look(path, self.classifier.reading)
            x = preprocessed(self.classifier, seen.image)[None]
        except FileError as error:
            raise _Unusable(str(error)) from error
        self.said.add(path, seen.notices)
        if not self.ready:
            self._prepare(x)
        try:
            found = self._found(path, x)
        except LrpError as error:  # another size than the first one's, relevance that is not finite
            raise _Unusable(str(error)) from error
        picture = picture_of(self.classifier.pixels(x)[0])
        model = _short(self.classifier.name)
        stems = [self.out / f"{name}.{model}.{_short(one.composite)}.{_class(one)}" for one in found]
        self._check(stems)
        for one, stem in zip(found, stems, strict=True):
            self.files += draw(one, picture, stem, self.style, self.overwrite, self.relevance)
        self.found += found
        if len(self.composites) > 1:
            self.sheets.add(found, lookable(picture))

    def _check(self, stems: Sequence[Path]) -> None:
        """Classes are in names, so they are known by now. Errors: `_Unusable`, before any of an image's is written."""
        for stem in stems:
            for file in names(stem, self.relevance):
                try:
                    check_outfile(file, self.overwrite)
                except FileError as error:
                    raise _Unusable(f"is left out, as {error}") from error

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of the model and of images."""
        return (*self.ready[0].notes, *self.said.lines)

    def _prepare(self, x: Tensor) -> None:
        for composite in self.composites:
            self.ready.append(made_ready(self.classifier, x, composite, self.canonize, self.device))
        self.wanted = self.ready[0].wanted(self.targets)
        self.out.mkdir(parents=True, exist_ok=True)

    def _found(self, path: Path, x: Tensor) -> list[Found]:
        found: list[Found] = []
        wanted = self.wanted
        for composite, ready in zip(self.composites, self.ready, strict=True):
            results = ready.attribute(x, wanted)
            if not results.prediction.isfinite().all():
                raise ModelError(
                    f"{self.classifier.name} gives nan or infinite outputs: its weights may be so, or its input too "
                    "large."
                )
            chosen = results.target[0].tolist()
            wanted = [Wanted(CLASS, choice) for choice in chosen]  # the same for all composites
            for choice in dict.fromkeys(chosen):  # the same class may have been wanted twice
                relevance = results.relevance[0, chosen.index(choice)]
                heatmaps.heatmap(relevance[None])  # complains of what is not finite before anything is written
                found.append(Found.of(path, composite, ready, choice, x[0], results.prediction, relevance))
        return found


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """What the pictures of each image begin with: as little of its path as tells the images apart."""
    # Links are not followed: what they lead to may have names that say nothing.
    given = {Path(os.path.abspath(path)): path for path in reversed(paths)}
    unique = list(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))
    names = [images.stem(path) for path in unique]
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


def _class(one: Found) -> str:
    return f"{one.target}-{_slug(one.label)}" if one.label != str(one.target) else str(one.target)


def _slug(label: str) -> str:
    return re.sub(r"[^\w-]+", "_", label)[:LETTERS]


def _short(name: str) -> str:
    """As `_slug`, but names that begin alike stay different."""
    slug = _slug(name)
    is_cut = len(name) > LETTERS
    return f"{slug[: LETTERS - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}" if is_cut else slug


def table(written: Written, console: Console) -> None:
    """Print what the model says, one line per image, composite and class."""
    meaning, has_classes = written.meaning, written.meaning.kind != VALUES
    columns = [("image", [str(one.image) for one in written.found])]
    if len({one.composite for one in written.found}) > 1:
        columns.append(("composite", [one.composite for one in written.found]))
    columns.append(("class" if has_classes else "value of", [_named(one) for one in written.found]))
    if has_classes:
        columns.append(("probability", [f"{one.probability:.2%}" for one in written.found]))
    if not meaning.are_probabilities:
        columns.append((meaning.word, [f"{one.score:.4g}" for one in written.found]))
    columns.append(("relevance sum", [f"{one.relevance_sum:.4g}" for one in written.found]))
    header, cells = zip(*columns, strict=True)
    print_table(console, header, list(zip(*cells, strict=True)), numbers=("probability", meaning.word, "relevance sum"))


def _named(one: Found) -> str:
    is_number = one.label == str(one.target) or one.probability is None
    return one.label if is_number else f"{one.target} {one.label}"
