"""What a graph will take of memory, told before it is sought: its edges, one block's record, rows of edges.

The factors are of what tensors take, measured with MALLOC_MMAP_THRESHOLD_=65536: glibc's allocator keeps freed memory,
and a process may seem to take several times as much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.attribution.plans import Step
from lrpfunc.attribution.stretches import Stretches
from lrpfunc.circuits.closed import ELEMENTS
from lrpfunc.circuits.keeping import Keep
from lrpfunc.errors import InputError
from lrpfunc.operations import ATTENTION, facts
from lrpfunc.program import Variable

MEMINFO = Path("/proc/meminfo")
GIGABYTE = 1e9
PLACE = 3 * 8  # bytes that say where an edge is that is stored by itself
COPIES = 3  # of one pair's edges, while those that are stored by themselves are laid in order
RECORD = 4  # a block's record and what moves back through it, in units of all that its steps make
ROWS = 3  # tensors of ELEMENTS numbers that there are at once while rows of edges are computed
SEED = 0.5  # what moves back of one token, in units of all that a block's steps make
PATTERNS = 4  # of the size of attention's pattern, that are there while one token is pulled back through it


class Edges(NamedTuple):
    """Those of one pair of streams: samples, tokens, and the heads that are told apart."""

    batch: int
    upper: int
    lower: int
    heads: int = 0

    def size(self, keep: Keep, itemsize: int) -> int:
        """Their bytes, those by heads included. Of a share as if all edges were of one sign."""
        if keep is None:
            return self.batch * self.upper * self.lower * itemsize * (1 + self.heads)
        kept = self.upper * min(keep, self.lower) if isinstance(keep, int) else math.ceil(1 / keep)
        return self.batch * min(kept, self.upper * self.lower) * (itemsize + PLACE)


class Sizes:
    """The sizes of a program's variables where it is passed through with given inputs."""

    def __init__(self, way: Stretches):
        self.known: dict[str, int] = {}
        producers = way.plan.program.producers
        for place in way.places:
            if place in producers:
                (variable,) = [v for v in producers[place].outputs if v.name == place]
                named = zip(variable.shape, way.value(place).shape, strict=True)
                self.known |= {name: size for name, size in named if isinstance(name, str)}

    def shape(self, variable: Variable) -> tuple[int, ...]:
        """A size that is computed in the program counts as the largest one that is known."""
        largest = max(self.known.values(), default=1)
        return tuple(n if isinstance(n, int) else self.known.get(n, largest) for n in variable.shape)

    def made(self, steps: Sequence[Step], itemsize: int) -> int:
        """The bytes of all that steps make."""
        made = [variable for step in steps for variable in step.equation.outputs if variable.is_tensor]
        return itemsize * sum(math.prod(self.shape(variable)) for variable in made if variable.is_floating)


def check_memory(way: Stretches, sizes: Sizes, pairs: Sequence[Edges], keep: Keep) -> None:
    """Errors: `InputError` where a graph of these pairs would not fit."""
    needed, like = needs(way, sizes, pairs, keep), way.value(way.places[0])
    free = free_memory(like.device)
    if free is not None and sum(needed) > free:
        longest = max(pair.upper for pair in pairs)
        lower = "keep=32 stores the strongest edges of each token, and" if keep is None else "A stricter keep,"
        raise InputError(
            f"the graph takes {sum(needed) / GIGABYTE:.3g} GB, but {free / GIGABYTE:.3g} GB are free: "
            f"{needed.edges / GIGABYTE:.3g} GB for the edges of {len(pairs)} pairs of streams of up to {longest} "
            f"tokens, {needed.work / GIGABYTE:.3g} GB to find them. {lower} fewer streams (layers=) or a shorter input "
            "take less."
        )


class Needs(NamedTuple):
    """Bytes: of the edges that are stored, and of what is there besides while they are sought."""

    edges: int
    work: int


def needs(way: Stretches, sizes: Sizes, pairs: Sequence[Edges], keep: Keep) -> Needs:
    """What a graph of these pairs takes."""
    like = way.value(way.places[0])
    wide = torch.promote_types(like.dtype, torch.float32).itemsize
    each = [pair.size(keep, wide) for pair in pairs]
    block = max(sizes.made(way.steps(place), like.dtype.itemsize) for place in ("", *way.places))
    ordered = 0 if keep is None else COPIES * max(each, default=0)
    return Needs(sum(each), RECORD * block + ROWS * ELEMENTS * wide + ordered)


def check_pullbacks(way: Stretches, sizes: Sizes, place: str, name: str, chunk_size: int) -> None:
    """Errors: `InputError` where so many tokens of a stream could not be pulled back at once."""
    like, steps = way.value(place), way.steps(place)
    free = free_memory(like.device)
    each = SEED * sizes.made(steps, like.dtype.itemsize)
    each += PATTERNS * like.dtype.itemsize * max(_patterns(way, sizes, steps), default=0)
    count = min(chunk_size, like.shape[1])
    if free is not None and count * each > free:
        fitting = int(free / each)
        lower = f"chunk_size={fitting} takes less." if fitting else "A shorter input takes less."
        raise InputError(
            f"to pull back {count} tokens of '{name}' at once takes {count * each / GIGABYTE:.3g} GB, but "
            f"{free / GIGABYTE:.3g} GB are free. {lower}"
        )


def _patterns(way: Stretches, sizes: Sizes, steps: Sequence[Step]) -> Iterator[int]:
    """How many numbers a pattern has that attention does not make as it is one operation, but its derivatives do."""
    known = facts(way.plan.program)
    for step in steps:
        if known.kind_of(step.equation) == ATTENTION:
            query, key = (sizes.shape(argument) for argument in step.equation.arguments[:2])
            yield math.prod(query[:-1]) * key[-2]


def check_stored(pair: Tensor, missing: int, keep: Keep) -> None:
    """After a pair of which a share is kept. Errors: `InputError` where as many edges of others would not fit."""
    free = free_memory(pair.device)
    count = pair._nnz() if isinstance(keep, float) and pair.is_sparse else 0
    needed = missing * count * (pair.dtype.itemsize + PLACE)
    if free is not None and needed > free:
        raise InputError(
            f"keep={keep} stores {count} edges of a pair, and as many of {missing} more take {needed / GIGABYTE:.3g} "
            f"GB, but {free / GIGABYTE:.3g} GB are free: a larger share or a number, keep=32, takes less."
        )


def free_memory(device: torch.device) -> int | None:
    """The bytes that are free on a device, None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not MEMINFO.exists():
        return None
    fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None
