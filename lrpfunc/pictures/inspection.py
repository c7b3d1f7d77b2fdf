"""What LRP would do with a classifier: what canonization makes of it, and which rule each of its equations gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lrpfunc.attribution import footprint
from lrpfunc.canonizers import Report
from lrpfunc.composites import Explanation, explain
from lrpfunc.errors import LrpError, ModelError
from lrpfunc.pictures.classifiers import IMAGENET_SIZE, Classifier
from lrpfunc.pictures.explainers import Explainer, explainer
from lrpfunc.pictures.tables import print_table

if TYPE_CHECKING:
    from rich.console import Console

PLANNED_IMAGES, PLANNED_SEGMENTS = (1, 16), (1, 4, 16)  # 16 is the batch of `lrpfunc dataset`
COLUMNS = ("name", "kind", "operation", "input", "output", "rule")


class Inspection(NamedTuple):
    """What was found: the explainer with its canonization report, and the listing equation => rule."""

    composite: str
    explainer: Explainer
    explanation: Explanation


def inspect(classifier: Classifier, composite: str, canonize: bool = True) -> Inspection:
    """Trace, canonize and list a classifier. Errors: as `explainers.explainer`; `ModelError` as `blank`."""
    ready = explainer(classifier, blank(classifier), composite, canonize)
    return Inspection(composite, ready, explain(ready.program, ready.rules))


def blank(classifier: Classifier) -> torch.Tensor:
    """An input (1, C, H, W) of a white picture, for models whose input nobody has at hand. Errors: `ModelError`."""
    from PIL import Image

    try:
        return classifier.preprocess(Image.new("RGB", (IMAGENET_SIZE, IMAGENET_SIZE), "white"))[None]
    except LrpError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise ModelError(f"the preprocessing of {classifier.name} failed: {type(error).__name__}: {error}") from error


class Planned(NamedTuple):
    """What an explanation of so many images at once takes in bytes, in so many segments (`checkpoint`)."""

    images: int
    segments: int
    parameters: int
    working: int


def planned(found: Inspection) -> list[Planned]:
    """What explaining takes of memory, computed without explaining anything. Errors: as `attribution.footprint`."""
    ready, rows = found.explainer, []
    x = blank(ready.classifier)
    for images in PLANNED_IMAGES:
        batch = x.expand(images, *x.shape[1:]).to("meta")
        for segments in PLANNED_SEGMENTS:
            took = footprint(ready.program, ready.params, batch, ready.rules, torch.ones_like, checkpoint=segments)
            rows.append(Planned(images, segments, *took))
    return rows


def as_json(found: Inspection, memory: Sequence[Planned] = ()) -> dict[str, Any]:
    """What was found, as JSON takes it; `memory`: also what was planned."""
    report, ready = found.explainer.report, found.explainer
    subjects = {"batch norm": ()} if report is None else report.subjects
    fates = {} if report is None else report.fates
    return {
        "model": ready.classifier.name,
        "weights": ready.classifier.weights,
        "classes": ready.choices,
        "output": ready.meaning.as_json(),
        "composite": found.composite,
        "canonized": report is not None,
        **{
            f"{subject.replace(' ', '_')}s": [{"name": name, **fates[name]._asdict()} for name in names]
            for subject, names in subjects.items()
        },
        "equations": [
            {**dict(zip(COLUMNS, row[1:], strict=True)), "fallback": bool(row[0])} for row in found.explanation.rows
        ],
        **({"memory": [row._asdict() for row in memory]} if memory else {}),
    }


def tables(found: Inspection, console: Console, memory: Sequence[Planned] = ()) -> None:
    """Print both tables, and what was planned."""
    from rich.text import Text

    report, ready = found.explainer.report, found.explainer
    what = f"{ready.outputs} {ready.meaning.kind}" if ready.outputs > 1 else str(ready.meaning)
    console.print(Text(f"{ready.classifier.name}, {what}, composite {found.composite}", style="bold"))
    for note in ready.notes:
        console.print(Text(note))
    if report is None:
        console.print("not canonized\n")
    else:
        _print_fates(console, report)
    rows, fallbacks = found.explanation.rows, found.explanation.fallbacks
    print_table(console, ("", *COLUMNS), rows, ["yellow" if row[0] else "" for row in rows])
    if fallbacks:
        console.print(
            Text(f"! {len(fallbacks)} without a rule: the gradient moves what arrives there.", style="yellow")
        )
    if memory:
        _print_memory(console, memory)


def _print_memory(console: Console, memory: Sequence[Planned]) -> None:
    """Megabytes; what kernels take for themselves comes on top."""
    header = ("images at once", "segments", "parameters, MB", "besides, MB", "together, MB")
    rows = []
    for images, segments, *took in memory:
        rows.append((str(images), str(segments), *(f"{count / 1e6:.1f}" for count in (*took, sum(took)))))
    console.print()
    print_table(console, header, rows, numbers=header)


def _print_fates(console: Console, report: Report) -> None:
    left = report.left
    for subject, names in report.subjects.items():
        if names:
            header, rows = (subject, "became", "where"), [(name, *report.fates[name]) for name in names]
            print_table(console, header, rows, ["yellow" if name in left else "" for name in names])
        else:
            console.print(f"no {subject}s\n")
