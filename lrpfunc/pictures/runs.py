"""A data set explained, sample by sample, into one HDF5 file: in batches, in shards, resumable after any interruption.

While a run goes on there are two files beside the one that it is to write: FILE.part, which is that file with rows
missing, and FILE.journal, with a line for each batch that is done. The journal is locked as long as the run lives.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrpfunc.errors import FileError, InputError
from lrpfunc.pictures import store
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.explainers import DEFAULT_COMPOSITE, LABEL, Explainer, Wanted, explainer, wanted_classes
from lrpfunc.pictures.images import printable
from lrpfunc.pictures.samples import Batch, Loader, Samples, open_samples
from lrpfunc.pictures.store import UNKNOWN, Failure, Layout, Run, Writer

# What must be the same in a run that goes on. Of fingerprints, a message says what they are of.
SAME = (
    "model", "parameters", "preprocess", "mean", "std", "categories", "composite", "canonized", "targets", "shard",
    "samples", "names", "batch",
)  # fmt: skip
FINGERPRINTS = {"parameters": "parameters", "categories": "names of classes", "names": "files"}
PACKAGES = ("lrpfunc", "torch", "torchvision", "numpy", "h5py", "pillow")

Progress = Callable[[int, int, int], None]  # (samples done, samples in all, of these not readable)


class Shard(NamedTuple):
    """Every `of`-th sample, from the `number`-th on; both from 1."""

    number: int = 1
    of: int = 1

    def positions(self, samples: int) -> range:
        """The places in the data set that belong to this shard. Shards have no sample in common and miss none."""
        return range(self.number - 1, samples, self.of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def shard(text: str) -> Shard:
    """The shard `I/N`, such as 2/4. Errors: `InputError`."""
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"a shard is I/N with I from 1 to N, such as 1/4 to 4/4, but '{text}' is not.")
    return Shard(int(match[1]), int(match[2]))


class Outcome(NamedTuple):
    """What a run has done: file, rows, the samples without one, the rows written now, samples of unknown class.

    `was_finished`: there was nothing left to do.
    """

    path: Path
    rows: int
    failures: Sequence[Failure]
    written: int
    unknown: int
    was_finished: bool = False


def run(
    source: Path,
    out: Path,
    classifier: Classifier,
    composite: str = DEFAULT_COMPOSITE,
    targets: Sequence[str] = ("top",),
    canonize: bool = True,
    device: str = "cpu",
    batch: int = 16,
    workers: int = 0,
    part: Shard = Shard(),  # noqa: B008 (a constant)
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Explain all samples of `source` and write them to the HDF5 file `out`.

    `source`, `targets`, `composite`: see `samples.open_samples`, `explainers.wanted_classes`, `explainers.explainer`.
    `workers`: processes that read images, 0 for none. `resume`: go on where an interrupted run of the same kind ended,
    if there is one. A sample that cannot be read has no row, but an entry in `errors`.
    Errors: `FileError` if `out` exists (without `overwrite`) or belongs to another run, if another process writes it,
    or if no sample can be read; `InputError`, `ModelError`, `TargetError`, `OSError` ("no space left" at the start).
    """
    if batch < 1 or workers < 0:
        raise InputError(f"batch must be >= 1 and workers >= 0, but are {batch} and {workers}.")
    with _claimed(out, resume, overwrite) as place:
        reader = replace(classifier, model=torch.nn.Identity())  # processes that read get a copy, and need no model
        samples = open_samples(source, reader)
        positions = part.positions(len(samples.names))
        example = _example(samples, positions)
        ready = explainer(classifier, example[None], composite, canonize, device)
        labels = samples.labels(ready.classes)
        wanted = wanted_classes(targets, classifier.categories, ready.classes, bool((labels >= 0).any()))
        details = _details(ready, samples, source, composite, targets, part, batch)
        if place.is_finished:
            return _finished_before(place, details, _unknown(labels, positions))
        job = _Job(samples, reader, labels, positions, ready, wanted, batch, workers, tuple(example.shape), details)
        return _explain(job, place, progress or (lambda *_: None))


class _Job(NamedTuple):
    """What is to be done."""

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
    def batches(self) -> list[range]:
        """The places of the samples of each batch. They are the same however often a run is interrupted."""
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


def _details(
    ready: Explainer, samples: Samples, source: Path, composite: str, targets: Sequence[str], part: Shard, batch: int
) -> dict:
    classifier = ready.classifier
    return {
        "model": classifier.name,
        "weights": classifier.weights,
        "parameters": _digest(classifier.model),
        "preprocess": _stable(classifier.preprocess),
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "categories": hashlib.sha256("\n".join(classifier.categories).encode()).hexdigest(),
        "composite": composite,
        "canonized": ready.report is not None,
        "targets": list(targets),
        "shard": str(part),
        "source": str(source),
        "samples": len(samples.names),
        "names": samples.identity,
        "batch": batch,
        "device": str(ready.device),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _digest(model: torch.nn.Module) -> str:
    """A fingerprint of all parameters."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _stable(function: Callable) -> str:
    """What describes a function in this process and the next: its repr, but for the place in memory."""
    return getattr(function, "__qualname__", None) or re.sub(r" at 0x[0-9a-f]+", "", repr(function))


# -- the loop ---------------------------------------------------------------------------------------------------------


def _explain(job: _Job, place: _Place, progress: Progress) -> Outcome:
    batches = job.batches
    if not place.resumes(job.details):
        place.begin(_layout(job), job.details, job.explainer.classifier.categories)
    done, rows, failures = place.progress()
    written = 0
    with store.writing(place.work) as writer:
        for number, batch in enumerate(_loaded(job, batches[done:]), start=done):
            count, failed = _write(job, batch, writer, rows)
            rows += count
            written += count
            failures += failed
            place.record(number, rows, failed)
            progress(min((number + 1) * job.batch, len(job.positions)), len(job.positions), len(failures))
    store.finish(place.work, place.out, rows, failures)
    return Outcome(place.out, rows, failures, written, _unknown(job.labels, job.positions))


def _unknown(labels: np.ndarray, positions: range) -> int:
    return int((labels[positions] == UNKNOWN).sum())


def _layout(job: _Job) -> Layout:
    channels, height, width = job.shape
    longest = max(len(os.fsencode(job.samples.names[index])) for index in job.positions)
    return Layout(len(job.positions) * len(job.wanted), (channels, height, width), job.explainer.classes, longest)


def _loaded(job: _Job, batches: Sequence[range]) -> Iterator[Batch]:
    """Batches as they are read, by worker processes that are a few batches ahead."""
    from torch.utils.data import DataLoader

    loader: Any = Loader(job.samples, job.reader, job.shape)
    # Forked processes share what is in memory; others would get a copy of an array with all samples.
    context = "fork" if job.workers and sys.platform == "linux" else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch thinks that there should be no more processes than cores
            # Without a batch size the loader takes what the sampler gives, a list of places, for one item.
            data = DataLoader(
                loader,
                batch_size=None,
                sampler=batches,
                num_workers=job.workers,
                collate_fn=_as_it_is,
                multiprocessing_context=context,
            )
        yield from data
    except RuntimeError as error:
        if not re.search(r"DataLoader worker \(pid", str(error)):
            raise
        raise FileError(
            f"a process that reads images died ({error}), often for want of memory or of shared memory. "
            "--resume goes on; fewer --workers need less, and --workers 0 reads in the main process."
        ) from error


def _as_it_is(batch: Any) -> Any:
    return batch


def _write(job: _Job, batch: Batch, writer: Writer, row: int) -> tuple[int, list[Failure]]:
    """Explain a batch and write it from a row on: how many rows it has, and the samples that have none."""
    labels = job.labels[batch.indices]
    reasons = np.full(len(labels), "", dtype=object)
    if Wanted(LABEL) in job.wanted:
        reasons[labels < 0] = "its class is not known, which is the target"
    usable = reasons == ""
    if usable.any():
        chosen = torch.from_numpy(usable)
        found = job.explainer.explain(batch.inputs[chosen], job.wanted, torch.from_numpy(labels[usable]))
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
    job: _Job, batch: Batch, kept: np.ndarray, finite: np.ndarray, found, totals: Tensor
) -> dict[str, np.ndarray]:
    """The rows of the samples at `kept` in a batch: all explained classes of the first sample, then of the next."""
    each = len(job.wanted)
    chosen = torch.from_numpy(finite)
    prediction, target = found.prediction[chosen], found.target[chosen]
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
        "logit": prediction.gather(1, target).flatten().float().numpy(),
        "relevance_sum": totals[chosen].flatten().float().numpy(),
    }


# -- files in the making ----------------------------------------------------------------------------------------------


class _Place:
    """The file that a run is to write, with its work file and its journal, which is open and locked."""

    def __init__(self, out: Path, descriptor: int, resume: bool):
        self.out = out
        self.work, self.journal = _beside(out)
        self.new = self.work.with_name(f"{self.work.name}.new")
        self.new.unlink(missing_ok=True)  # of a process that was killed
        self._descriptor, self._resume = descriptor, resume

    @property
    def is_finished(self) -> bool:
        """Whether a run to be resumed has ended already."""
        return self._resume and self.out.exists() and not self.work.exists()

    def resumes(self, details: dict[str, Any]) -> bool:
        """Whether there is something to go on with. Errors: `FileError` if it is of another run."""
        if not (self._resume and self.work.exists()):
            return False
        with store.opened(self.work) as begun:
            _check_same(self.work, begun, details)
        return True

    def begin(self, layout: Layout, details: dict[str, Any], categories: Sequence[str]) -> None:
        """Make a work file, whole before it has its name; until then nothing is done, as the journal must say."""
        os.ftruncate(self._descriptor, 0)
        try:
            store.create(self.new, layout, details, categories)
            os.replace(self.new, self.work)
        finally:
            self.new.unlink(missing_ok=True)

    def progress(self) -> tuple[int, int, list[Failure]]:
        """Batches done, rows written, samples failed. A line that was not whole when the process died is cut off."""
        text = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        whole = text[: text.rfind(b"\n") + 1]
        os.ftruncate(self._descriptor, len(whole))
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            failures = [Failure(*failure) for line in lines for failure in line["failures"]]
            return len(lines), lines[-1]["rows"] if lines else 0, failures
        except (ValueError, TypeError, KeyError) as error:
            raise FileError(f"{self.journal} is damaged: begin anew with --overwrite.") from error

    def record(self, number: int, rows: int, failures: Sequence[Failure]) -> None:
        """Note that a batch is done. Its rows must be written."""
        line = json.dumps({"batch": number, "rows": rows, "failures": failures}) + "\n"
        store.write_at(self._descriptor, memoryview(line.encode()), os.fstat(self._descriptor).st_size)


def _beside(out: Path) -> tuple[Path, Path]:
    """The work file and the journal."""
    return out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.journal")


def check_place(out: Path, resume: bool = False, overwrite: bool = False) -> None:
    """Ask before long work whether a run can write to `out`. Errors: `FileError` if something is in the way."""
    if resume and overwrite:
        raise InputError("a run is either resumed or begun anew: give --resume or --overwrite, not both.")
    if out.is_dir():
        raise FileError(f"{out} is a folder: name a file in it, such as {out / 'explanations.h5'}.")
    if out.exists() and not out.is_file():
        raise FileError(f"{out} is no regular file: choose another --out.")
    if not out.parent.is_dir():
        raise FileError(f"cannot write {out}: there is no folder {out.parent}.")
    work, _ = _beside(out)
    if out.exists() and not (resume or overwrite):
        raise FileError(f"{out} exists. Choose another --out, or give --overwrite.")
    if work.exists() and not (resume or overwrite):
        raise FileError(
            f"{work} is of an unfinished run. Give --resume to go on with it, or --overwrite to begin anew."
        )


@contextmanager
def _claimed(out: Path, resume: bool, overwrite: bool) -> Iterator[_Place]:
    """The place for a run, for this process alone. Errors: as `check_place`, and if another process has it."""
    out = out.resolve() if out.is_symlink() else out  # the link stays, and what it leads to is written
    check_place(out, resume, overwrite)
    work, journal = _beside(out)
    descriptor = _locked(journal, out)
    try:
        check_place(out, resume, overwrite)  # what another process did before it let go
        yield _Place(out, descriptor, resume)
    finally:
        if not work.exists():  # nothing has begun, or all is finished
            journal.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(journal: Path, out: Path) -> int:
    """The journal, open and locked. Errors: `FileError` if another process has it."""
    while True:
        descriptor = os.open(journal, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, out)
            if journal.exists() and os.path.samestat(os.fstat(descriptor), journal.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who had it before has removed it: it is no one's journal any more


def _lock(descriptor: int, out: Path) -> None:
    """Keep other processes out, where the file system can.

    A record lock goes when this process does, also if processes that it forked live on.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise FileError(f"another process is writing {out}. Give each shard a file of its own.") from error
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def _check_same(path: Path, begun: Run, details: dict[str, Any]) -> None:
    differing = [
        f"other {FINGERPRINTS[key]}"
        if key in FINGERPRINTS
        else f"{key} {begun.details.get(key)!r} (now {details[key]!r})"
        for key in SAME
        if begun.details.get(key) != details[key]
    ]
    if differing:
        raise FileError(
            f"{path} is of another run, with {', '.join(differing)}. "
            "Give the same options to resume it, another --out, or --overwrite."
        )


def _finished_before(place: _Place, details: dict[str, Any], unknown: int) -> Outcome:
    with store.opened(place.out) as finished:
        _check_same(place.out, finished, details)
        return Outcome(place.out, finished.rows, finished.errors, 0, unknown, was_finished=True)
