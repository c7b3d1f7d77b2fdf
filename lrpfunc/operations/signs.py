"""Which values of a program are never below zero: what comes out of ReLUs, sigmoids and the like, and what keeps it so.

Rules that treat the two signs apart then leave out the negative one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from lrpfunc.errors import InputError, near_misses
from lrpfunc.program import Equation, Leaf, Program, Variable

# (low, high) of every input, or of inputs by the names of their leaves.
InputRange = tuple[float, float] | Mapping[str, tuple[float, float]] | None

# Whether an equation's result is never below zero, given a function that tells it of one of its arguments.
Sign = Callable[[Equation, Callable[[Any], bool]], bool]


def nonnegative(program: Program, ranges: Mapping[str, tuple[float, float]]) -> frozenset[str]:
    """The names of the variables that are never below zero, whatever the parameters. `ranges`: of inputs, by label."""
    known = {leaf.value.name for leaf in program.input_leaves if ranges.get(leaf.label, (-1.0, 0.0))[0] >= 0}

    def is_nonnegative(argument) -> bool:
        if isinstance(argument, Variable):
            return argument.name in known
        if isinstance(argument, (list, tuple)):
            return all(map(is_nonnegative, argument))
        return isinstance(argument, Real) and float(argument) >= 0

    for equation in program.equations:
        sign = SIGNS.get(equation.operator)
        if sign is not None and sign(equation, is_nonnegative):
            known.update(variable.name for variable in equation.outputs if variable.is_floating)
    return frozenset(known)


def input_ranges(program: Program, given: InputRange) -> dict[str, tuple[float, float]]:
    """The range of each floating-point input that was stated, by label. Errors: `InputError`."""
    labels = [leaf.label for leaf in program.input_leaves if _is_floating(leaf)]
    if given is None:
        return {}
    ranges = given if isinstance(given, Mapping) else dict.fromkeys(labels, given)
    for label, pair in ranges.items():
        if label not in labels:
            hint = near_misses(str(label), labels)
            raise InputError(f"input_range names '{label}', which is no floating-point input.{hint}")
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(end, Real) for end in pair)
        if not is_pair or not pair[0] <= pair[1]:
            raise InputError(f"input_range must be two numbers (low, high) with low <= high, but is {pair!r}.")
    return {label: (float(low), float(high)) for label, (low, high) in ranges.items()}


def _is_floating(leaf: Leaf) -> bool:
    return isinstance(leaf.value, Variable) and leaf.value.is_floating


# -- what operations do to signs --------------------------------------------------------------------------------------


def _always(equation: Equation, is_nonnegative) -> bool:
    return True


def _keeps(equation: Equation, is_nonnegative) -> bool:
    """If what it works on is, and every other floating-point tensor."""
    others = (variable for variable in equation.reads if variable.is_floating)
    return is_nonnegative(equation.arguments[0]) and all(map(is_nonnegative, others))


def _operands(first: int, last: int) -> Sign:
    """If all its operands are, which may be numbers: its arguments from `first` to before `last`."""

    def sign(equation, is_nonnegative):
        operands = (*equation.arguments[first:last], equation.keywords.get("alpha", 1))
        return all(map(is_nonnegative, operands))

    return sign


def _product(equation: Equation, is_nonnegative) -> bool:
    """If both factors are, or are the same."""
    first, second = equation.arguments[:2]
    return first is second or (is_nonnegative(first) and is_nonnegative(second))


def _power(equation: Equation, is_nonnegative) -> bool:
    base, exponent = equation.arguments[:2]
    return isinstance(exponent, Real) and float(exponent) >= 0 and (is_nonnegative(base) or float(exponent) % 2 == 0)


def _all(equation: Equation, is_nonnegative) -> bool:
    """If all its arguments are."""
    return all(map(is_nonnegative, equation.arguments)) and not equation.keywords


def _softplus(equation: Equation, is_nonnegative) -> bool:
    """With a positive beta, and linear only above zero."""
    return all(map(is_nonnegative, equation.arguments[1:])) and not equation.keywords


def _averages(equation: Equation, is_nonnegative) -> bool:
    """If what it averages is and it divides by no negative number."""
    divisor = equation.arguments[6] if len(equation.arguments) > 6 else equation.keywords.get("divisor_override")
    return is_nonnegative(equation.arguments[0]) and (divisor is None or is_nonnegative(divisor))


def _pools(equation: Equation, is_nonnegative) -> bool:
    """If what it pools is and no window can lie in the padding, which is -inf, as a dilated one can."""
    dilation = equation.arguments[4] if len(equation.arguments) > 4 else equation.keywords.get("dilation", 1)
    is_dense = all(n == 1 for n in dilation) if isinstance(dilation, (list, tuple)) else dilation == 1
    return is_nonnegative(equation.arguments[0]) and is_dense


def _fills(position: int) -> Sign:
    """If what it works on is and the number that it fills in, its argument at `position`."""

    def sign(equation, is_nonnegative):
        value = equation.arguments[position] if position < len(equation.arguments) else equation.keywords.get("value")
        return _keeps(equation, is_nonnegative) and (value is None or is_nonnegative(value))

    return sign


def _clamps(equation: Equation, is_nonnegative) -> bool:
    """If what it clamps is or the lower end, and the upper end, which wins where the two cross."""
    x, low, high = (*equation.arguments, None, None)[:3]
    low, high = equation.keywords.get("min", low), equation.keywords.get("max", high)
    return (is_nonnegative(x) or is_nonnegative(low)) and (high is None or is_nonnegative(high))


def _rows(names: str, sign: Sign) -> dict[str, Sign]:
    return dict.fromkeys(names.split(), sign)


SIGNS: dict[str, Sign] = {
    **_rows("relu relu6 sigmoid hardsigmoid softmax exp abs square sqrt", _always),
    "softplus": _softplus,
    "elu": _all,
    **_rows("silu hardswish gelu celu selu mish leaky_relu rrelu", _keeps),
    **_rows("avg_pool1d avg_pool2d avg_pool3d", _averages),
    **_rows("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
            "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
            "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d "
            "_upsample_bilinear2d_aa upsample_trilinear3d", _keeps),
    **_rows("max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
            "max_pool3d_with_indices", _pools),
    **_rows("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max amax min amin "
            "topk sort kthvalue median", _keeps),
    **_rows("sum mean cumsum reshape flatten unflatten unsqueeze squeeze reshape_as transpose swapaxes "
            "swapdims permute movedim t mT numpy_T contiguous clone alias expand expand_as broadcast_to select slice "
            "narrow index index_select gather repeat repeat_interleave tile roll flip rot90 chunk split "
            "split_with_sizes tensor_split unbind pixel_shuffle pixel_unshuffle channel_shuffle "
            "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
            "replication_pad3d unfold im2col diagonal tril triu to _to_copy", _keeps),
    **_rows("cat stack", _operands(0, 1)),
    "add": _operands(0, 3),  # alpha may be the third
    **_rows("div maximum minimum", _operands(0, 2)),
    "where": _operands(1, 3),
    "mul": _product,
    "pow": _power,
    **_rows("clamp clamp_min", _clamps),
    "constant_pad_nd": _fills(2),
    "pad": _fills(3),
    "masked_fill": _fills(2),
}  # fmt: skip
