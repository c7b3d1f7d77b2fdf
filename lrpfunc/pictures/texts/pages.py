"""`lrpfunc text`: why a language model writes this word next, or what an answer rests on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from lrpfunc import circuits, text
from lrpfunc.errors import FileError, ModelError
from lrpfunc.pictures.explainers import device_named
from lrpfunc.pictures.outfiles import check_outfile, outfile
from lrpfunc.pictures.tables import print_table
from lrpfunc.pictures.texts import languages
from lrpfunc.pictures.texts.answers import DEFAULT_COMPOSITE, TextExplainer, composite_named, one_token
from lrpfunc.pictures.texts.languages import AUTO, LanguageModel, Written
from lrpfunc.text.grids.pages import check_numbers
from lrpfunc.text.tokens import heading

if TYPE_CHECKING:
    from rich.console import Console

CANDIDATES = 5
SHOWN = 40  # letters of a sentence in a table
LONG = 256  # tokens from which a graph has the strongest edges of each alone
KEPT = 32  # so many


class Candidate(NamedTuple):
    """What a model might write next."""

    word: str
    probability: float
    logit: float


class Explained(NamedTuple):
    """What was explained. `candidates`: for the next word, if no answer was given. `graph`: of one word of the answer,
    if one was asked for, the `graphed`."""

    path: Path
    words: list[str]
    generation: text.Generation
    candidates: list[Candidate]
    notes: tuple[str, ...]
    graph: circuits.Graph | None = None
    graphed: str = ""


def write(
    model: str,
    prompt: str,
    out: Path,
    answer: str = "",
    other: str | None = None,
    composite: str = DEFAULT_COMPOSITE,
    dtype: str = AUTO,
    device: str = "cpu",
    chunk: int = 8,
    overwrite: bool = False,
    graph: int | None = None,
    words: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Explained:
    """Explain an answer, or what the model writes, the likeliest word after word, and write a page of it.

    `words`: how many it writes, if no answer is given. `graph`: which word of the answer, counted from 1, is also
    shown as tokens through layers.
    Errors: `FileError`, `ModelError`, and those of `text.generation` and `circuits.graph`.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise FileError(f"{out} is a page: give it a name that ends in .html.")
    check_outfile(out, overwrite)
    rules = composite_named(composite)
    read = languages.load(model, dtype, device_named(device))
    given = read.written(prompt, answer)
    explainer = TextExplainer(read, rules, None if other is None else one_token(read, other), chunk)
    candidates = []
    if not answer:
        candidates = _candidates(read, explainer.logits(given.ids.to(explainer.device))[0].double())
        (given,) = explainer.answered([given], words)
    check_numbers(given.answer_length * given.ids.shape[1], "A shorter prompt or answer has fewer.")
    at = given.prompt_length - 1 if graph is None else _checked_graph(graph, given)
    answers = explainer.explain([given], progress)
    pieces = read.words(answers.ids[0].tolist())
    found = Explained(out, pieces, answers.generation, candidates, read.notes)
    if graph is not None:
        found = found._replace(graph=_graph(explainer, answers.ids, at), graphed=pieces[at + 1])
    with outfile(out, overwrite) as part:
        part.write_text(_page(found, read.name, composite, other), encoding="utf-8")
    return found


def _graph(explainer: TextExplainer, ids: Tensor, at: int) -> circuits.Graph:
    """Of the token after a position. Errors: as `circuits.graph` has them."""
    label, other = int(ids[0, at + 1]), explainer.other
    target = text.token(label, at) if other is None else text.contrast(label, other, at)
    keep = None if ids.shape[1] <= LONG else KEPT
    fmodel, params = explainer.trace(ids)
    return circuits.graph(fmodel, params, ids, target, explainer.rules, keep=keep, split=keep is None)


def _checked_graph(graph: int, given: Written) -> int:
    """The position that a word of the answer is written at. Errors: `ModelError`."""
    if not 1 <= graph <= given.answer_length:
        raise ModelError(f"--graph takes a word of the answer, 1 to {given.answer_length}, but got {graph}.")
    return given.prompt_length + graph - 2


def _candidates(read: LanguageModel, logits: Tensor) -> list[Candidate]:
    probabilities = logits.softmax(-1)
    best = probabilities.topk(min(CANDIDATES, len(probabilities))).indices.tolist()
    words = [read.words([token])[0] for token in best]
    return [
        Candidate(word, float(probabilities[token]), float(logits[token]))
        for word, token in zip(words, best, strict=True)
    ]


def _page(found: Explained, model: str, composite: str, other: str | None) -> str:
    instead = "" if other is None else f", and not {other!r}"
    title = f"What each word rests on{instead}: {model}, {composite}"
    if found.graph is not None:
        return found.graph.html(found.words, answer=found.graphed, title=title, matrix=found.generation.matrix[0])
    if len(found.generation.logits[0]) > 1:
        return text.matrix(found.generation.matrix[0], found.words, title=title)
    return text.html(**found.generation.rows(found.words), title=title)


# -- in the terminal --------------------------------------------------------------------------------------------------


def tables(found: Explained, console: Console) -> None:
    """Print the candidates, or the answer word by word, and what the sentences of the prompt count."""
    if found.candidates:
        header = ("next word", "probability", "logit")
        rows = [(_shown(word), f"{p:.2%}", f"{logit:.4g}") for word, p, logit in found.candidates]
        print_table(console, header, rows, ["bold", *[""] * (len(rows) - 1)], numbers=header[1:])
    if len(found.generation.logits[0]) > 1 or not found.candidates:
        if found.candidates:
            console.print()
        _print_answer(found, console)
    sentences = text.sentences(found.words[: found.generation.prompt_length])
    if len(sentences) > 1:
        sums = found.generation.spans(sentences)[0].sum(0).tolist()
        counted = [(_shown(said), f"{value:+.4g}") for said, value in zip(sentences, sums, strict=True)]
        console.print()
        print_table(console, ("sentence of the prompt", "relevance"), counted, numbers=("relevance",))


def _print_answer(found: Explained, console: Console) -> None:
    start = found.generation.prompt_length
    matrix, explained = found.generation.matrix[0], found.generation.logits[0].tolist()
    probabilities = found.generation.probabilities[0].tolist()
    header = ("word", "probability", "explained", "of the prompt", "most by")
    rows = []
    for row, (word, probability) in enumerate(zip(found.words[start:], probabilities, strict=True)):
        most = found.words[int(matrix[row].argmax())]
        prompt = float(matrix[row, :start].sum())
        rows.append((_shown(word), f"{probability:.2%}", f"{explained[row]:.4g}", f"{prompt:+.4g}", _shown(most)))
    print_table(console, header, rows, numbers=header[1:4])


def _shown(word: str) -> str:
    return heading(word, SHOWN)
