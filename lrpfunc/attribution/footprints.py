"""What an explanation takes of memory, found out without any of it: on tensors that have shapes and no numbers."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from lrpfunc.attribution.explanations import attribute
from lrpfunc.attribution.targets import Target
from lrpfunc.compat import Onlooker
from lrpfunc.composites import Entries
from lrpfunc.errors import InputError, LrpError
from lrpfunc.placement import META, without_numbers
from lrpfunc.program import NAMESPACE, Program


class Footprint(NamedTuple):
    """Bytes that an explanation takes.

    Args:
        parameters: what is there all the time: the parameters that were given.
        working: the most that is there at once besides: values, residuals, relevance, and parameters that are fetched
            or unpacked for a layer.

    >>> import lrpfunc
    >>> footprint = lrpfunc.Footprint(parameters=4_000_000_000, working=500_000_000)
    >>> footprint.total, str(footprint)
    (4500000000, '4.5 GB: 4 GB of parameters, 0.5 GB besides')
    """

    parameters: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.working

    def __str__(self) -> str:
        return f"{_in_words(self.total)}: {_in_words(self.parameters)} of parameters, {_in_words(self.working)} besides"


def _in_words(count: int) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size / 10:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def footprint(
    fmodel: Program, params, x, rules: Entries, target: Target = None, checkpoint: int | None = None
) -> Footprint:
    """The memory that `attribute` will take with the same arguments, without numbers and in seconds.

    The explanation is run on tensors without numbers (on the device "meta"), of which each is counted from when it is
    made until nobody has it any more. What kernels take for themselves, and what an allocator keeps, comes on top.

    Args:
        fmodel, params, x, rules, target, checkpoint: as `attribute` takes them. Only shapes and dtypes matter, so that
            parameters and inputs may be on "meta" themselves.

    Errors: those of `attribute`; `InputError` where something depends on numbers.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(*[torch.nn.Linear(1000, 1000) for _ in range(8)])
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 1000))
    >>> x, rules = torch.empty(10, 1000, device="meta"), lrpfunc.rules.epsilon()
    >>> print(lrpfunc.footprint(fmodel, params, x, rules))
    32.5 MB: 32 MB of parameters, 0.48 MB besides
    >>> fmodel, params = lrpfunc.offload(fmodel, params, "cuda")  # parameters on the CPU, what is besides on the GPU
    >>> print(lrpfunc.footprint(fmodel, params, x, rules, checkpoint=8))
    36.5 MB: 32 MB of parameters, 4.48 MB besides
    """
    if not isinstance(fmodel, Program):
        attribute(fmodel, params, x, rules)  # which says what is needed
    params, x, target = (optree.tree_map(_without_numbers, tree, namespace=NAMESPACE) for tree in (params, x, target))
    leaves = fmodel.flatten_params(params)
    given = [leaf for leaf in optree.tree_leaves((params, x), namespace=NAMESPACE) if isinstance(leaf, Tensor)]
    memory = _Memory([leaf.untyped_storage() for leaf in given])
    try:
        with torch.no_grad(), Onlooker(memory.see):
            attribute(without_numbers(fmodel), params, x, rules, target, checkpoint=checkpoint)
    except LrpError:
        raise
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"memory cannot be told without numbers, as something depends on them: {reason}") from error
    storages = {id(storage): storage for storage in (leaf.untyped_storage() for leaf in leaves)}
    return Footprint(sum(storage.nbytes() for storage in storages.values()), memory.most)


def _without_numbers(leaf: Any) -> Any:
    return leaf.to(META) if isinstance(leaf, Tensor) else leaf


class _Memory:
    """How much memory tensors have at once, of those that are shown to it, but for what was there before."""

    def __init__(self, before: Sequence[Any]) -> None:
        self.now = self.most = 0
        self.seen = {id(storage): 0 for storage in before}
        self.before = before  # so that nobody else gets the same id

    def see(self, tree: Any) -> None:
        for leaf in optree.tree_leaves(tree, namespace=NAMESPACE):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in self.seen:
                    self.seen[id(storage)] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._gone, id(storage)).atexit = False

    def _gone(self, key: int) -> None:
        self.now -= self.seen.pop(key)
