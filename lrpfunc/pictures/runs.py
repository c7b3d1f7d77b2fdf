"""A data set explained, sample by sample, into one HDF5 file: in batches, in shards, resumable after any interruption.

While a run goes on there are two files beside the one that it is to write: FILE.part, which is that file with rows
missing, and FILE.journal, with a line for each batch that is done. The journal is locked as long as the run lives.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrpfunc.errors import FileError, InputError
from lrpfunc.pictures import hdf5
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.explainers import (
    DEFAULT_COMPOSITE,
    LABEL,
    Explainer,
    Wanted,
    explainer,
)
from lrpfunc.pictures.hdf5 import UNKNOWN, Failure, Schema, Writer
from lrpfunc.pictures.images import printable
from lrpfunc.pictures.outputs import VALUES, Meaning
from lrpfunc.pictures.parts import Block, Shard
from lrpfunc.pictures.remote import Place, place
from lrpfunc.pictures.samples import Batch, Loader, Notices, Samples, contents, open_samples
from lrpfunc.pictures.workfile import SAME, Workfile, check_same, claimed

PACKAGES = ("lrpfunc", "torch", "torchvision", "numpy", "h5py", "pillow")

Progress = Callable[[int, int, int], None]  # (samples done, samples in all, of these not readable)


class Outcome(NamedTuple):
    """What a run has done: file, rows, the samples without one, the rows written now, samples of unknown class.

    `was_finished`: there was nothing left to do. `notes`: what to say of model, data set and samples, in lines.
    """

    path: Path
    rows: int
    failures: Sequence[Failure]
    written: int
    unknown: int
    was_finished: bool = False
    notes: tuple[str, ...] = ()


def run(
    source: str | Place,
    out: Path,
    classifier: Classifier,
    composite: str = DEFAULT_COMPOSITE,
    targets: Sequence[str] = (),
    canonize: bool = True,
    device: str = "cpu",
    batch: int = 16,
    workers: int = 0,
    part: Shard | Block = Shard(),  # noqa: B008 (a constant)
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Explain all samples of `source` and write them to the HDF5 file `out`.

    `source`, `targets`, `composite`: see `samples.open_samples`, `explainers.wanted_classes`, `explainers.explainer`.
    `workers`: processes that read images, 0 for none. `resume`: go on where an interrupted run of the same kind ended,
    if there is one. A sample that cannot be read has no row, but an entry in `errors`.
    `targets`: as `Explainer.targets` unless given.
    Errors: `FileError` if `out` exists (without `overwrite`) or belongs to another run, if another process writes it,
    or if no sample can be read; `InputError`, `ModelError`, `TargetError`, `OSError` ("no space left" at the start).
    """
    with claimed(out, resume, overwrite) as workfile:
        job = prepared(source, classifier, composite, targets, canonize, device, batch, workers, part)
        return _done(job, workfile, progress)


def prepared(
    source: str | Place,
    classifier: Classifier,
    composite: str = DEFAULT_COMPOSITE,
    targets: Sequence[str] = (),
    canonize: bool = True,
    device: str = "cpu",
    batch: int = 16,
    workers: int = 0,
    part: Shard | Block = Shard(),  # noqa: B008 (a constant)
) -> Job:
    """What `run` does before the first sample: the data set opened, the classifier traced and prepared.

    Errors: as `run` has them, of source, classifier and targets.
    """
    if batch < 1 or workers < 0:
        raise InputError(f"batch must be >= 1 and workers >= 0, but are {batch} and {workers}.")
    source = place(source)
    reader = replace(classifier, model=torch.nn.Identity())  # processes that read get a copy, and need no model
    samples = open_samples(source, reader)
    positions = part.positions(len(samples.names))
    example = _example(samples, positions)
    ready = explainer(classifier, example[None], composite, canonize, device)
    labels = _labels(samples, ready)
    wanted = ready.wanted(targets, bool((labels >= 0).any()))
    details = _details(ready, samples, source, composite, ready.targets(targets), part, batch)
    return Job(samples, reader, labels, positions, ready, wanted, batch, workers, tuple(example.shape), details)


def run_part(job: Job, part: Shard | Block, out: Path, progress: Progress | None = None) -> Outcome:
    """Write one part of a data set that was prepared as a whole; go on where a process that did so was killed.

    All samples of a part may be unreadable: its file has no rows then. Errors: as `run` has them, of `out`.
    """
    positions = part.positions(len(job.samples.names))
    with claimed(out, resume=True, overwrite=False) as workfile:
        return _done(job._replace(positions=positions, details=job.details | {"shard": str(part)}), workfile, progress)


class Job(NamedTuple):
    """What is to be done, with everything that is made ready once; for blocks it is a `distributed.worker.Job`."""

    samples: Samples
    reader: Classifier
    labels: np.ndarray
    positions: range
    explainer: Explainer
    wanted: Sequence[Wanted]
    batch: int
    workers: int
    shape: tuple[int, ...]
    details: dict[str, Any]

    @property
    def kind(self) -> str:
        return "pictures"

    @property
    def ending(self) -> str:
        """Of a part's file."""
        return ".h5"

    @property
    def same(self) -> Sequence[str]:
        """The details that must be the same whenever a run goes on."""
        return SAME

    @property
    def size(self) -> int:
        """How many samples there are in the data set."""
        return len(self.samples.names)

    @property
    def contents(self) -> str:
        """What changes with the data set's files."""
        return contents(self.samples)

    def run_part(self, part: Shard | Block, out: Path, progress: Progress | None = None) -> Outcome:
        """See `run_part`."""
        return run_part(self, part, out, progress)

    @property
    def batches(self) -> list[range]:
        """The positions of the samples of each batch. They are the same however often a run is interrupted."""
        return [self.positions[i : i + self.batch] for i in range(0, len(self.positions), self.batch)]


def _example(samples: Samples, positions: range) -> Tensor:
    """The first input that can be read."""
    reason = "there are none in this shard"
    for index in positions:
        try:
            return samples.load(index)
        except FileError as error:
            reason = f"{printable(samples.names[index])} {error}"
    raise FileError(f"none of the {len(positions)} samples can be read: {reason}.")


def _labels(samples: Samples, ready: Explainer) -> np.ndarray:
    """The class of each sample; values are of no class."""
    if ready.meaning.kind == VALUES:
        return np.full(len(samples.names), UNKNOWN, dtype=np.int64)
    return samples.labels(ready.choices, ready.names)


def _details(
    ready: Explainer,
    samples: Samples,
    source: str | Place,
    composite: str,
    targets: Sequence[str],
    part: Shard | Block,
    batch: int,
) -> dict:
    classifier = ready.classifier
    return {
        "model": classifier.name,
        "weights": classifier.weights,
        "parameters": fingerprint(classifier.model),
        "preprocess": _preprocess(classifier),
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "categories": hashlib.sha256("\n".join(classifier.categories).encode()).hexdigest(),
        "output": ready.meaning.as_json(),
        "composite": composite,
        "canonized": ready.report is not None,
        "targets": list(targets),
        "shard": str(part),
        "source": str(source),
        "samples": len(samples.names),
        "names": samples.identity,
        "batch": batch,
        "device": str(ready.device),
        "versions": versions(),
    }


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Of what computes here; None of a package that is not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def fingerprint(model: torch.nn.Module) -> str:
    """A fingerprint of all parameters."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _preprocess(classifier: Classifier) -> str:
    """What makes inputs of image files, all that they depend on."""
    window = classifier.reading.window
    return _stable(classifier.preprocess) + (f", window {window}" if window else "")


def _stable(function: Callable) -> str:
    """What describes a function in this process and the next: its repr, but for its address."""
    return getattr(function, "__qualname__", None) or re.sub(r" at 0x[0-9a-f]+", "", repr(function))


# -- the loop ---------------------------------------------------------------------------------------------------------


def _done(job: Job, workfile: Workfile, progress: Progress | None) -> Outcome:
    if workfile.is_finished:
        return _finished_before(workfile, job.details, _unknown(job.labels, job.positions, job.explainer.meaning))
    return _write_all(job, workfile, progress or (lambda *_: None))


def _write_all(job: Job, workfile: Workfile, progress: Progress) -> Outcome:
    batches = job.batches
    writer = workfile.begun(job.details) or workfile.begin(_schema(job), job.details, job.explainer.names)
    done, rows, failures = workfile.progress()
    written, said = 0, Notices()
    for number, batch in enumerate(_loaded(job, batches[done:]), start=done):
        count, failed = _write_batch(job, batch, writer, rows)
        rows += count
        written += count
        failures += failed
        for name, notice in batch.notices:
            said.add(name, [notice])
        writer.sync()  # the journal must not say what a power cut could still undo
        workfile.record(number, rows, failed)
        progress(min((number + 1) * job.batch, len(job.positions)), len(job.positions), len(failures))
    workfile.finish(rows, failures)
    unknown = _unknown(job.labels, job.positions, job.explainer.meaning)
    return Outcome(
        workfile.out, rows, failures, written, unknown, notes=(*job.explainer.notes, *job.samples.notes, *said.lines)
    )


def _unknown(labels: np.ndarray, positions: range, meaning: Meaning) -> int:
    return 0 if meaning.kind == VALUES else int((labels[positions] == UNKNOWN).sum())


def _schema(job: Job) -> Schema:
    channels, height, width = job.shape
    longest = max(len(os.fsencode(job.samples.names[index])) for index in job.positions)
    return Schema(len(job.positions) * len(job.wanted), (channels, height, width), job.explainer.outputs, longest)


def _loaded(job: Job, batches: Sequence[range]) -> Iterator[Batch]:
    """Batches as they are read, by worker processes that are a few batches ahead."""
    from torch.utils.data import DataLoader

    loader: Any = Loader(job.samples, job.reader, job.shape)
    # Forked processes share what is in memory; others would get a copy of an array with all samples.
    context = "fork" if job.workers and sys.platform == "linux" else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch thinks that there should be no more processes than cores
            # Without a batch size the loader takes what the sampler gives, a list of positions, for one item.
            data = DataLoader(
                loader,
                batch_size=None,
                sampler=batches,
                num_workers=job.workers,
                collate_fn=_as_it_is,
                multiprocessing_context=context,
            )
        for batch in data:
            if isinstance(batch, OSError):
                raise batch
            yield batch
    except RuntimeError as error:
        if not re.search(r"DataLoader worker \(pid", str(error)):
            raise
        raise FileError(
            f"a process that reads images died ({error}), often for want of memory or of shared memory. "
            "--resume goes on; fewer --workers need less, and --workers 0 reads in the main process."
        ) from error


def _as_it_is(batch: Any) -> Any:
    return batch


def _write_batch(job: Job, batch: Batch, writer: Writer, row: int) -> tuple[int, list[Failure]]:
    """Explain a batch and write it from a row on: how many rows it has, and the samples that have none."""
    labels = job.labels[batch.indices]
    reasons = np.full(len(labels), "", dtype=object)
    if Wanted(LABEL) in job.wanted:
        reasons[labels < 0] = "its class is not known, which is the target"
    usable = reasons == ""
    if usable.any():
        chosen = torch.from_numpy(usable)
        found = job.explainer.attribute(batch.inputs[chosen], job.wanted, torch.from_numpy(labels[usable]))
        totals = found.relevance.sum((2, 3, 4), dtype=torch.float64)
        finite = (totals.isfinite().all(1) & found.prediction.isfinite().all(1)).numpy()
        reasons[np.flatnonzero(usable)[~finite]] = "its prediction or relevance is nan or infinite"
        kept = np.flatnonzero(usable)[finite]
        if len(kept):
            writer.write(row, _columns(job, batch, kept, finite, found, totals))
    failed = [
        Failure(index, printable(job.samples.names[index]), reason)
        for index, reason in zip(batch.indices, reasons, strict=True)
        if reason
    ]
    failed = sorted([*batch.failures, *failed])
    return (len(batch.indices) + len(batch.failures) - len(failed)) * len(job.wanted), failed


def _columns(
    job: Job, batch: Batch, kept: np.ndarray, finite: np.ndarray, found, totals: Tensor
) -> dict[str, np.ndarray]:
    """The rows of the samples at `kept` in a batch: all explained classes of the first sample, then of the next."""
    each = len(job.wanted)
    chosen = torch.from_numpy(finite)
    prediction, target = found.prediction[chosen], found.target[chosen]
    scores = job.explainer.meaning.scores(prediction)
    indices = np.array(batch.indices, dtype=np.int64)[kept]
    columns = {
        "prediction": prediction.float().numpy(),
        "label": job.labels[indices],
        "index": indices,
        "data": batch.pixels[torch.from_numpy(kept)].numpy(),
        "file": np.array([os.fsencode(job.samples.names[index]) for index in indices]),
    }
    repeated = {name: np.repeat(values, each, axis=0) for name, values in columns.items()}
    return repeated | {
        "attribution": found.relevance[chosen].flatten(0, 1).float().numpy(),
        "target": target.flatten().numpy(),
        "logit": scores.gather(1, target).flatten().float().numpy(),
        "relevance_sum": totals[chosen].flatten().float().numpy(),
    }


def _finished_before(workfile: Workfile, details: dict[str, Any], unknown: int) -> Outcome:
    with hdf5.opened(workfile.out) as finished:
        check_same(workfile.out, finished, details)
        return Outcome(workfile.out, finished.rows, finished.errors, 0, unknown, was_finished=True)
