"""torch's own database of operations, each traced and explained: right, by a rule, marked, constant, or refused.

`op_db` has samples of what torch can do. Each is a function of its tensors, whose results are summed with random
weights so that coefficients arrive. Its program must have its value. Where all its equations are linear, or linear
around a value, and rules divide by no stabilizer, relevance is value times autograd's gradient, elementwise. Where
that does not tell, a rule must have moved it (and be finite), or the equation must be marked as left to the gradient.
What gets no relevance must have no gradient. An error must be lrpfunc's own.

Where an operation works in place (`add_`) or into a given tensor (`add(out=)`), that has the value and the relevance of
the operation itself, elementwise, or is refused.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

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
        "attention": rules.attention(),  # to all three: "value", the preset's, gives queries and keys nothing
    }
)
RANDOM = {  # or in training
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
GRADIENT, BY_RULE, MARKED, CONSTANT, SAME, REFUSED, SKIPPED = (
    "x * grad",
    "by rule",
    "marked",
    "constant",
    "as out of place",
    "refused",
    "skipped",
)
WRONG, SILENT, VALUE, CRASH = "WRONG", "SILENT", "VALUE", "CRASH"
FAULTS = (WRONG, SILENT, VALUE, CRASH)


class Call(NamedTuple):
    """A function and what it is called with. `twin`: the function that gives the same and writes to nothing."""

    function: Callable
    args: tuple
    keywords: dict[str, Any]
    twin: Callable | None = None


class Row(NamedTuple):
    name: str
    calls: Callable[[], Iterable[Call]]


class Verdict(NamedTuple):
    name: str
    word: str
    detail: str = ""


class Function:
    """A call as a function of some of its tensors: weighted sums of its results, (1,)."""

    def __init__(self, called: Callable, call: Call, is_active: str):
        self.called = called
        self.leaves, self.structure = optree.tree_flatten((call.args, call.keywords))
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
        args, keywords = optree.tree_unflatten(self.structure, leaves)
        results = [x for x in optree.tree_leaves(self.called(*args, **keywords)) if is_number(x)]
        total = 0
        for n, result in enumerate(results):
            parts = torch.view_as_real(result.resolve_conj()) if result.is_complex() else result
            if n not in self.weights:  # at the first call, which is not traced
                self.weights[n] = weights(tuple(parts.shape), n)
            total = total + (parts * self.weights[n]).sum()
        return total.reshape(1) if results else None


def weights(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) + 0.5


def is_number(leaf) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def judge(call: Call, is_active: str) -> tuple[str, str]:
    """A word and what there is to say."""
    function = Function(call.function, call, is_active)
    if not function.inputs or (is_active == "all" and len(function.inputs) < 2):
        return SKIPPED, "no such inputs"
    try:
        expected = function(function.params, *function.inputs)
        again = function(function.params, *function.inputs)
    except Exception as error:
        return SKIPPED, f"torch: {error}"
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
    try:
        if call.twin is not None:
            return _compared(function, program, params, Function(call.twin, call, is_active))
        return _judged(function, program, params, listing)
    except LrpError as error:
        return REFUSED, str(error)
    except Exception as error:
        return CRASH, f"attribute: {type(error).__name__}: {error}"


def _compared(function: Function, program, params, twin: Function) -> tuple[str, str]:
    """Whether what writes somewhere has the relevance of what does not."""
    try:
        if not torch.allclose(*(f(f.params, *f.inputs) for f in (function, twin)), rtol=1e-9, equal_nan=True):
            return SKIPPED, "torch gives other values out of place"
        wanted = _relevance(*lrpfunc.trace(twin, twin.params, *twin.inputs), twin)
    except Exception as error:  # which the twin's own row has
        return SKIPPED, f"out of place: {type(error).__name__}: {error}"
    found = _relevance(program, params, function)
    if found is None or wanted is None:
        return (CONSTANT, "") if found is wanted else (WRONG, "constant in one of both")
    if all(torch.allclose(f, w, rtol=1e-9, atol=1e-12, equal_nan=True) for f, w in zip(found, wanted, strict=True)):
        return SAME, ""
    return WRONG, ", ".join(e.operator for e in program.equations)


def _relevance(program, params, function: Function) -> tuple[Tensor, ...] | None:
    """None where nothing can flow."""
    try:
        return lrpfunc.attribute(program, params, function.inputs, EXACT, target=lambda y: y)
    except LrpError as error:
        if "no relevance can flow" in str(error):
            return None
        raise


def _judged(function: Function, program, params, listing) -> tuple[str, str]:
    wanted = gradient_form(function)
    if isinstance(wanted, str):
        return SKIPPED, wanted
    has_gradient = any(w.abs().max() > 0 for w in wanted if w.numel())
    found = _relevance(program, params, function)
    if found is None:
        return (REFUSED, "no relevance can flow") if has_gradient else (CONSTANT, "")
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


def verdicts(rows: Iterable[Row], is_wanted: Callable[[str], bool], samples: int = 3) -> Iterator[Verdict]:
    """Of rows whose name is wanted, a few calls each, first the first tensor active, then all."""
    for row in rows:
        if is_wanted(row.name):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield from _verdicts(row, samples)


def _verdicts(row: Row, samples: int) -> Iterator[Verdict]:
    try:
        given = list(itertools.islice(row.calls(), 60))
    except Exception as error:
        yield Verdict(row.name, SKIPPED, f"torch: {error}")
        return
    seen: set[str] = set()
    for call in given[:: max(1, len(given) // samples)][:samples]:
        for is_active in ("first", "all"):
            word, detail = judge(call, is_active)
            if word not in seen:
                seen.add(word)
                yield Verdict(f"{row.name} ({is_active})", word, detail)


# -- torch's own database ---------------------------------------------------------------------------------------------


def rows_of_torch() -> Iterator[Row]:
    """Each operation, then what there is of it in place and into a given tensor."""
    from torch.testing._internal.common_methods_invocations import op_db

    for operation in op_db:
        if DOUBLE not in operation.dtypes or operation.name.rpartition(".")[2] in RANDOM:
            continue
        variant = f".{operation.variant_test_name}" if operation.variant_test_name else ""
        yield Row(operation.name + variant, partial(_plain, operation))
        if operation.get_inplace() is not None and not operation.name.endswith("_"):
            yield Row(f"{operation.name}_{variant}", partial(_in_place, operation))
        if operation.supports_out:
            yield Row(f"{operation.name}(out=){variant}", partial(_into, operation))


def _plain(operation) -> Iterator[Call]:
    for sample in operation.sample_inputs("cpu", DOUBLE):
        yield Call(operation.op, (sample.input, *sample.args), sample.kwargs)


def _in_place(operation) -> Iterator[Call]:
    def write(x, /, *args, **keywords):
        return operation.get_inplace()(x * 1, *args, **keywords)  # the input itself is not written on

    def twin(x, /, *args, **keywords):
        return operation.op(x, *args, **keywords).to(x.dtype)  # which is what comparisons give in place

    for sample in operation.sample_inputs("cpu", DOUBLE):
        if not sample.broadcasts_input:
            yield Call(write, (sample.input, *sample.args), sample.kwargs, twin)


def _into(operation) -> Iterator[Call]:
    for call in _plain(operation):
        yield call._replace(function=_writer(operation.op, call), twin=operation.op)


def _writer(function: Callable, call: Call) -> Callable:
    made = function(*call.args, **call.keywords)

    def write(*args, **keywords):
        out = optree.tree_map(lambda x: torch.empty(x.shape, dtype=x.dtype), made)
        function(*args, **keywords, out=out)
        return out

    return write
