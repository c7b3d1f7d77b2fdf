"""Writes in place and with `out=`, made functional: who shows which memory, and what became of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lrpfunc.compat import Operator, schema_of
from lrpfunc.errors import TraceError
from lrpfunc.operations import row_named
from lrpfunc.program import Variable, operator_name, overwrite, part
from lrpfunc.tracing.graphs import functional_twin, is_into, is_symbolic, memory, normalize, usual, written
from lrpfunc.tracing.source_lines import line_of

if TYPE_CHECKING:
    from lrpfunc.tracing.builder import Builder

aten = torch.ops.aten
SOME_SIZE = 7


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

    def write(self, node, target, result: Variable) -> None:
        """Let the memory of another node, that a node writes to, have a new value.

        torch.export lets all later reads of the written tensor itself read this node. The tensors that it is a view of
        get the new value written into theirs. Whatever else shares the memory goes stale.
        """
        before = self.builder.values[target]
        if result.dtype != before.dtype:
            result = self.builder.emit(node, aten.to.dtype, (result, before.dtype))
        if result.is_complex:  # memory has the numbers themselves
            result = self.builder.emit(node, aten.resolve_conj.default, (result,), like=result)
        self.builder.values[node] = self.builder.values[target] = result
        views: tuple = ()
        known, base = {node, target}, self._base(target, node)
        while base is not None:
            views = (*base.views, *views)
            value = self.builder.read(base.node, node)
            overwritten = self.builder.emit(node, overwrite, (value, result, views), like=value) if views else result
            self.builder.values[base.node] = overwritten
            if not _overlaps(base.node):  # or more of its elements than those written to have changed
                known.add(base.node)
            base = self._base(base.node, node)
        for other in self.sharing[memory(target)]:
            if other in self.builder.values and other not in known and not self._is_beside(other, known):
                self.stale[other] = line_of(node)

    def _is_beside(self, node, known: set) -> bool:
        """Whether a node is (part of) a part of a tensor that was split of which another part was written to."""
        while node is not None and not _is_strided(node):
            if node.target is operator.getitem and any(_is_other_part(node, other) for other in known):
                return True
            node = self._viewed(node)
        return False

    def write_into(self, node, results: Sequence[Variable]) -> None:
        """Let the tensors that an operation is given for its results have these as their values."""
        outs = written(node)
        for out, result in zip(outs, results, strict=True):
            if self.builder.values[out].shape != result.shape and self._viewed(out) is not None:
                raise TraceError(
                    f"'{operator_name(node.target)}' at {line_of(node)} writes a result of another shape into a part "
                    "of a tensor. Give it a tensor of its own."
                )
            self.write(node, out, result)
        if len(outs) > 1:
            self.builder.values[node] = [self.builder.values[out] for out in outs]

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
        base = self._viewed(node)
        if base is None:
            return None
        if node in self.outer:
            return _Base(base, ())
        maker = _maker(node)
        name = operator_name(maker.target)
        if _is_strided(node) or base.meta["val"].dtype != node.meta["val"].dtype:
            raise TraceError(
                f"the in-place operation at {line_of(writer)} writes through '{name}', which lrpfunc cannot follow. "
                "Replace it by one that returns a new tensor."
            )
        is_inplace = schema_of(maker.target).is_mutable
        if row_named(name).may_return_input or (is_inplace and torch.Tag.inplace_view not in maker.target.tags):
            return _Base(base, ())
        function = usual(functional_twin(maker) if is_inplace else maker.target)
        arguments = tuple(self.builder.read(normalize(maker)[1][1:], writer))
        if maker is not node:
            function, arguments = part, (node.args[1], function, *arguments)
        return _Base(base, ((function, arguments),))

    def _viewed(self, node):
        """The node that shows the memory that a node is a view of, None if it has memory of its own."""
        if node in self.outer:
            return self.outer[node]
        maker = _maker(node)
        if not isinstance(maker.target, Operator):
            return None
        sources = written(maker) if is_into(maker) else maker.args[:1]
        return next((source for source in sources if memory(source) == memory(node)), None)


class _Base(NamedTuple):
    """A node with the functions and arguments that lead to a view of it; none if the view is all of it."""

    node: Any
    views: tuple[tuple[Callable, tuple], ...]


def _maker(node):
    """The operation that made a node: one tensor, or a list that it is of."""
    return node.args[0] if node.target is operator.getitem else node


def _is_strided(node) -> bool:
    """Whether a node may show other parts of its memory than the node that it was made of."""
    return operator_name(_maker(node).target).startswith("as_strided")


def _is_other_part(node, other) -> bool:
    """Whether two nodes are different parts of one that was split, of which no two elements are the same memory."""
    if other.target is not operator.getitem or other.args[0] is not node.args[0] or other.args[1] == node.args[1]:
        return False
    return not _overlaps(node.args[0].args[0])


def _overlaps(node) -> bool:
    """Whether elements of a tensor share memory, as those of an `expand` or of windows that overlap do."""
    value, reach = node.meta["val"], 0
    strides, sizes = map(_number, value.stride()), map(_number, value.shape)
    for stride, n in sorted(zip(strides, sizes, strict=True)):
        if n != 1 and stride <= reach:
            return True
        reach += stride * (n - 1)
    return False


def _number(n) -> int:
    """A size, where that is open the one for some size of the inputs: to compare it would make a guard of it."""
    return int(n.node.expr.subs(dict.fromkeys(n.node.expr.free_symbols, SOME_SIZE))) if is_symbolic(n) else n


def _dtype_and_rank(node) -> str:
    value = node.meta["val"]
    return f"{value.dtype} of rank {value.dim()}" if isinstance(value, Tensor) else type(value).__name__
