"""A file of prompts explained, part by part: each part is a Parquet file, which appears whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lrpfunc.errors import FileError, InputError, LrpError
from lrpfunc.extras import need
from lrpfunc.pictures.explainers import device_named
from lrpfunc.pictures.parts import Block, Shard
from lrpfunc.pictures.remote import Place, place
from lrpfunc.pictures.runs import Outcome, Progress, fingerprint, versions
from lrpfunc.pictures.texts import files, languages
from lrpfunc.pictures.texts.answers import DEFAULT_COMPOSITE, Answers, TextExplainer, composite_named, one_token
from lrpfunc.pictures.texts.files import KIND, Row, TextRun
from lrpfunc.pictures.texts.languages import AUTO, LanguageModel, Written
from lrpfunc.pictures.texts.prompts import Prompt, Prompts, open_prompts
from lrpfunc.pictures.workfile import differences

PACKAGES = ("lrpfunc", "torch", "transformers", "tokenizers", "numpy", "pyarrow")
# What must be the same in a run that goes on.
SAME = ("kind", "model", "parameters", "tokenizer", "dtype", "composite", "other", "words", "samples", "batch", "shard")
OF_TOKENIZERS = (".json", ".txt", ".model", ".tiktoken", ".jinja")  # how their files end
OF_MODELS = ("config.json", "generation_config.json", "model.safetensors.index.json")


def prepared(
    source: str | Place,
    model: str,
    composite: str = DEFAULT_COMPOSITE,
    other: str | None = None,
    dtype: str = AUTO,
    device: str = "cpu",
    batch: int = 16,
    chunk: int = 8,
    words: int = 1,
) -> Job:
    """What is done before the first prompt: the file opened, the model read, traced, and tried on a few tokens.

    `source`, `model`: see `prompts.open_prompts`, `languages.load`. `other`: a word that each word of an answer is
    compared with. `batch`: prompts that are looked at together, of which those of one length are explained at once;
    `chunk`: words of an answer at once. `words`: how many the model writes where there is no answer, each
    the likeliest.
    Errors: of the source, of the folder of the model, and of a model that cannot be explained: `FileError`,
    `ModelError`, `TraceError`, `InputError`, `MissingExtraError`.
    """
    if min(batch, chunk, words) < 1:
        raise InputError(f"batch, chunk and words must be >= 1, but are {batch}, {chunk} and {words}.")
    need("pyarrow", "parquet", "writing Parquet")
    prompts = open_prompts(source := place(source))
    rules = composite_named(composite)
    read = languages.load(model, dtype, device_named(device))
    explainer = TextExplainer(read, rules, None if other is None else one_token(read, other), chunk)
    explainer.try_out()
    details = {
        "kind": KIND,
        "model": read.name,
        "parameters": fingerprint(read.model),
        "tokenizer": _fingerprint(Path(model)),
        "dtype": str(read.model.dtype).removeprefix("torch."),
        "composite": composite,
        "other": other,
        "words": words,
        "source": str(source),
        "samples": len(prompts),
        "contents": prompts.digest,
        "batch": batch,
        "device": str(explainer.device),
        "versions": versions(PACKAGES),
    }
    return Job(prompts, explainer, batch, words, details)


def _fingerprint(folder: Path) -> str:
    """Of what a tokenizer is read from."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in OF_TOKENIZERS and path.name not in OF_MODELS:
            digest.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()


class Job(NamedTuple):
    """What is to be done, with all that is made ready once: a `distributed.worker.Job`."""

    prompts: Prompts
    explainer: TextExplainer
    batch: int
    words: int
    details: dict[str, Any]

    @property
    def kind(self) -> str:
        return KIND

    @property
    def ending(self) -> str:
        """Of a part's file."""
        return files.ENDING

    @property
    def same(self) -> Sequence[str]:
        """The details that must be the same whenever a run goes on."""
        return SAME

    @property
    def size(self) -> int:
        """How many prompts there are."""
        return len(self.prompts)

    @property
    def contents(self) -> str:
        """What changes with the file of prompts."""
        return self.prompts.digest

    def run_part(self, part: Block | Shard, out: Path, progress: Progress | None = None) -> Outcome:
        """Write a part, unless its file is there. A prompt that cannot be explained has a row that says why.

        Errors: `FileError` for a file there that is of another run; `OSError`.
        """
        details = self.details | {"shard": str(part)}
        if os.path.lexists(out):
            return _finished_before(out, details)
        rows = _Rows(self, part.positions(self.size), progress or (lambda *_: None))
        try:
            files.write(out, details, rows)
        except FileError:
            if not os.path.lexists(out):
                raise
            return _finished_before(out, details)  # a process that was taken for dead was faster
        return Outcome(out, rows.written, rows.failures, rows.written, 0, notes=self.explainer.read.notes)


def _finished_before(out: Path, details: dict[str, Any]) -> Outcome:
    run = TextRun(out)
    if differing := differences(run.details, details, (*SAME, "contents")):
        raise FileError(f"{out} is of another run, with {', '.join(differing)}.")
    failures = run.failures
    return Outcome(out, len(run) - len(failures), failures, 0, 0, was_finished=True)


# -- rows -------------------------------------------------------------------------------------------------------------


class _Asked(NamedTuple):
    place: int
    prompt: Prompt
    written: Written

    @property
    def shape(self) -> tuple[int, int]:
        """What those have in common that are explained at once."""
        return self.written.ids.shape[1], self.written.prompt_length

    def with_answer(self, written: Written) -> _Asked:
        """What the model wrote behind it."""
        return self._replace(written=written)

    def failed(self, error: object) -> Row:
        return _failed(self.place, self.prompt, error)


class _Rows:
    """The rows of some prompts, in their order, and what became of them."""

    def __init__(self, job: Job, positions: range, progress: Progress):
        self._job, self._positions, self._progress = job, positions, progress
        self.failures: list[files.Failure] = []
        self.written = 0

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self._positions), self._job.batch):
            indices = self._positions[start : start + self._job.batch]
            for row in self._of(indices):
                if row.error is None:
                    self.written += 1
                else:
                    self.failures.append(files.Failure(row.index, row.id, row.error))
                yield row
            self._progress(start + len(indices), len(self._positions), len(self.failures))

    def _of(self, indices: Sequence[int]) -> list[Row]:
        rows: list[Row] = []
        usable: list[_Asked] = []
        for index in indices:
            asked = _asked(self._job, index)
            if isinstance(asked, Row):
                rows.append(asked)
            else:
                usable.append(asked)
        for group in _groups(usable):
            rows += _explained(self._job, group)
        return sorted(rows, key=lambda row: row.index)


def _asked(job: Job, index: int) -> _Asked | Row:
    try:
        prompt = job.prompts.read(index)
    except FileError as error:
        return Row(index, job.prompts.where(index), error=_reason(error))
    try:
        return _Asked(index, prompt, job.explainer.read.written(prompt.prompt, prompt.answer))
    except LrpError as error:
        return _failed(index, prompt, error)


def _explained(job: Job, group: Sequence[_Asked]) -> list[Row]:
    """Prompts of one length. Where together they fail, or are too many for the memory, fewer are tried."""
    try:
        if not group[0].written.answer_length:
            return _answered(job, group)
        answers = job.explainer.explain([asked.written for asked in group])
        return [_row(job.explainer.read, asked, answers, number) for number, asked in enumerate(group)]
    except LrpError as error:
        reason = str(error)
    except (MemoryError, torch.OutOfMemoryError):
        length = group[0].written.ids.shape[1]
        reason = f"the memory does not suffice for its {length:,} tokens: a smaller --chunk takes less"
    if len(group) == 1:
        return [group[0].failed(reason)]
    half = len(group) // 2
    return [*_explained(job, group[:half]), *_explained(job, group[half:])]


def _answered(job: Job, group: Sequence[_Asked]) -> list[Row]:
    """Prompts of one length without an answer, which may come to be of several lengths."""
    written = job.explainer.answered([asked.written for asked in group], job.words)
    return [row for each in _groups(map(_Asked.with_answer, group, written)) for row in _explained(job, each)]


def _groups(given: Iterable[_Asked]) -> Iterable[list[_Asked]]:
    """By what those have in common that are explained at once."""
    groups: dict[tuple[int, int], list[_Asked]] = {}
    for asked in given:
        groups.setdefault(asked.shape, []).append(asked)
    return groups.values()


def _row(read: LanguageModel, asked: _Asked, answers: Answers, number: int) -> Row:
    ids, generation = answers.ids[number].tolist(), answers.generation
    matrix = generation.matrix[number].double().cpu()
    words, start = read.words(ids), asked.written.prompt_length
    return Row(
        asked.place,
        asked.prompt.name,
        asked.prompt.prompt,
        asked.prompt.answer or "".join(words[start:]),
        bool(asked.prompt.answer),
        words,
        ids,
        start,
        matrix.sum(0).float().numpy(),
        matrix.float().numpy(),
        generation.logits[number].tolist(),
        generation.probabilities[number].tolist(),
    )


def _failed(index: int, prompt: Prompt, error: object) -> Row:
    is_given = bool(prompt.answer)
    return Row(index, prompt.name, prompt.prompt, prompt.answer or None, is_given, error=_reason(error))


def _reason(error: object) -> str:
    return str(error).rstrip(".")
