"""What each token of an answer rests on: its relevance to the prompt and to the answer before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optree
import torch
from torch import Tensor

from lrpfunc.attribution.checks import BROADER
from lrpfunc.attribution.interpreter import Passed, at_inputs, backward, forward
from lrpfunc.attribution.plans import make_plan, opened
from lrpfunc.attribution.records import check_chunk_size
from lrpfunc.attribution.seeds import flows_entering
from lrpfunc.compat import register_pytree
from lrpfunc.composites import Entries, attn_lrp
from lrpfunc.errors import InputError, TargetError
from lrpfunc.operations import ACTIVATION, AFFINE, DENSE, ELEMENTWISE, Facts, facts, row_of
from lrpfunc.program import NAMESPACE, Equation, Program, Variable
from lrpfunc.rules import Flow
from lrpfunc.text.rows import short
from lrpfunc.text.targets import field_of_logits, filled, logits_of
from lrpfunc.text.tokens import check_tokens, heading

ATTN_LRP = attn_lrp()
Spans = Mapping[str, Iterable[int] | slice]


@dataclass(frozen=True)
class Generation:
    """What each token of an answer rests on. It is a pytree of tensors.

    Args:
        matrix: (batch, answer, tokens): the relevance of each token to each token of the answer; zeros at that token
            itself and after it.
        logits: (batch, answer): what is explained, the logit of each token of the answer, or that less another.
        probabilities: (batch, answer): that the model writes each token of the answer there.
        prompt_length: how many of the tokens are no answer.

    >>> import lrpfunc, torch
    >>> from lrpfunc import text
    >>> matrix = torch.tensor([[[1.0, 2.0, 0.0, 0.0], [1.0, 0.0, 4.0, 0.0]]])
    >>> found = text.Generation(matrix, torch.tensor([[4.0, 5.0]]), torch.tensor([[0.5, 0.9]]), prompt_length=2)
    >>> found.constants
    tensor([[1., 0.]])
    >>> found.spans({"prompt": range(2), "answer": slice(2, None)})
    tensor([[[3., 0.],
             [1., 4.]]])
    >>> text.show(**found.rows(["The", " key", " is", " red"]))
    is +4
    The   +1  ++
     key  +2  +++++
    <BLANKLINE>
    red +5
    The   +1  ++
     key   0
     is   +4  ++++++++++
    """

    matrix: Tensor
    logits: Tensor
    probabilities: Tensor
    prompt_length: int

    @property
    def constants(self) -> Tensor:
        """(batch, answer): what of each logit no token got, but biases, positions and what else is a constant."""
        return self.logits - self.matrix.sum(2)

    def spans(self, spans: Spans, answers: Spans | None = None) -> Tensor:
        """The relevance of spans of tokens, such as the passages that were retrieved, to each token of the answer.

        Args:
            spans: positions by name, {"passage 1": range(5, 90), "question": slice(90, 99)}, as `text.sentences` finds
                them. They may overlap; tokens in none are left out.
            answers: likewise spans of the answer, whose tokens are summed up; positions count from the first token of
                the prompt, too.

        Returns (batch, answer, spans), in the order of the spans; or (batch, spans of the answer, spans).
        Errors: `InputError` for positions that there are not, or that are of the prompt where the answer's are asked.
        """
        tokens = self.matrix.shape[2]
        summed = torch.stack([self.matrix[:, :, own].sum(2) for own in _positions(spans, 0, tokens)], 2)
        if answers is None:
            return summed
        start = self.prompt_length
        rows = [[position - start for position in own] for own in _positions(answers, start, tokens)]
        return torch.stack([summed[:, own].sum(1) for own in rows], 1)

    def rows(self, words: Sequence[str], sample: int = 0) -> dict[str, Any]:
        """What `text.show`, `html`, `image` and `save` draw: for each token of the answer a row of what is before it.

        Args:
            words: the strings of all tokens, prompt and answer.
            sample: of the batch.

        Errors: `InputError` for another number of words, and for a sample that there is not.
        """
        batch, answer, tokens = self.matrix.shape
        pieces = check_tokens(words)
        if len(pieces) != tokens:
            raise InputError(f"{tokens} tokens, prompt and answer, need a word each, but there are {len(pieces)}.")
        if type(sample) is not int or not 0 <= sample < batch:
            raise InputError(f"the sample must be a number from 0 to {batch - 1}, but is {sample!r}.")
        ends = range(self.prompt_length, self.prompt_length + answer)
        logits = self.logits[sample].tolist()
        return {
            "tokens": [pieces[:end] for end in ends],
            "relevance": [row[:end] for row, end in zip(self.matrix[sample], ends, strict=True)],
            "titles": [f"{heading(pieces[end])} {short(logit)}" for end, logit in zip(ends, logits, strict=True)],
        }


def _positions(spans: Spans, start: int, end: int) -> list[list[int]]:
    """Errors: `InputError` for no spans, and positions outside."""
    if not isinstance(spans, Mapping) or not spans:
        raise InputError('spans are tokens by name, such as {"question": range(3, 9)}, but there are none.')
    found = []
    for name, given in spans.items():
        own = list(range(end)[given] if isinstance(given, slice) else given)
        if wrong := [position for position in own if type(position) is not int or not start <= position < end]:
            raise InputError(f"'{name}' has the token {wrong[0]!r}, but they go from {start} to {end - 1}.")
        found.append(own)
    return found


register_pytree(
    Generation,
    lambda generation: ([generation.matrix, generation.logits, generation.probabilities], generation.prompt_length),
    lambda tensors, prompt_length: Generation(tensors[0], tensors[1], tensors[2], prompt_length),
)


# -- from one forward pass --------------------------------------------------------------------------------------------


def generation(
    fmodel: Program,
    params,
    ids: Tensor,
    prompt_length: int,
    rules: Entries = ATTN_LRP,
    x=None,
    other: int | Tensor | None = None,
    chunk_size: int = 8,
    checkpoint: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Generation:
    """Why a model wrote each token of an answer: the relevance of every token before it, from one forward pass.

    A row, of the token at position p, is what `attribute` gives with the target `text.token(ids[:, p], p - 1)`, summed
    over the width. What makes logits of single tokens is pulled back once for all; the rest for some at a time.

    Args:
        fmodel: a program of a causal language model with logits (batch, length, vocabulary).
        params: its parameters.
        ids: the tokens of prompt and answer, (batch, length). Shorter prompts are padded on the left.
        prompt_length: how many of them are the prompt; the others are explained.
        rules: as `attribute` takes them.
        x: the inputs, if not the ids alone: embeddings, or a dict with a mask. What several get is summed by token.
        other: a token, or one for each of the answer (batch, answer): what speaks for the answer's and not for it.
        chunk_size: tokens of the answer to pull back at once, with an attention's patterns for each; of 1 without any.
        checkpoint: as `attribute` takes it.
        progress: is told how many tokens of the answer are done, and of how many.

    Errors: those of `attribute`; `TargetError` for a prompt that leaves no answer and tokens outside the vocabulary;
    `InputError` for a model that reads what follows a token, and relevance that is not finite.

    >>> import lrpfunc, torch
    >>> from lrpfunc import text
    >>> head, ids = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 3.0]]), torch.tensor([[0, 2, 1, 2]])
    >>> f = lambda p, ids: torch.nn.functional.embedding(ids, p[0]).cumsum(1) @ p[1]
    >>> text.generation(*lrpfunc.trace(f, [torch.eye(3), head], ids), ids, prompt_length=2).matrix
    tensor([[[1., 0., 0., 0.],
             [0., 3., 0., 0.]]])
    """
    answer = _checked(ids, prompt_length, chunk_size)
    passed, place = _passed(fmodel, params, _inputs(fmodel, ids, x), rules, checkpoint)
    seed, explained, likely = _seeds(logits_of(passed.output), answer, prompt_length, other)
    rows, flow = [], _arrived(passed, place, seed)
    for positions in torch.arange(prompt_length - 1, ids.shape[1] - 1).split(chunk_size):
        rows.append(_pulled(passed, place, flow, positions.tolist(), tuple(ids.shape)))
        if progress is not None:
            progress(int(positions[-1]) + 2 - prompt_length, answer.shape[1])
    matrix = _checked_matrix(torch.cat(rows, 1), prompt_length, flow.tensor.dtype)
    return Generation(matrix, explained, likely, prompt_length)


def _checked(ids: Tensor, prompt_length: int, chunk_size: int) -> Tensor:
    """The answer's ids. Errors: `TargetError`, and for chunks `InputError`."""
    check_chunk_size(chunk_size)
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or ids.is_complex():
        got = f"{tuple(ids.shape)} of {ids.dtype}" if isinstance(ids, Tensor) else repr(ids)[:80]
        raise TargetError(f"ids are integers (batch, length), those of prompt and answer, but are {got}.")
    length = ids.shape[1]
    if type(prompt_length) is not int or not 0 < prompt_length < length:
        raise TargetError(
            f"prompt_length must leave an answer to explain, 1 to {length - 1} of {length} tokens, but is "
            f"{prompt_length!r}."
        )
    return ids[:, prompt_length:]


def _inputs(fmodel: Program, ids: Tensor, x):
    """What the program is given: what was asked, or the ids, by their name if it has names."""
    if x is not None:
        return x
    return {fmodel.input_names[0]: ids} if fmodel.takes_keywords and len(fmodel.input_names) == 1 else ids


def _passed(fmodel: Program, params, x, rules: Entries, checkpoint: int | None) -> tuple[Passed, str]:
    """A forward pass, and the variable at which rows are told apart."""
    place = _place(fmodel)
    plan = opened(make_plan(fmodel, params, rules, False, None), frozenset({place}))
    return forward(plan, x, {place: place}, checkpoint, is_final=False), place


def _before(logits: Tensor, answer: Tensor, prompt_length: int) -> Tensor:
    """The logits (batch, answer, vocabulary) that each token of the answer was taken from. Errors: `TargetError`."""
    batch, length, _ = logits.shape
    if (batch, length) != (len(answer), prompt_length + answer.shape[1]):
        raise TargetError(
            f"logits must be of all tokens, {(len(answer), prompt_length + answer.shape[1])}, but those of the model "
            f"are {(batch, length)}."
        )
    return logits[:, prompt_length - 1 : -1]


def _seeds(
    logits: Tensor, answer: Tensor, prompt_length: int, other: int | Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The relevance that enters at the logits, that of all tokens of the answer; by token what is explained, and how
    likely it is."""
    before = _before(logits, answer, prompt_length)
    seed, vocabulary = torch.zeros_like(logits), logits.shape[2]
    part = seed[:, -1 - answer.shape[1] : -1]
    explained = torch.zeros_like(before[:, :, 0])
    for tokens, sign in ((answer, 1), (_others(other, answer), -1)):
        if tokens is None:
            continue
        tokens = tokens.to(logits.device, torch.long)
        if wrong := tokens[(tokens < 0) | (tokens >= vocabulary)].tolist():
            raise TargetError(
                f"token {wrong[0]} is outside the vocabulary of {vocabulary} tokens, 0 to {vocabulary - 1}."
            )
        own = before.gather(2, tokens[:, :, None])
        part.scatter_add_(2, tokens[:, :, None], sign * own)
        explained = explained + sign * own[:, :, 0]
    return seed, explained, _probabilities(before, answer)


def _probabilities(before: Tensor, answer: Tensor) -> Tensor:
    """In float32 at least: exp(z_t - log sum_j exp z_j)."""
    wide = before.to(torch.promote_types(before.dtype, torch.float32))
    own = wide.gather(2, answer.to(wide.device, torch.long)[:, :, None])[:, :, 0]
    return (own - wide.logsumexp(2)).exp()


def _others(other: int | Tensor | None, answer: Tensor) -> Tensor | None:
    if other is None:
        return None
    if type(other) is int:
        return torch.full_like(answer, other)
    if not isinstance(other, Tensor) or other.shape != answer.shape or other.is_floating_point():
        raise TargetError(
            f"other is a token, or integers with one for each token of the answer, {tuple(answer.shape)}, but is "
            f"{tuple(other.shape) if isinstance(other, Tensor) else repr(other)[:80]}."
        )
    return other


# -- where rows are told apart ----------------------------------------------------------------------------------------


def _place(fmodel: Program) -> str:
    """The variable (batch, length, width) that a dense layer makes the logits of, token by token; else the logits."""
    known = facts(fmodel)
    logits = field_of_logits(fmodel.output, Variable)
    variable = logits
    while (maker := fmodel.producers.get(variable.name)) is not None and _is_by_token(known, maker):
        (below,) = known.inputs_of(maker)
        if known.kind_of(maker) == DENSE:
            return below.name
        variable = below
    return logits.name


def _is_by_token(known: Facts, maker: Equation) -> bool:
    """Whether an equation makes (batch, length, features) of another such value, each token of itself."""
    if len(inputs := known.inputs_of(maker)) != 1 or len(maker.outputs) != 1:
        return False
    below, made = inputs[0], maker.outputs[0]
    if len(below.shape) != 3 or len(made.shape) != 3 or below.shape[:2] != made.shape[:2]:
        return False
    kind = known.kind_of(maker)
    if kind == DENSE:
        return maker.arguments[0] is below
    return kind in (AFFINE, ACTIVATION, ELEMENTWISE) or (row_of(maker).keeps_values and below.shape == made.shape)


def _arrived(passed: Passed, place: str, seed: Tensor) -> Flow:
    """What arrives at a variable of what enters at all logits."""
    entering = flows_entering(passed, lambda output: filled(output, logits_of(output), seed))
    flow = entering[place] if place in entering else backward(passed, entering, {})[1][place]
    assert flow is not None  # what a dense layer reads has a share
    return flow


def _pulled(passed: Passed, place: str, flow: Flow, positions: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """The relevance of tokens to what stands at some positions: (batch, positions, tokens)."""

    def back(row: Tensor) -> Tensor:
        flows, _ = backward(passed, {place: flow.moved(row)}, {})
        return _by_token(at_inputs(passed, flows, read), shape)

    def read(name: str, flow: Flow | None, value: Tensor) -> Tensor:
        if flow is not None and not _counts_tokens(value, shape):
            raise InputError(
                f"the input '{name}' gets relevance, too, but is {tuple(value.shape)}, while tokens are {shape}: it "
                "would have no column. Explain one token at a time: attribute(..., target=text.token(...))."
            )
        return _wide(flow, value)

    rows = flow.tensor.new_zeros(len(positions), *flow.tensor.shape)
    for row, position in zip(rows, positions, strict=True):
        row[:, position] = flow.tensor[:, position]
    if len(rows) == 1:  # by the kernels of the forward pass: under vmap they would make attention's patterns
        return back(rows[0])[:, None]
    return torch.func.vmap(back)(rows).movedim(0, 1)


def _counts_tokens(value: Tensor, shape: tuple[int, ...]) -> bool:
    return value.dim() in (2, 3) and value.shape[:2] == shape


def _wide(flow: Flow | None, value: Tensor) -> Tensor:
    """The relevance of inputs, in float32 at least, in which sums of half precision do not overflow."""
    wide = torch.promote_types(value.dtype, torch.float32)
    if flow is None:
        return torch.zeros_like(value, dtype=wide)
    return flow.moved(flow.tensor.to(torch.promote_types(flow.tensor.dtype, torch.float32))).relevance(value.to(wide))


def _by_token(relevance: Any, shape: tuple[int, ...]) -> Tensor:
    """The relevance of all inputs (batch, length) and (batch, length, width). Errors: `InputError`."""
    leaves = [leaf for leaf in optree.tree_leaves(relevance, namespace=NAMESPACE) if isinstance(leaf, Tensor)]
    found = [leaf for leaf in leaves if _counts_tokens(leaf, shape) and leaf.is_floating_point()]
    if not found:
        raise InputError(
            f"no input gets relevance by token, {tuple(shape)} or {(*shape, 'width')}: the inputs are "
            f"{', '.join(str(tuple(leaf.shape)) for leaf in leaves)}."
        )
    return torch.stack([leaf if leaf.dim() == 2 else leaf.sum(2) for leaf in found]).sum(0)


# -- what is not right ------------------------------------------------------------------------------------------------


def _checked_matrix(matrix: Tensor, prompt_length: int, dtype: torch.dtype) -> Tensor:
    """Errors: `InputError` for relevance that overflowed, or that went to what follows a token."""
    if not matrix.isfinite().all():
        row = int((~matrix.isfinite()).nonzero()[0, 1])
        remedy = (
            f"float16 ends at 65504. {BROADER}"
            if dtype == torch.float16
            else "the model gives nan or infinity, or a rule divides by zero. Give the rules a stabilizer."
        )
        raise InputError(f"the relevance of answer token {row} is not finite: {remedy}")
    _, answer, tokens = matrix.shape
    own = prompt_length + torch.arange(answer, device=matrix.device)
    follows = torch.arange(tokens, device=matrix.device) >= own[:, None]
    # Masks leave exact zeros in any precision; convolutions by Fourier transforms, which half has not, leave rounding.
    rounding = 32 * torch.finfo(matrix.dtype).eps * matrix.abs().sum(2, keepdim=True)
    if (wrong := follows & (matrix.abs() > rounding)).any():
        _, row, token = wrong.nonzero()[0].tolist()
        raise InputError(
            f"the model is not causal: token {prompt_length + row}, which is to be explained, has relevance at token "
            f"{token}, which does not stand before it. Of a model that reads what follows, explain one token at a "
            "time: attribute(..., target=text.token(...))."
        )
    return matrix.masked_fill(follows, 0.0)
