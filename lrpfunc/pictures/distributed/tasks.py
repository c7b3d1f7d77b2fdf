"""What a run is, as any process can be told of it; `prepared` makes it ready in that process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lrpfunc.pictures import runs
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.explainers import DEFAULT_COMPOSITE
from lrpfunc.pictures.remote import Place, place
from lrpfunc.pictures.texts import runs as text_runs
from lrpfunc.pictures.texts.answers import DEFAULT_COMPOSITE as TEXT_COMPOSITE
from lrpfunc.pictures.texts.languages import AUTO

BLOCK = 256  # samples


class Task(NamedTuple):
    """Pictures: `block` samples in each file of `folder`, the rest as `runs.run`."""

    source: str | Place
    folder: Path
    classifier: Classifier
    composite: str = DEFAULT_COMPOSITE
    targets: tuple[str, ...] = ()
    canonize: bool = True
    device: str = "cpu"
    batch: int = 16
    workers: int = 0
    block: int = BLOCK

    @property
    def packages(self) -> Sequence[str]:
        """Whose versions all processes must have."""
        return runs.PACKAGES

    def absolute(self) -> Task:
        """With paths as other machines have them, which share the file system."""
        return self._replace(source=_absolute(self.source), folder=Path(os.path.abspath(self.folder)))

    def prepared(self) -> runs.Job:
        """Errors: as `runs.prepared` has them."""
        return runs.prepared(
            self.source,
            self.classifier,
            self.composite,
            self.targets,
            self.canonize,
            self.device,
            self.batch,
            self.workers,
        )


class TextTask(NamedTuple):
    """Prompts, and the answers to them: `block` of them in each file of `folder`, the rest as `texts.runs.prepared`."""

    source: str | Place
    folder: Path
    model: str
    composite: str = TEXT_COMPOSITE
    other: str | None = None
    dtype: str = AUTO
    device: str = "cpu"
    batch: int = 16
    chunk: int = 8
    words: int = 1
    block: int = BLOCK

    @property
    def packages(self) -> Sequence[str]:
        """Whose versions all processes must have."""
        return text_runs.PACKAGES

    def absolute(self) -> TextTask:
        """With paths as other machines have them, which share the file system."""
        folder, model = Path(os.path.abspath(self.folder)), os.path.abspath(self.model)
        return self._replace(source=_absolute(self.source), folder=folder, model=model)

    def prepared(self) -> text_runs.Job:
        """Errors: as `texts.runs.prepared` has them."""
        return text_runs.prepared(
            self.source,
            self.model,
            self.composite,
            self.other,
            self.dtype,
            self.device,
            self.batch,
            self.chunk,
            self.words,
        )


def _absolute(source: str | Place) -> Place:
    found = place(source)
    return Path(os.path.abspath(found)) if isinstance(found, Path) else found
