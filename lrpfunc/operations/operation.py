"""One equation as a function of its active inputs."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.operations.kinds import constant_factor, is_active_input
from lrpfunc.operations.table import CONVOLUTION, OPERATORS, UNKNOWN, Layout, Slot
from lrpfunc.program import Equation, Program, Variable, is_plain, operator_name


class Operation:
    """One equation as a function of its active inputs; everything else, parameters included, is bound.

    `operation(*inputs)` is its value. `adjoint(s)` is the transposed linear map, which needs no forward pass; it gives
    one tensor for one input and a tuple for several. `linear(weight, bias)` is the same map with other parameters.

    What is known of its place in the program: `is_nonnegative`, no input is ever below zero; `is_rectified`, what comes
    back is a rectified flow; `gets_coefficients`, it is a coefficient of the output itself; `is_final`, it comes back
    but once, so that residuals may be written over; `sample_shape`, the shape of the first input without its first
    dimension; `constant`, the factor of a product (0 or 1) that may count as a constant.
    """

    def __init__(
        self, name: str, function: Callable, arguments: Sequence, keywords: dict, likes: Sequence[Tensor] = ()
    ):
        self.name = name
        self.function = function
        self.arguments = arguments
        self.keywords = keywords
        self.operator = OPERATORS.get(operator_name(function), UNKNOWN)
        self.is_nonnegative = self.is_rectified = self.gets_coefficients = self.is_final = False
        self.constant: int | None = None
        self.constants: dict[Callable, Any] = {}
        self._take(likes)

    def at(self, inputs: Sequence[Tensor]) -> Operation:
        """The operation at inputs of these shapes."""
        other = self.copy()
        other._take(inputs)
        return other

    def _take(self, likes: Sequence[Tensor]) -> None:
        self.shapes = [like.shape for like in likes]
        self.dtypes = [like.dtype for like in likes]
        self.device = likes[0].device if likes else None
        self.sample_shape: Sequence = self.shapes[0][1:] if likes else ()

    def copy(self, **changes) -> Operation:
        other = object.__new__(Operation)
        other.__dict__.update(self.__dict__, **changes)
        return other

    def __call__(self, *inputs: Tensor):
        return self.function(*_fill(self.arguments, inputs), **self.keywords)

    def fixed(self, position: int, value: Tensor) -> Operation:
        """The operation of the other one of two inputs, with this one bound to a value."""
        pair = (value, Slot(0)) if position == 0 else (Slot(0), value)
        kept = slice(1, 2) if position == 0 else slice(0, 1)
        return self.copy(arguments=_fill(self.arguments, pair), shapes=self.shapes[kept], dtypes=self.dtypes[kept])

    @property
    def slots(self) -> list[int]:
        """The places among its arguments at which single inputs stand, in their order."""
        return [place for place, argument in enumerate(self.arguments) if isinstance(argument, Slot)]

    @property
    def description(self) -> str:
        return f"'{self.name}' ({operator_name(self.function)})"

    def hoisted(self, make: Callable[[Operation], Any]):
        """`make(self)`, which depends on parameters only: made beforehand if the explanation was prepared."""
        return self.constants[make] if make in self.constants else make(self)

    # -- parameters

    @property
    def is_weighted(self) -> bool:
        if self.operator.layout is None or _weight_position(self.layout, self.arguments) >= len(self.arguments):
            return False
        return isinstance(self.weight, Tensor)

    @property
    def layout(self) -> Layout:
        if self.operator.layout is None:
            raise RuleError(f"{self.description} has no weight, but the rule needs a weighted equation.")
        return self.operator.layout

    @property
    def weight(self) -> Tensor:
        return self.arguments[_weight_position(self.layout, self.arguments)]

    @property
    def bias(self) -> Tensor | None:
        position = self.operator.layout.bias if self.operator.layout is not None else None
        return self.arguments[position] if position is not None and position < len(self.arguments) else None

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Operation:
        """The operation with another weight and bias (None: no bias). Errors: `RuleError` if it has no weight."""
        arguments, layout = list(self.arguments), self.layout
        arguments[_weight_position(layout, arguments)] = weight
        if layout.bias is not None and layout.bias < len(arguments):
            is_needed = layout.bias == 0  # addmm and its like cannot do without
            arguments[layout.bias] = weight.new_zeros(()) if bias is None and is_needed else bias
        return self.copy(arguments=arguments)

    def without_bias(self) -> Operation:
        return self.linear(self.weight) if self.bias is not None else self

    def offset(self, bias: Tensor | None, epsilon: float) -> Tensor | None:
        """A bias that adds epsilon to every output as well; None where the operation has no bias per output."""
        position = self.layout.bias
        if self.operator.outputs is None or position is None or position >= len(self.arguments):
            return None
        return self.weight.new_full((self.operator.outputs(self),), epsilon) if bias is None else bias + epsilon

    @property
    def has_samples(self) -> bool:
        """Whether its first dimension counts samples, all of which it treats alike."""
        if self.operator.kind == CONVOLUTION:
            return len(self.sample_shape) == self.weight.dim() - 1
        return operator_name(self.function) == "linear" and len(self.sample_shape) > 0

    # -- adjoints

    @property
    def is_linear(self) -> bool:
        if self.operator.is_multilinear:  # a denominator is the second
            return len(self.slots) == 1 and (self.slots == [0] or operator_name(self.function) != "div")
        return self.is_weighted or self.operator.is_linear

    def adjoint(self, s):
        """The transposed linear map applied to s. Errors: `RuleError` if the operation is not linear in its inputs."""
        if not self.is_linear:
            raise RuleError(f"{self.description} is not linear in its inputs, but the rule needs a linear equation.")
        if self.operator.adjoint is not None:
            result = self.operator.adjoint(self, s)
            if result is not None:
                return self._typed(result)
        part = s[0] if isinstance(s, (tuple, list)) else s
        dtypes = [dtype if dtype.is_floating_point else part.dtype for dtype in self.dtypes]
        likes = zip(self.shapes, dtypes, strict=True)
        return self.vjp([torch.zeros(shape, dtype=dtype, device=self.device) for shape, dtype in likes], s)

    def _typed(self, moved):
        """Each input's share in its own dtype: a sum of float32 and float64 is float64. Token ids get floats."""

        def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
            return tensor.to(dtype) if dtype.is_floating_point else tensor

        if isinstance(moved, tuple):
            return tuple(map(cast, moved, self.dtypes))
        return cast(moved, self.dtypes[0])

    def remembering(self, *inputs: Tensor) -> tuple[Any, Any]:
        """The value, and what `recall` needs to move a flow back without another forward pass.

        Where nobody watches, that is what autograd records, of any operation and with the fastest kernel there is.
        """
        remember = self.operator.remember
        remembered = remember(self, *inputs) if remember is not None else None
        if remembered is not None:
            return remembered
        if self.operator.smooth is None:
            return self(*inputs), None
        if not _may_record((*inputs, *_tensors_in([self.arguments, list(self.keywords.values())]))):
            return self.smooth(*inputs), None
        with torch.enable_grad():
            leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
            output = self(*leaves)
        return output.detach(), _Recorded(leaves, output)

    def recall(self, memory, inputs: Sequence[Tensor], s):
        """The vector-Jacobian product at `inputs`, with what `remembering` returned there."""
        if isinstance(memory, _Recorded):
            if not is_plain(s):
                return self.vjp(inputs, s)
            moved = torch.autograd.grad(memory.output, memory.leaves, s, retain_graph=not self.is_final)
            return moved[0] if len(moved) == 1 else moved
        if memory is None:
            return self.vjp(inputs, s)
        assert self.operator.recall is not None
        return self.operator.recall(self, memory, s)

    def smooth(self, *inputs: Tensor):
        """Its value by operations that have derivatives of any order."""
        function = self.operator.smooth or self.function
        return function(*_fill(self.arguments, inputs), **self.keywords)

    def vjp(self, inputs: Sequence[Tensor], s):
        """The vector-Jacobian product at `inputs`: one tensor for one input, a tuple for several."""
        pullback = self.operator.pullback
        if pullback is not None and len(inputs) == 2:
            moved = pullback(self, inputs, s)
            if moved is not None:
                return self._typed(moved)
        moved = _pull_back(lambda *inputs: _floating(self.smooth(*inputs)), tuple(inputs), s)
        return moved[0] if len(moved) == 1 else moved


def _may_record(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd may record an operation on these, and nobody else would notice."""
    is_watched = torch._C._functorch.peek_interpreter_stack() is not None or torch.is_inference_mode_enabled()
    return not is_watched and is_plain(*tensors) and not any(tensor.is_inference() for tensor in tensors)


def _tensors_in(template) -> Iterator[Tensor]:
    if isinstance(template, Tensor):
        yield template
    elif isinstance(template, (list, tuple)) and not isinstance(template, Slot):
        for item in template:
            yield from _tensors_in(item)


class _Recorded(NamedTuple):
    """What autograd recorded of one operation."""

    leaves: tuple[Tensor, ...]
    output: Tensor


def _pull_back(function: Callable, inputs: tuple, s) -> tuple:
    """The vector-Jacobian product of a function at `inputs`."""

    def pull(inputs, s):
        return torch.func.vjp(function, *inputs)[1](s)

    if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
        from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx  # slow to import

        # torch.export (non-strict) would take the values inside a transform for constants: give it plain operations.
        with disable_proxy_modes_tracing(), torch._C.DisableTorchFunction():
            pull = make_fx(pull)(inputs, s)
    return pull(inputs, s)


def _weight_position(layout: Layout, arguments: Sequence) -> int:
    is_second = layout.input is None and layout.weight < len(arguments) and isinstance(arguments[layout.weight], Slot)
    return layout.weight - 1 if is_second else layout.weight


def bind(program: Program, equation: Equation, values: Mapping[str, Any]) -> Operation:
    """The operation of an equation, with everything bound but its active inputs, which need no values yet."""
    positions = itertools.count()

    def fill(template):
        if isinstance(template, Variable):
            is_input = is_active_input(equation, template, program.active)
            return Slot(next(positions)) if is_input else values[template.name]
        if isinstance(template, (list, tuple)):
            return type(template)([fill(item) for item in template])
        return template

    arguments = [fill(argument) for argument in equation.arguments]
    keywords = {name: fill(argument) for name, argument in equation.keywords.items()}
    operation = Operation(equation.name, equation.function, arguments, keywords)
    constant = constant_factor(program, equation) if next(positions) == 2 else None
    operation.constant = constant.factor if constant is not None else None
    return operation


def structure(program: Program, equation: Equation) -> Operation:
    """The operation of an equation without any values: what it is, and which of its arguments are active."""
    return bind(program, equation, defaultdict(lambda: None))


def _fill(template, inputs: Sequence):
    if isinstance(template, Slot):
        return inputs[template.position]
    if isinstance(template, (list, tuple)):
        return type(template)([_fill(item, inputs) for item in template])
    return template


def _floating(result):
    """The floating-point part of a result: what flows can arrive at. A list of one output is that output."""
    if isinstance(result, (tuple, list)):
        floating = tuple(tensor for tensor in result if tensor.is_floating_point())
        return floating[0] if len(result) == 1 else floating
    return result
