"""Operations that are written out in others when they are traced: several steps at once, of which each has its rule.

Each function takes `call`, which makes an equation of an operation and gives its value, `depends`, which tells whether
an argument depends on the input, and the operation's arguments in the order of its schema. It gives the result, equal
to the operation's but for rounding (a list of several), or None to leave the operation as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lrpfunc.operations.recurrences import RECURRENCES
from lrpfunc.program import contract, einsum, embedding, pooled_rows

aten = torch.ops.aten

Call = Callable[..., Any]
Depends = Callable[[Any], bool]


def _glu(call: Call, depends: Depends, x, axis):
    """The signal times the sigmoid of the gate."""
    signal, gate = call(aten.chunk.default, x, 2, axis)
    return call(aten.mul.Tensor, signal, call(aten.sigmoid.default, gate))


def _addcmul(call: Call, depends: Depends, x, left, right, value=1):
    return _add(call, x, call(aten.mul.Tensor, left, right), scale=value)


def _addcdiv(call: Call, depends: Depends, x, left, right, value=1):
    return _add(call, x, call(aten.div.Tensor, left, right), scale=value)


def _added_product(product) -> Callable:
    """beta x + alpha (a product): a layer where x is its bias, a sum where x depends on the input."""

    def write(call: Call, depends: Depends, x, left, right, beta=1, alpha=1):
        if beta == 0:  # then it is not even read
            made = product(call, left, right)
            return made if alpha == 1 else call(aten.mul.Scalar, made, alpha)
        if not depends(x):
            return None
        x = x if beta == 1 else call(aten.mul.Scalar, x, beta)
        return _add(call, x, product(call, left, right), alpha)

    return write


def _mm(call: Call, left, right):
    return call(aten.matmul.default, left, right)


def _summed_bmm(call: Call, left, right):
    return call(aten.sum.dim_IntList, _mm(call, left, right), [0])


def _outer_product(call: Call, left, right):
    return call(aten.mul.Tensor, call(aten.unsqueeze.default, left, -1), right)


def _outer(call: Call, depends: Depends, left, right):
    return _outer_product(call, left, right)


def _add(call: Call, x, y, scale=1):
    return call(aten.add.Tensor, x, y if scale == 1 else call(aten.mul.Scalar, y, scale))


def _lerp(call: Call, depends: Depends, x, y, weight):
    """x + w (y - x), a product where the weight depends on the input."""
    if not depends(weight):
        return None
    return _add(call, x, call(aten.mul.Tensor, call(aten.sub.Tensor, y, x), weight))


def _vecdot(call: Call, depends: Depends, left, right, dim=-1):
    left = call(aten.conj_physical.default, left) if left.dtype.is_complex else left
    return call(aten.sum.dim_IntList, call(aten.mul.Tensor, left, right), [dim])


def _cross(call: Call, depends: Depends, left, right, dim=-1):
    """a x b, of which component i is a_{i+1} b_{i+2} - a_{i+2} b_{i+1}."""

    def part(shift: int, other: int):
        turned = (call(aten.roll.default, x, [n], [dim]) for x, n in ((left, shift), (right, other)))
        return call(aten.mul.Tensor, *turned)

    return call(aten.sub.Tensor, part(-1, -2), part(-2, -1))


def _cosine_similarity(call: Call, depends: Depends, left, right, axis=1, eps=1e-8):
    """a . b / (|a| |b|), the lengths no less than eps."""
    dot = call(aten.sum.dim_IntList, call(aten.mul.Tensor, left, right), [axis])
    for x in (left, right):
        length = call(aten.linalg_vector_norm.default, x, 2, [axis])
        dot = call(aten.div.Tensor, dot, call(aten.clamp_min.default, length, eps))
    return dot


def _bilinear(call: Call, depends: Depends, left, right, weight, bias=None):
    """y_o = x1 W_o x2 + b_o: a layer, a product, a sum."""
    mixed = call(einsum, "...i,oij->...oj", left, weight)
    product = call(aten.mul.Tensor, mixed, call(aten.unsqueeze.default, right, -2))
    result = call(aten.sum.dim_IntList, product, [-1])
    return result if bias is None else call(aten.add.Tensor, result, bias)


def _kron(call: Call, depends: Depends, left, right):
    """Each element of the one times all of the other."""
    rank = max(len(left.shape), len(right.shape))
    for _ in range(rank - len(left.shape)):
        left = call(aten.unsqueeze.default, left, 0)
    for _ in range(rank - len(right.shape)):
        right = call(aten.unsqueeze.default, right, 0)
    for axis in range(rank):
        left = call(aten.unsqueeze.default, left, 2 * axis + 1)
        right = call(aten.unsqueeze.default, right, 2 * axis)
    result = call(aten.mul.Tensor, left, right)
    for axis in range(rank):
        result = call(aten.flatten.using_ints, result, axis, axis + 1)
    return result


def _polar(call: Call, depends: Depends, modulus, angle):
    parts = (call(aten.mul.Tensor, modulus, call(part, angle)) for part in (aten.cos.default, aten.sin.default))
    return call(aten.complex.default, *parts)


def _embedding_bag(
    call: Call,
    depends: Depends,
    table,
    ids,
    offsets,
    _=False,
    mode=0,
    __=False,
    weights=None,
    has_end=False,
    padding=-1,
):
    """Rows of a table, of which each bag has the sum, mean or maximum."""
    if padding is not None and padding >= 0:
        return None
    rows = call(embedding, table, ids)
    if weights is not None:
        rows = call(aten.mul.Tensor, rows, call(aten.unsqueeze.default, weights, -1))
    return call(pooled_rows, rows, offsets, ("sum", "mean", "amax")[mode], has_end)


def _einsum(call: Call, depends: Depends, equation: str, operands: Sequence, path=None):
    """Two operands at a time, from the left, so that each step is a layer or a product of two values."""
    if len(operands) == 1:
        return call(contract, equation, operands[0])
    terms, result = _spelled_out(equation, operands)
    values = list(operands)
    while len(values) > 1:
        rest = set("".join(terms[2:]) + result)
        kept = "".join(dict.fromkeys(letter for letter in terms[0] + terms[1] if letter in rest))
        values[:2] = [_einsum_of_two(call, terms[:2], kept if len(terms) > 2 else result, values[:2])]
        terms[:2] = [kept]
    return values[0]


def _einsum_of_two(call: Call, terms: Sequence[str], result: str, operands: Sequence):
    """Where nothing is summed up, it is a product element by element, and no layer."""
    sums = set("".join(terms)) - set(result) or any(len(set(term)) < len(term) for term in terms)
    if sums:
        return call(einsum, f"{','.join(terms)}->{result}", *operands)
    return call(aten.mul.Tensor, *(_aligned(call, term, result, x) for term, x in zip(terms, operands, strict=True)))


def _aligned(call: Call, term: str, result: str, x):
    """An operand with its axes in the result's order, and axes of size one for those it lacks."""
    order = [term.index(letter) for letter in result if letter in term]
    x = x if order == sorted(order) else call(aten.permute.default, x, order)
    for axis in reversed(range(len(result))):
        if result[axis] not in term and not set(term).isdisjoint(result[:axis]):  # before all its axes is no need
            x = call(aten.unsqueeze.default, x, axis - len(result))
    return x


def _spelled_out(equation: str, operands: Sequence) -> tuple[list[str], str]:
    """The operands' axes and the result's, letter by letter: those that an ellipsis stands for, too."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    spare = [chr(code) for code in range(ord("A"), ord("z") + 1) if chr(code).isalpha() and chr(code) not in equation]
    count = max(len(x.shape) - len(term.replace("...", "")) for x, term in zip(operands, terms, strict=True))
    if not arrow:
        letters = [letter for letter in sorted(set(given) - set(",.")) if given.count(letter) == 1]
        result = ("..." if "..." in given else "") + "".join(letters)
    for position, (x, term) in enumerate(zip(operands, terms, strict=True)):
        own = len(x.shape) - len(term.replace("...", ""))
        terms[position] = term.replace("...", "".join(spare[count - own : count]))
    return terms, result.replace("...", "".join(spare[:count]))


WRITTEN_OUT: Mapping[str, Callable] = {
    "glu": _glu,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "addmm": _added_product(_mm),
    "addmv": _added_product(_mm),
    "baddbmm": _added_product(_mm),
    "addbmm": _added_product(_summed_bmm),
    "addr": _added_product(_outer_product),
    "outer": _outer,
    "ger": _outer,
    "lerp": _lerp,
    "linalg_vecdot": _vecdot,
    "vdot": _vecdot,
    "linalg_cross": _cross,
    "cosine_similarity": _cosine_similarity,
    "bilinear": _bilinear,
    "kron": _kron,
    "polar": _polar,
    "embedding_bag": _embedding_bag,
    "_embedding_bag": _embedding_bag,
    "einsum": _einsum,
    **RECURRENCES,
}
