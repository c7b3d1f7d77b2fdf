"""A part of an output that a target is about, and relevance put back in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from lrpfunc.attribution import known_any
from lrpfunc.errors import TargetError
from lrpfunc.program import NAMESPACE

Part = str | int | Callable[[Any], Tensor] | None


def placed(output: Any, part: Part, names: Sequence[str], explain: Callable[[Tensor], Tensor]) -> Any:
    """R_out in the output's structure, where `explain` makes that of a part, and zeros elsewhere.

    Errors: those of `picked`; `TargetError` for a function that does not pick values as they are.
    """
    leaves, structure = optree.tree_flatten(output, namespace=NAMESPACE)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]

    def pick(*tensors: Tensor) -> Tensor:
        given = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        return picked(optree.tree_unflatten(structure, given), part, names)

    # What picks is linear: its transposed map puts relevance where it was picked.
    found: Any = torch.func.vjp(pick, *(leaves[place] for place in places))
    value, put_back = found
    if callable(part):
        _check_picks(value, pick(*put_back(value)))
    shares = [torch.zeros_like(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    for place, share in zip(places, put_back(explain(value)), strict=True):
        shares[place] = share
    return optree.tree_unflatten(structure, shares)


def picked(output: Any, part: Part, names: Sequence[str]) -> Tensor:
    """A part of an output: that of a name, an index or a function, or of the first of `names` that there is.

    A tensor is the part itself, if no name is asked for. Errors: `TargetError` if there is no such part.
    """
    found: Any
    if callable(part):
        found = part(output)
    elif part is None and isinstance(output, Tensor):
        found = output
    else:
        fields = (_field(output, name) for name in ([part] if part is not None else names))
        found = next((field for field in fields if field is not None), None)
    if isinstance(found, Tensor) and found.is_floating_point():
        return found
    wanted = repr(part) if part is not None else " or ".join(map(repr, names))
    has = f"has {', '.join(map(repr, output))}" if isinstance(output, Mapping) else f"is a {type(output).__name__}"
    raise TargetError(
        f"the output has no floating-point tensor {wanted}, but {has}: say where it is, by a name or a function of the "
        "output."
    )


def _check_picks(value: Tensor, again: Tensor) -> None:
    """A map that picks undoes its transposed one. Errors: `TargetError` for any other, as far as values are known."""
    if known_any((value != again) & ~(value.isnan() & again.isnan()), unknown=False):
        raise TargetError(
            "a function that says where logits are must pick values of the output as they are, each once, but this one "
            "makes others of them: pick the logits, and not their sigmoid, softmax or sums."
        )


def _field(output: Any, name: str | int) -> Any:
    if isinstance(output, Mapping):
        return output.get(name)
    if isinstance(name, int):
        return output[name] if isinstance(output, (tuple, list)) and -len(output) <= name < len(output) else None
    return getattr(output, name, None)
