"""For which sizes an exported graph holds: its guards, read off as ranges and equalities."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from lrpfunc.tracing.graphs import is_symbolic
from lrpfunc.tracing.source_lines import TORCH

Ranges = dict[str, tuple[int, int | None]]  # by symbolic size


def shapes_of_inputs(exported, inputs: int) -> list[torch.Size]:
    return [node.meta["val"].shape for node in exported.graph.find_nodes(op="placeholder")[-inputs:]]


def ranges_of(exported, inputs: int) -> tuple[Ranges, dict[str, str]] | None:
    """The sizes for which a trace holds, by symbol, and which of them must agree; None where the model asks for more
    than that."""
    given: list[Any] = [n for shape in shapes_of_inputs(exported, inputs) for n in shape if is_symbolic(n)]
    sizes = [n.node for n in given]
    if not sizes:
        return {}, {}
    environment, hints = sizes[0].shape_env, {node.expr: node.hint for node in sizes}
    guards = [environment.simplify(guard.expr) for guard in environment.guards if _is_asked_by_model(guard)]
    same = _agreeing(guards, hints)
    if same is None:
        return None
    guards = [guard.subs(same) for guard in guards]
    ranges: Ranges = {}
    for node in sizes:
        symbol = node.expr
        bounds = exported.range_constraints.get(symbol)  # there are none for what follows from another size
        if symbol in same:
            continue
        asked = [guard for guard in guards if symbol in guard.free_symbols]
        found = _range(symbol, bounds, asked, node.hint) if bounds is not None else None
        if found is None:
            return None
        ranges[str(symbol)] = found
    return ranges, {str(one): str(other) for one, other in same.items()}


def _agreeing(guards: list, hints: Mapping) -> dict | None:
    """The sizes, by others equal in the example, that must agree with them for what a model asked of both to hold.

    What is asked of two sizes is more than ranges can say, but for equal ones it is asked of one, if of any. None where
    that does not help.
    """
    same: dict = {}
    for guard in guards:
        mixed = sorted(guard.subs(same).free_symbols & hints.keys(), key=str)
        while len(mixed) > 1:
            pairs = [(a, b) for i, a in enumerate(mixed) for b in mixed[i + 1 :] if hints[a] == hints[b]]
            if not pairs:
                return None
            one, other = pairs[0]
            same = {key: one if value == other else value for key, value in same.items()} | {other: one}
            mixed = sorted(guard.subs(same).free_symbols & hints.keys(), key=str)
    return same


def _is_asked_by_model(guard) -> bool:
    """Whether Python code that builds the graph decided on a size, and not a kernel on the layout of its memory."""
    file = getattr(guard.sloc.framework_loc, "filename", "")
    return not file.startswith(TORCH) or file.startswith(TORCH + "nn" + os.sep)


def _range(symbol, bounds, guards: list, traced: int) -> tuple[int, int | None] | None:
    from sympy import Ne
    from sympy.core.relational import Relational

    low, high = int(bounds.lower), int(bounds.upper) if bounds.upper < 2**31 else None
    for guard in guards:
        sides = guard.args
        if not isinstance(guard, Relational) or symbol not in sides or not any(side.is_Integer for side in sides):
            return None
        if isinstance(guard, Ne):
            excluded = int(next(side for side in sides if side.is_Integer))
            low = max(low, excluded + 1) if excluded < traced else low
            high = min(excluded - 1, high or excluded) if excluded > traced else high
    if low <= 2:  # which kernels ask for, and any size that a range excludes fails in them
        low = next(n for n in range(3) if all(guard.subs(symbol, m) for guard in guards for m in range(n, 2)))
    return low, high
