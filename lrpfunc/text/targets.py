"""What to explain of a language model: the logit of a token at a position, or what speaks for it and not another.

Each gives a function `output -> R_out`, the form of `target` that `lrpfunc.attribute` takes for any output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor

from lrpfunc.attribution import is_int, mark, per_sample
from lrpfunc.errors import TargetError
from lrpfunc.program import NAMESPACE, is_plain

Indices = int | Sequence[int] | Tensor
Leaf = TypeVar("Leaf")


def token(token: Indices | None, position: Indices = -1) -> Callable[[Any], Any]:
    """The logit of a token at a position: R_out = logit there, and zero everywhere else.

    Under rules that give a gradient, that is the gradient times the logit. The output: logits (batch, length,
    vocabulary), or a dataclass, dict or named tuple with these in the field `logits`; its other tensors get zeros.

    Args:
        token: an id, a list or tensor with one per sample, or None, the arg-max at the position.
        position: negative ones count from the end; a list or tensor has one per sample, as padded batches need:
            `attention_mask.sum(1) - 1` if padding is on the right.
    Errors: `TargetError` for what lies outside of the sequence or the vocabulary, is not one per sample, or for an
    output without such logits. A tensor whose values are not known (under vmap or torch.compile) gives zeros instead.

    >>> import lrpfunc, torch
    >>> from lrpfunc import text
    >>> logits = torch.tensor([[[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]]])
    >>> text.token(None, position=-1)(logits).tolist()
    [[[0.0, 0.0, 0.0], [6.0, 0.0, 0.0]]]
    """

    def target(output: Any) -> Any:
        logits = logits_of(output)
        positions = _positions(logits, position)
        tokens = _best(logits, positions) if token is None else _tokens(logits, token)
        return filled(output, logits, _at(logits, positions, tokens))

    return target


def contrast(token: Indices | None, other: Indices, position: Indices = -1) -> Callable[[Any], Any]:
    """Why this token and not the other: R_out = logit of `token` at a position, and minus the logit of `other`.

    LRP is linear in R_out, so that is the relevance of the one minus that of the other.

    Args:
        token: as in `text.token`, as is the position.
        other: an id, or a list or tensor with one per sample.
        position: negative ones count from the end.
    Errors: those of `text.token`, and `TargetError` for a token against itself.

    >>> import lrpfunc, torch
    >>> from lrpfunc import text
    >>> logits = torch.tensor([[[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]]])
    >>> text.contrast(0, other=2)(logits).tolist()
    [[[0.0, 0.0, 0.0], [6.0, 0.0, -4.0]]]
    """
    if is_int(token) and is_int(other) and token == other:
        raise TargetError(f"token {token} is contrasted with itself, which leaves nothing: give another one.")

    def target(output: Any) -> Any:
        logits = logits_of(output)
        positions = _positions(logits, position)
        tokens = _best(logits, positions) if token is None else _tokens(logits, token)
        others = _tokens(logits, other)
        return filled(output, logits, _at(logits, positions, tokens) - _at(logits, positions, others))

    return target


# -- the output -------------------------------------------------------------------------------------------------------


def field_of_logits(output: Any, kind: type[Leaf]) -> Leaf:
    """The leaf of an output that holds the logits, the only one or that of this name. Errors: `TargetError`."""
    logits = output
    if not isinstance(output, kind):
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(logits, kind):
        raise TargetError(
            f"the output, a {type(output).__name__}, has no tensor in a field `logits`: "
            "give a function as target, output -> relevance of the same structure."
        )
    return logits


def logits_of(output: Any) -> Tensor:
    """The logits (batch, length, vocabulary) of an output. Errors: `TargetError`."""
    logits = field_of_logits(output, Tensor)
    if logits.dim() != 3 or not logits.is_floating_point():
        hint = " The class of a classifier is given as it is: target=1." if logits.dim() == 2 else ""
        raise TargetError(
            "a token is explained at logits of shape (batch, length, vocabulary), "
            f"but they are {tuple(logits.shape)} in {logits.dtype}.{hint}"
        )
    return logits


def filled(output: Any, logits: Tensor, relevance: Tensor) -> Any:
    """The output's pytree with relevance at its logits and zeros elsewhere."""
    leaves, structure = optree.tree_flatten(output, namespace=NAMESPACE)
    found = [i for i, leaf in enumerate(leaves) if leaf is logits]
    if not found:
        raise TargetError(
            f"{type(output).__name__} is a structure that no program has returned yet: "
            "give the target to `attribute`, or flatten the output yourself."
        )
    seeds = [torch.zeros_like(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    seeds[found[0]] = relevance
    return optree.tree_unflatten(structure, seeds)


# -- indices ----------------------------------------------------------------------------------------------------------


def _positions(logits: Tensor, position: Indices) -> Tensor:
    length = logits.shape[1]

    def check(index: int) -> None:
        if not -length <= index < length:
            raise TargetError(f"position {index} is outside the sequence of {length} tokens, 0 to {length - 1}.")

    return per_sample("position", position, logits, check)


def _tokens(logits: Tensor, token: Indices) -> Tensor:
    vocabulary = logits.shape[2]

    def check(index: int) -> None:
        if not 0 <= index < vocabulary:
            raise TargetError(f"token {index} is outside the vocabulary of {vocabulary} tokens, 0 to {vocabulary - 1}.")

    tokens = per_sample("token", token, logits, check)
    # No token counts from the end: -100, which marks what to ignore, must not become one where it cannot be checked.
    return torch.where(tokens < 0, vocabulary, tokens)


def _best(logits: Tensor, positions: Tensor) -> Tensor:
    """The arg-max token at one position per sample (batch,)."""
    if is_plain(logits) and not logits.is_meta and logits.isnan().any():
        raise TargetError(
            "the logits are nan, so none is the largest: name the token, or see where the model overflows."
        )
    length = logits.shape[1]
    counted = torch.where(positions < 0, positions + length, positions)
    is_position = torch.arange(length, device=logits.device) == counted[:, None]
    return (logits.argmax(dim=2) * is_position).sum(1)


def _at(logits: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    # Not a product: the logits of tokens that a model forbids are -inf, which zero would turn into nan.
    return torch.where(mark(logits, [positions, tokens]), logits, 0.0)
