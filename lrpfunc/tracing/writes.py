"""In-place writes, made functional: who shows which memory, and what became of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lrpfunc.errors import TraceError
from lrpfunc.operations import row_named
from lrpfunc.program import Variable, operator_name, overwrite
from lrpfunc.tracing.graphs import functional_twin, memory, normalize, usual
from lrpfunc.tracing.source_lines import line_of

if TYPE_CHECKING:
    from lrpfunc.tracing.builder import Builder

aten = torch.ops.aten


class Writes:
    """The memory that the nodes of a graph show. A write gives new values to all nodes that see it."""

    def __init__(self, builder: Builder):
        self.builder = builder
        self.sharing: dict[Any, list] = {}  # nodes by the memory that they show
        self.stale: dict[Any, str] = {}  # nodes whose memory was overwritten under another name, and where
        self.outer: dict[Any, Any] = {}  # placeholders of inlined regions, and what they stand for
        self.twin_dtypes: dict[str, torch.dtype] = {}  # of functional twins, by what rules them

    def watch(self, nodes: Iterable) -> None:
        """Note what memory the nodes of a graph show, which may be run again, as the steps of a scan are."""
        for node in nodes:
            sharing = self.sharing.setdefault(memory(node), [])
            if node not in sharing:
                sharing.append(node)
            self.stale.pop(node, None)

    def refuse_stale(self, argument, node) -> None:
        """Refuse that a node reads another one whose memory was overwritten under another name."""
        if argument in self.stale:
            where = "returned by forward" if node.op == "output" else f"read at {line_of(node)}"
            raise TraceError(
                f"'{argument.name}', {where}, shares memory that was overwritten under another name at "
                f"{self.stale[argument]}. Replace the in-place operation there by one that returns a new tensor."
            )

    def write(self, node, result: Variable) -> None:
        """Let the memory that a node writes to have a new value.

        torch.export lets all later reads of the written tensor itself read this node. The tensors that it is a view of
        get the new value written into theirs. Whatever else shares the memory goes stale.
        """
        written, before = node.args[0], self.builder.values[node.args[0]]
        if result.dtype != before.dtype:
            result = self.builder.emit(node, aten.to.dtype, (result, before.dtype))
        self.builder.values[node] = self.builder.values[written] = result
        views: tuple = ()
        known, base = {node, written}, self._base(written, node)
        while base is not None:
            views = (*base.views, *views)
            value = self.builder.read(base.node, node)
            overwritten = self.builder.emit(node, overwrite, (value, result, views), like=value) if views else result
            self.builder.values[base.node] = overwritten
            known.add(base.node)
            base = self._base(base.node, node)
        for other in self.sharing[memory(written)]:
            if other in self.builder.values and other not in known:
                self.stale[other] = line_of(node)

    def twin_dtype(self, node) -> torch.dtype:
        """The dtype of an in-place operation's functional twin, found on fake tensors: `lt` gives bools, sums promote.

        That is slow on symbolic sizes, and only dtypes, ranks and what is no tensor can matter.
        """
        key = str((node.target, *torch.fx.map_arg((node.args, node.kwargs), _dtype_and_rank)))
        if key not in self.twin_dtypes:
            arguments, keywords = torch.fx.map_arg((node.args, node.kwargs), lambda argument: argument.meta["val"])
            self.twin_dtypes[key] = functional_twin(node)(*arguments, **keywords).dtype
        return self.twin_dtypes[key]

    def _base(self, node, writer) -> _Base | None:
        """The node that a node is a view of, None if it has memory of its own (or nobody knows whose)."""
        if node in self.outer:
            return _Base(self.outer[node], ())
        maker = node.args[0] if node.target is operator.getitem else node  # of one tensor or a list of them
        if not isinstance(maker.target, torch._ops.OpOverload) or memory(maker.args[0]) != memory(node):
            return None
        base, name = maker.args[0], operator_name(maker.target)
        if name.startswith("as_strided") or base.meta["val"].dtype != node.meta["val"].dtype:
            raise TraceError(
                f"the in-place operation at {line_of(writer)} writes through '{name}', which lrpfunc cannot follow. "
                "Replace it by one that returns a new tensor."
            )
        is_inplace = maker.target._schema.is_mutable
        if row_named(name).may_return_input or (is_inplace and torch.Tag.inplace_view not in maker.target.tags):
            return _Base(base, ())
        function = usual(functional_twin(maker) if is_inplace else maker.target)
        arguments = tuple(self.builder.read(normalize(maker)[1][1:], writer))
        if maker is not node:
            function, arguments = _part, (node.args[1], function, *arguments)
        return _Base(base, ((function, arguments),))


class _Base(NamedTuple):
    """A node with the functions and arguments that lead to a view of it; none if the view is all of it."""

    node: Any
    views: tuple[tuple[Callable, tuple], ...]


def _part(x: Tensor, position: int, split: Callable, *arguments) -> Tensor:
    """One of the views that `chunk`, `split` or `unbind` give."""
    return split(x, *arguments)[position]


def _dtype_and_rank(node) -> str:
    value = node.meta["val"]
    return f"{value.dtype} of rank {value.dim()}" if isinstance(value, Tensor) else type(value).__name__
