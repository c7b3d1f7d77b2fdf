"""Labels of rules: the calls that make them, as one would write them."""

from __future__ import annotations

from torch import Tensor

from lrpfunc.rules.stabilizers import Stabilizer, as_stabilizer, literal

DEFAULT = as_stabilizer(1e-6)


def call(
    name: str, *arguments: float | str | Tensor | Stabilizer, stabilizer: Stabilizer = DEFAULT, zero_bias: bool = False
) -> str:
    """The call of a constructor: `arguments` always, the others where they are not what they are by default."""
    written = [_written(argument) for argument in arguments]
    if stabilizer.label != DEFAULT.label:
        written.append(f"stabilizer={stabilizer.label}")
    return f"{name}({', '.join(written + ['zero_bias=True'] * bool(zero_bias))})"


def _written(argument: float | str | Tensor | Stabilizer) -> str:
    if isinstance(argument, Stabilizer):
        return argument.label
    if isinstance(argument, str):
        return repr(argument)
    return "tensor" if isinstance(argument, Tensor) else literal(argument)
