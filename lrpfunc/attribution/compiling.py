"""Prepared explanations compiled by torch: one graph of operations for inputs of each shape, made at the first call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor

from lrpfunc.attribution.plans import Plan
from lrpfunc.attribution.targets import Target, check_class, is_int
from lrpfunc.compat import traced_operations
from lrpfunc.errors import LrpError, TraceError
from lrpfunc.program import NAMESPACE, Variable, is_plain

LOGGER = logging.getLogger("lrpfunc")

# An explanation of a plan, of inputs, a target and layers.
Explain = Callable[[Plan, Any, Target, Any], Any]


class Compiled:
    """What compiles an explanation of a plan and keeps it, by the shapes of inputs. It is pickled without that.

    Args:
        plan: what is explained, and by which rules.
        explain: the explanation without a compiler, which also does what is not compiled: inputs that a transform
            follows or that have derivatives, and targets that are functions.
        backend: of `torch.compile`.
    """

    def __init__(self, plan: Plan, explain: Explain, backend: str):
        self.plan, self.explain, self.backend = plan, explain, backend
        self.made: dict[tuple, Callable] = {}
        self.seconds = 0.0

    def __reduce__(self):
        return Compiled, (self.plan, self.explain, self.backend)

    def __call__(self, x, target: Target, at: str | Sequence[str] | None):
        leaves, structure = optree.tree_flatten(x, namespace=NAMESPACE)
        names = at if at is None or isinstance(at, str) else tuple(at)
        index, given = self._indices(target)
        tensors = [*(leaf for leaf in leaves if isinstance(leaf, Tensor)), *index]
        if given is Ellipsis or not is_plain(*tensors):
            return self.explain(self.plan, x, target, at)
        alike = [(leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        shapes = [(tensor.shape, tensor.device) for tensor in index]
        key = (structure, *map(repr, (alike, shapes, given, names)))
        tensors = [tensor.contiguous() for tensor in tensors]  # a graph is one of inputs in one layout
        if key not in self.made:
            self.made[key] = self._compiled(leaves, structure, tensors, given, at)
        return self.made[key](*tensors)

    def _indices(self, target: Target) -> tuple[list[Tensor], Any]:
        """A target as index tensors, so that one graph does for all classes, and the rest of it; ... if it is none."""
        if target is None:
            return [], None
        size = self._classes()
        if size is None:  # which class is explained is part of the graph then
            is_fixed = is_int(target) or (isinstance(target, tuple) and all(map(is_int, target)))
            return [], target if is_fixed else ...
        is_list = isinstance(target, (list, range)) and all(map(is_int, target))
        if not (is_list or is_int(target) or isinstance(target, (Tensor, np.ndarray))):
            return [], ...
        index = torch.as_tensor(np.asarray(target) if is_list else target)
        if index.is_floating_point() or index.dtype == torch.bool or not index.numel():
            return [], ...
        for extreme in torch.aminmax(index):
            check_class(int(extreme), size)
        return [index.long()], None

    def _classes(self) -> int | None:
        """How many classes the output has, if it is one tensor (batch, classes)."""
        output = self.plan.program.output_leaves
        shape = output[0].shape if len(output) == 1 and isinstance(output[0], Variable) else ()
        return shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None

    def _compiled(self, leaves: list, structure, tensors: list[Tensor], given: Any, at) -> Callable:
        """The compiled explanation of inputs like these, as a function of their tensors and of an index, if any.

        Errors: `TraceError` where torch cannot compile.
        """
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor))
        LOGGER.warning("compiling an explanation of %s: it takes minutes, or seconds if it was done before", shapes)
        start = time.perf_counter()

        def explained(*tensors: Tensor):
            left = iter(tensors)
            filled = [next(left) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            x = optree.tree_unflatten(structure, filled)
            return self.explain(self.plan, x, next(left, given), at)

        try:
            graph = traced_operations(explained, *tensors)
            compiled = torch.compile(graph, fullgraph=True, dynamic=False, backend=self.backend)
            compiled(*tensors)
        except LrpError:
            raise
        except Exception as error:
            said = str(error).strip().partition("\n")[0]
            raise TraceError(
                f"torch.compile failed with {type(error).__name__}: {said} Prepare without compile=True, which gives "
                "the same; a compiler of C++ must be there for CPUs."
            ) from error
        self.seconds += time.perf_counter() - start
        LOGGER.info("compiled it in %.1f s", time.perf_counter() - start)
        return compiled

    def __str__(self) -> str:
        return f"compiled for {len(self.made)} shape(s) in {self.seconds:.1f} s"
