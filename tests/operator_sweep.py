"""torch's own database of operations, each traced and explained: right, by a rule, marked, constant, or refused.

`op_db` has samples of what torch can do. Each is a function of its tensors, whose results are summed with random
weights so that coefficients arrive. Its program must have its value. Where all its equations are linear, or linear
around a value, and rules divide by no stabilizer, relevance is value times autograd's gradient, elementwise. Where
that does not tell, a rule must have moved it (and be finite), or the equation must be marked as left to the gradient.
What gets no relevance must have no gradient. An error must be lrpfunc's own.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import optree
import torch
from torch import Tensor

import lrpfunc
from lrpfunc import composites, rules
from lrpfunc.errors import LrpError
from lrpfunc.operations import facts

DOUBLE = torch.float64
LINEAR = {"movement", "transform", "sum", "affine", "dense", "convolution", "max_pool", "average_pool"}
BENT = {"relu", "leaky_relu", "abs", "prelu"}  # linear on both sides of zero
EXACT = composites.by_kind(
    {
        "linear": rules.epsilon(0),
        "sum": rules.norm(0),
        "average_pool": rules.norm(0),
        "affine": rules.affine(0),
        "transform": rules.transform(0),
    }
)
RANDOM = {
    "new_empty",
    "empty_like",
    "rrelu",
    "dropout",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_alpha_dropout",
}
# Verdicts. The last ones must not come.
GRADIENT, BY_RULE, MARKED, CONSTANT, REFUSED, SKIPPED = (
    "x * grad",
    "by rule",
    "marked",
    "constant",
    "refused",
    "skipped",
)
WRONG, SILENT, VALUE, CRASH = "WRONG", "SILENT", "VALUE", "CRASH"
FAULTS = (WRONG, SILENT, VALUE, CRASH)


class Verdict(NamedTuple):
    name: str
    word: str
    detail: str = ""


class Function:
    """A sample as a function of some of its tensors: weighted sums of its results, (1,)."""

    def __init__(self, operation, sample, is_active):
        self.operation = operation
        self.leaves, self.structure = optree.tree_flatten((sample.input, tuple(sample.args), sample.kwargs))
        numbers = [n for n, leaf in enumerate(self.leaves) if is_number(leaf)]
        self.active = numbers if is_active == "all" else numbers[:1]
        self.weights: dict[int, Tensor] = {}
        self.inputs = tuple(self.leaves[n].detach() for n in self.active)
        self.params = {
            str(n): leaf.detach()
            for n, leaf in enumerate(self.leaves)
            if isinstance(leaf, Tensor) and n not in self.active
        }

    def __call__(self, params, *inputs):
        leaves = list(self.leaves)
        for n, value in [*((int(n), value) for n, value in params.items()), *zip(self.active, inputs, strict=True)]:
            leaves[n] = value
        first, args, kwargs = optree.tree_unflatten(self.structure, leaves)
        results = [x for x in optree.tree_leaves(self.operation.op(first, *args, **kwargs)) if is_number(x)]
        total = 0
        for n, result in enumerate(results):
            parts = torch.view_as_real(result) if result.is_complex() else result
            if n not in self.weights:  # at the first call, which is not traced
                self.weights[n] = weights(tuple(parts.shape), n)
            total = total + (parts * self.weights[n]).sum()
        return total.reshape(1) if results else None


def weights(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) + 0.5


def is_number(leaf) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def judge(operation, sample, is_active: str) -> tuple[str, str]:
    """A word and what there is to say."""
    function = Function(operation, sample, is_active)
    if not function.inputs or (is_active == "all" and len(function.inputs) < 2):
        return SKIPPED, "no such inputs"
    try:
        expected = function(function.params, *function.inputs)
        again = function(function.params, *function.inputs)
    except Exception as error:
        return SKIPPED, f"torch: {error}"
    if operation.name.rpartition(".")[2] in RANDOM:
        return SKIPPED, "random, or in training"
    if expected is None or not torch.equal(expected.nan_to_num(), again.nan_to_num()):
        return SKIPPED, "no numbers come out" if expected is None else "random"
    try:
        program, params = lrpfunc.trace(function, function.params, *function.inputs)
        if not torch.allclose(program(params, *function.inputs), expected, rtol=1e-9, equal_nan=True):
            return VALUE, ""
        listing = lrpfunc.explain(program, EXACT)
    except LrpError as error:
        return REFUSED, str(error)
    except Exception as error:
        return CRASH, f"tracing: {type(error).__name__}: {error}"
    return _judged(function, program, params, listing)


def _judged(function: Function, program, params, listing) -> tuple[str, str]:
    wanted = gradient_form(function)
    if isinstance(wanted, str):
        return SKIPPED, wanted
    has_gradient = any(w.abs().max() > 0 for w in wanted if w.numel())
    try:
        found = lrpfunc.attribute(program, params, function.inputs, EXACT, target=lambda y: y)
    except LrpError as error:
        if "no relevance can flow" not in str(error):
            return REFUSED, str(error)
        return (REFUSED, str(error)) if has_gradient else (CONSTANT, "")
    except Exception as error:
        return CRASH, f"attribute: {type(error).__name__}: {error}"
    scale = max(1.0, *(float(w.abs().max()) if w.numel() else 0.0 for w in wanted))
    if all(torch.allclose(f, w, rtol=1e-7, atol=1e-9 * scale) for f, w in zip(found, wanted, strict=True)):
        return (MARKED if listing.fallbacks else GRADIENT), ""
    operators = ", ".join(e.operator for e in program.equations)
    if listing.fallbacks:
        return MARKED, ", ".join(listing.fallbacks)
    known = facts(program)
    kinds = {known.kind_of(e) for e in program.equations if known.is_active(e) and e.operator not in BENT}
    if kinds <= LINEAR:
        return WRONG, operators
    if "normalization" in kinds:  # a denominator is a constant to its rule
        return BY_RULE, operators
    silent = [f for f, w in zip(found, wanted, strict=True) if w.numel() and w.abs().max() > 0 and not f.any()]
    is_stopped = any(row[-1] == "constant" for row in listing.rows)
    if (silent and not is_stopped) or not all(f.isfinite().all() for f in found):
        return SILENT, operators
    return BY_RULE, operators


def gradient_form(function: Function) -> list[Tensor] | str:
    """Value times gradient of each input, by autograd; or why there is none."""
    leaves = [x.clone().requires_grad_() for x in function.inputs]
    try:
        value = function(function.params, *leaves)
        grads = (
            torch.autograd.grad(value.sum(), leaves, allow_unused=True) if value.requires_grad else [None] * len(leaves)
        )
    except Exception as error:
        return f"torch has no gradient: {error}"
    pairs = zip(function.inputs, grads, strict=True)
    wanted = [torch.zeros(x.shape, dtype=DOUBLE) if g is None else (x * g.conj()).real for x, g in pairs]
    return wanted if all(w.isfinite().all() for w in wanted) else "its gradient is not finite"


def verdicts(is_wanted: Callable[[str], bool], samples: int = 3) -> Iterator[Verdict]:
    """Of operations whose name is wanted, a few samples each, first the first tensor active, then all."""
    from torch.testing._internal.common_methods_invocations import op_db

    for operation in op_db:
        name = operation.name + (f".{operation.variant_test_name}" if operation.variant_test_name else "")
        if not is_wanted(name) or DOUBLE not in operation.dtypes:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                given = list(itertools.islice(operation.sample_inputs("cpu", DOUBLE), 60))
            except Exception as error:
                yield Verdict(name, SKIPPED, f"torch: {error}")
                continue
            seen: set[str] = set()
            for sample in given[:: max(1, len(given) // samples)][:samples]:
                for is_active in ("first", "all"):
                    word, detail = judge(operation, sample, is_active)
                    if word not in seen:
                        seen.add(word)
                        yield Verdict(f"{name} ({is_active})", word, detail)
