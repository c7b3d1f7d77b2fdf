"""Which of the tensors in a file are a model's: the set and the prefix under which most names and shapes fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from lrpfunc.errors import FileError, near_misses
from lrpfunc.pictures.weights.pickles import holds_model
from lrpfunc.pictures.weights.reading import PICK, WHOLE, Checkpoint

# What compilers and wrappers put in the middle of names.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"}
# Sets that are averages, or another network's: what was trained comes first.
AVERAGES = re.compile(r"(?<![a-z])(ema|avg|swa)|averag|teacher|momentum|shadow|target|polyak", re.IGNORECASE)
COUNTERS = "num_batches_tracked"  # of batch norms; they do not matter for what a model computes


class Choice(NamedTuple):
    """What was taken of a file: `set` is where it lies, `prefix` what was removed from names; both may be empty.

    `state`: the tensors by the model's names. `others`: sets that fit as well. `ignored`: names that belong to other
    things. `aside`: classes in the file of which nothing was made.
    """

    file: str
    set: str
    prefix: str
    state: Mapping[str, Tensor]
    others: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    picked: bool = False

    @property
    def label(self) -> str:
        """What to give as weights in order to get the same again, whatever is preferred then."""
        return f"{self.file}{PICK}{self.whole}" if self.picked or self.others else self.file

    @property
    def whole(self) -> str:
        """Set and prefix as one name, such as 'state_dict.model'."""
        return ".".join(part for part in (self.set, self.prefix.rstrip(".")) if part)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to tell people of the choice, in lines; nothing where there was none."""
        lines = []
        if self.set or self.prefix:
            lines.append(f"weights: {self.described}")
        lines += [f"weights: '{name}' fits too: --weights {self.file}{PICK}{name} takes it" for name in self.others]
        if self.ignored:
            lines.append(f"weights: not of the model and left out: {few(self.ignored)}")
        if self.aside:
            lines.append(f"weights: the file also names classes that were not made: {few(self.aside)}")
        return tuple(lines)

    @property
    def described(self) -> str:
        """The file with set and prefix, in words."""
        chosen = f", set '{self.set}'" if self.set else ""
        removed = f", prefix '{self.prefix}' removed" if self.prefix else ""
        return f"{self.file}{chosen}{removed}"


def choose(checkpoint: Checkpoint, expected: Mapping[str, Tensor], classes: int | None = None) -> Choice:
    """The set whose names and shapes fit what a model expects best; of several, what was trained before averages.

    `classes`: a first size that may be another one in the file, that of a head. A set that fits nothing is chosen too,
    so that it can be said what is wrong with it.
    Errors: `FileError` if the file holds no tensors, or not the set that was picked.
    """
    if not checkpoint.tensors:
        raise FileError(_nothing(checkpoint))
    _check_pick(checkpoint)
    plain = {name: name for name in checkpoint.tensors}
    unwrapped = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in plain}
    ways = [
        (fit, prefix, names)
        for names in (plain, unwrapped)[: 1 + (plain != unwrapped)]
        for prefix, fit in _fits(checkpoint, names, expected, classes).items()
        if _is_within(prefix, checkpoint.pick)
    ]
    if not ways:
        return _chosen(checkpoint, _largest(checkpoint), plain, ())
    most = max(fit for fit, _, _ in ways)
    best = [way for way in ways if way[0] == most]
    best.sort(key=lambda way: bool(AVERAGES.search(way[1])))  # else the first one in the file
    _, prefix, names = best[0]
    others = dict.fromkeys(way[1] for way in best if way[2] is names and way[1] != prefix)
    return _chosen(checkpoint, prefix, names, tuple(others))


def _fits(
    checkpoint: Checkpoint, names: Mapping[str, str], expected: Mapping[str, Tensor], classes: int | None
) -> dict[str, tuple[int, int]]:
    """For each beginning of names, in the file's order: how many shapes fit what is expected behind it, and names."""
    found: dict[str, tuple[int, int]] = {}
    for whole, name in names.items():
        parts = name.split(".")
        for start in range(len(parts)):
            wanted = expected.get(".".join(parts[start:]))
            if isinstance(wanted, Tensor):
                prefix = ".".join(parts[:start])
                shapes, known = found.get(prefix, (0, 0))
                found[prefix] = (shapes + _has_shape(checkpoint.tensors[whole], wanted, classes), known + 1)
    return found


def _has_shape(tensor: Tensor, wanted: Tensor, classes: int | None) -> bool:
    if classes is not None and wanted.dim() and tensor.dim() == wanted.dim() and len(wanted) == classes:
        return tensor.shape[1:] == wanted.shape[1:]
    return tensor.shape == wanted.shape


def _is_within(prefix: str, pick: str) -> bool:
    return not pick or prefix == pick or prefix.startswith(f"{pick}.")


def _chosen(checkpoint: Checkpoint, prefix: str, names: Mapping[str, str], others: tuple[str, ...]) -> Choice:
    start = f"{prefix}." if prefix else ""
    state = {name[len(start) :]: checkpoint.tensors[whole] for whole, name in names.items() if name.startswith(start)}
    nest = _nest(checkpoint, prefix)
    removed = prefix[len(nest) :].lstrip(".")
    beside = f"{nest}." if nest else ""
    ignored = [
        name.removeprefix(beside)
        for name in names.values()
        if name.startswith(beside) and _nest(checkpoint, name) == nest and not _is_below(name, (prefix, *others))
    ]
    return Choice(
        checkpoint.path,
        nest,
        f"{removed}." if removed else "",
        state,
        others,
        tuple(ignored) if removed else (),
        checkpoint.aside,
        bool(checkpoint.pick),
    )


def _nest(checkpoint: Checkpoint, name: str) -> str:
    """The innermost container that a name begins with."""
    return next((name[:end] for end in _ends(name) if name[:end] in checkpoint.nests), "")


def _is_below(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(_is_within(name, prefix) for prefix in prefixes)


def _ends(name: str) -> Iterator[int]:
    """Where a name may be cut, the longest part first."""
    yield len(name)
    yield from (i for i in range(len(name) - 1, 0, -1) if name[i] == ".")


def _largest(checkpoint: Checkpoint) -> str:
    """The container with most tensors in it, or what was picked: nearest to a model's parameters if nothing fits."""
    if checkpoint.pick:
        return checkpoint.pick
    held: dict[str, int] = {"": 0}
    for name in checkpoint.tensors:
        nest = _nest(checkpoint, name)
        held[nest] = held.get(nest, 0) + 1
    return max(held, key=held.__getitem__)


# -- errors -----------------------------------------------------------------------------------------------------------


def _check_pick(checkpoint: Checkpoint) -> None:
    pick = checkpoint.pick
    if pick and not any(_is_within(name, pick) for name in checkpoint.tensors):
        sets = sorted({_nest(checkpoint, name) for name in checkpoint.tensors} - {""})
        tops = sorted({name.partition(".")[0] for name in checkpoint.tensors})
        listed = few(sets or tops, 8)
        raise FileError(f"'{checkpoint.path}' has no set '{pick}'.{near_misses(pick, sets or tops)} It has {listed}.")


def _nothing(checkpoint: Checkpoint) -> str:
    if checkpoint.content.startswith(WHOLE):
        return holds_model(checkpoint.path, checkpoint.content.removeprefix(WHOLE))
    return f"'{checkpoint.path}' must hold a state dict, names with tensors, but holds {checkpoint.content}."


def few(found: list[str] | tuple[str, ...], most: int = 4) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
