"""A language model that explains answers: of one prompt, or of many, those of one length at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc import composites, text
from lrpfunc.compat import FAILED_DEVICE
from lrpfunc.composites import Composite
from lrpfunc.errors import InputError, ModelError
from lrpfunc.pictures.explainers import OWN, composite_among
from lrpfunc.pictures.texts.languages import LanguageModel, Written, said
from lrpfunc.program import Program
from lrpfunc.tracing import functionalize

COMPOSITES: dict[str, Callable[[], Composite]] = {
    "attn_lrp": composites.attn_lrp,
    "cp_lrp": composites.cp_lrp,
    "epsilon": composites.epsilon,
}
DEFAULT_COMPOSITE = "attn_lrp"
EXAMPLE = 12  # tokens, of a trace for texts of any length
NO_MEMORY = "DefaultCPUAllocator"  # of torch, which has no class for it on the CPU
KEPT_LENGTHS = 8  # traces of single lengths, of models that take no other


class Answers(NamedTuple):
    """Answers to prompts of one length, explained. `ids`: (batch, tokens) of prompt and answer."""

    ids: Tensor
    generation: text.Generation


class TextExplainer:
    """A language model with the rules for it.

    `other`: a token that each token of the answer is compared with. `chunk`: how many of these are explained at once.
    """

    def __init__(self, read: LanguageModel, rules: Composite, other: int | None = None, chunk: int = 8):
        self.read, self.rules, self.other, self.chunk = read, rules, other, chunk
        self._traces: OrderedDict[int | None, tuple[Program, Mapping[str, Tensor]]] = OrderedDict()

    @property
    def device(self) -> torch.device:
        return next(self.read.model.parameters()).device

    def explain(self, given: Sequence[Written], progress: Callable[[int, int], None] | None = None) -> Answers:
        """Explain answers to prompts, all of one length, answer and prompt alike.

        Errors: as `functionalize` and `text.generation` have them; `ModelError` for a model that does not run on them.
        """
        ids, start = self._together(given), given[0].prompt_length
        with self._run(ids):
            fmodel, params = self.trace(ids)
            generation = text.generation(
                fmodel, params, ids, start, self.rules, None, self.other, self.chunk, progress=progress
            )
        return Answers(ids, generation)

    def answered(self, given: Sequence[Written], words: int) -> list[Written]:
        """Prompts of one length with what the model writes: the likeliest token, `words` times or until it ends.

        Errors: `ModelError` for prompts that leave no room.
        """
        ids, start = self._together(given), given[0].prompt_length
        room = words if self.read.longest is None else min(words, self.read.longest - start)
        if room < 1:
            raise ModelError(f"the prompt is {start:,} tokens, all that {self.read.name} reads: give fewer words.")
        ends = torch.tensor(sorted(self.read.ends), device=ids.device)
        for _ in range(room):
            ids = torch.cat([ids, self.logits(ids)[:, None].argmax(-1)], 1)
            if torch.isin(ids[:, start:], ends).any(1).all():
                break
        return [self._until(row, start, ends) for row in ids]

    def logits(self, ids: Tensor) -> Tensor:
        """What may follow: (batch, vocabulary). Errors: `ModelError` for a model that does not run on the ids."""
        with torch.no_grad(), self._run(ids):
            return self.read.model(ids).logits[:, -1]

    def _together(self, given: Sequence[Written]) -> Tensor:
        return torch.cat([each.ids for each in given]).to(self.device)

    @contextmanager
    def _run(self, ids: Tensor) -> Iterator[None]:
        """Errors: `ModelError` for what torch says where a model does not run on its ids; `MemoryError`."""
        try:
            yield
        except (torch.OutOfMemoryError, FAILED_DEVICE):  # which fails all that comes after, too
            raise
        except (RuntimeError, IndexError) as error:
            if NO_MEMORY in str(error):
                raise MemoryError from error
            raise ModelError(
                f"{self.read.name} does not run on {ids.shape[1]:,} tokens in {self.read.model.dtype}: {said(error)} "
                "Give fewer words, or another --dtype."
            ) from error

    def _until(self, ids: Tensor, start: int, ends: Tensor) -> Written:
        """An answer up to the token that ends it, which is one only if it is the first."""
        (places,) = torch.isin(ids[start:], ends).nonzero(as_tuple=True)
        length = len(ids) if not len(places) else start + max(int(places[0]), 1)
        return Written(ids[None, :length].cpu(), start)

    def try_out(self) -> None:
        """Explain a few tokens, to hear before long work what no prompt could mend. Errors: as `explain` has them."""
        example = self._example()
        self.explain([Written(example.cpu(), example.shape[1] - 1)])

    def trace(self, ids: Tensor) -> tuple[Program, Mapping[str, Tensor]]:
        """The model as a program that takes these ids: the one for all lengths if the model allows, else of theirs.

        Which one it is depends on the model and the length alone.
        """
        if None not in self._traces:
            self._traces[None] = functionalize(self.read.model, self._example())
        if _takes(*self._traces[None], ids):
            return self._traces[None]
        length = ids.shape[1]
        if length not in self._traces or not _takes(*self._traces[length], ids):
            self._traces[length] = functionalize(self.read.model, ids)
        self._traces.move_to_end(length)
        while len(self._traces) > KEPT_LENGTHS + 1:
            self._traces.pop(next(key for key in self._traces if key is not None))
        return self._traces[length]

    def _example(self) -> Tensor:
        """Ids that stand for any: no padding, of which models warn."""
        length = max(2, min(EXAMPLE, self.read.longest or EXAMPLE))
        special = set(self.read.tokenizer.all_special_ids)
        plain = [number for number in range(min(self.read.size, length + len(special))) if number not in special]
        return torch.tensor([(plain or [0])[:length]], device=self.device).repeat(1, length)[:, :length]


def _takes(fmodel: Program, params: Mapping[str, Tensor], ids: Tensor) -> bool:
    try:
        fmodel.bind(params, (ids,))
    except InputError:
        return False
    return True


def composite_named(name: str) -> Composite:
    """Rules for text by their name, or one's own. Errors: `ModelError`."""
    return composite_among(COMPOSITES, name, f"and {OWN}", " for text")


def one_token(read: LanguageModel, other: str) -> int:
    """The one token that a word is. Errors: `ModelError`."""
    ids = list(read.tokenizer(other, add_special_tokens=False)["input_ids"])
    if len(ids) != 1:
        words = ", ".join(repr(word) for word in read.words(ids)) or "none"
        raise ModelError(
            f"--other takes one token, but {other!r} is {len(ids)} ({words}): begin with a space, perhaps."
        )
    return ids[0]
