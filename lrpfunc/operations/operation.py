"""One equation as a function of its active inputs."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from lrpfunc.compat import TensorTable
from lrpfunc.errors import RuleError
from lrpfunc.operations.facts import facts
from lrpfunc.operations.kinds import CONVOLUTION, DENSE, MAX_POOL, MOVEMENT, OTHER, Activity
from lrpfunc.operations.pullbacks import Recorded, differentiable, may_record, pull_back, record, tensors_in
from lrpfunc.operations.row import SHIFT, Positions, Row, Slot
from lrpfunc.operations.table import row_named, row_of
from lrpfunc.program import NAMESPACE, Equation, Foreign, Program, Variable, is_plain, operator_name


class Context(NamedTuple):
    """What is known of where an operation stands.

    `is_nonnegative`: no input is ever below zero. `is_rectified`: what comes back is a rectified flow.
    `gets_coefficients`: it is a coefficient of the output itself. `is_recalled`: a ReLU whose output is told by what is
    kept in front of it. `is_final`: it comes back but once, so that residuals
    may be written over.
    """

    is_nonnegative: bool = False
    is_rectified: bool = False
    gets_coefficients: bool = False
    is_recalled: bool = False
    is_final: bool = False


UNKNOWN_CONTEXT = Context()


@dataclass(frozen=True, eq=False)
class Operation:
    """One equation as a function of its active inputs; everything else, parameters included, is bound.

    `operation(*inputs)` is its value. `adjoint(s)` is the transposed linear map, which needs no forward pass; it gives
    one tensor for one input and a tuple for several. `linear(weight, bias)` is the same map with other parameters.

    `operator`: its ATen name: `conv2d`, `add`. `row`: what the table knows of it. `kind`: what it is to relevance here.
    `constant`: the factor of a product (0 or 1) that may count as a constant. `shapes`, `dtypes`, `device`: of the
    inputs. `sample_shape`: that of the first one without its first dimension. `hoists`: what was made of the parameters
    beforehand; `packs`: weights as their kernels want them, where they are kept for another call. The rest is its
    `Context`, field by field. `bind` and `bind_function` make it, and nobody changes it.
    """

    name: str
    function: Callable
    arguments: Sequence
    keywords: Mapping[str, Any]
    row: Row
    kind: str = OTHER
    constant: int | None = None
    is_nonnegative: bool = False
    is_rectified: bool = False
    gets_coefficients: bool = False
    is_recalled: bool = False
    is_final: bool = False
    shapes: Sequence[torch.Size] = ()
    dtypes: Sequence[torch.dtype] = ()
    device: torch.device | None = None
    sample_shape: Sequence = ()
    operator: str = ""
    hoists: Mapping[Callable, Any] = field(default_factory=dict)
    packs: TensorTable | None = None

    def at(self, inputs: Sequence[Tensor], is_final: bool = False) -> Operation:
        """The operation at inputs of these shapes."""
        return self.copy(
            shapes=[x.shape for x in inputs],
            dtypes=[x.dtype for x in inputs],
            device=inputs[0].device,
            sample_shape=inputs[0].shape[1:],
            is_final=is_final,
        )

    def copy(self, **changes) -> Operation:
        """The same operation but for some fields; `dataclasses.replace` takes several times as long."""
        other = object.__new__(Operation)
        other.__dict__.update(self.__dict__, **changes)
        return other

    def __call__(self, *inputs: Tensor):
        if self.row.kernel is not None and len(inputs) == 1:
            output = self.row.kernel(self, *inputs)
            if output is not None:
                return output
        return self.function(*_fill(self.arguments, inputs), **self.keywords)

    def filled(self, inputs: Sequence) -> Sequence:
        """Its arguments with the inputs in their places."""
        return _fill(self.arguments, inputs)

    def with_factor(self, position: int, value: Tensor) -> Operation:
        """The operation of the other one of two inputs, with this one bound to a value."""
        pair = (value, Slot(0)) if position == 0 else (Slot(0), value)
        kept = slice(1, 2) if position == 0 else slice(0, 1)
        return self.copy(arguments=_fill(self.arguments, pair), shapes=self.shapes[kept], dtypes=self.dtypes[kept])

    @property
    def slots(self) -> list[int]:
        """The positions among its arguments at which single inputs stand, in their order."""
        return [position for position, argument in enumerate(self.arguments) if isinstance(argument, Slot)]

    @property
    def description(self) -> str:
        return f"'{self.name}' ({self.operator})"

    # -- what parameters alone make

    def hoisted(self, make: Callable[[Operation], Any]):
        """`make(self)`, of parameters only: made beforehand for one that was prepared, or is called again."""
        return self.hoists[make] if make in self.hoists else make(self)

    def hoisting(self, makes: Sequence[Callable[[Operation], Any]]) -> Operation:
        """The operation with what these make of its parameters made beforehand; each may use those before it."""
        operation = self.copy(packs=TensorTable())
        for make in makes:
            operation = operation.copy(hoists={**operation.hoists, make: make(operation)})
        return operation

    # -- parameters

    @property
    def is_weighted(self) -> bool:
        if self.row.positions is None or self.weight_position >= len(self.arguments):
            return False
        return isinstance(self.weight, Tensor)

    @property
    def positions(self) -> Positions:
        if self.row.positions is None:
            raise RuleError(f"{self.description} has no weight, but the rule needs a weighted equation.")
        return self.row.positions

    @property
    def weight_position(self) -> int:
        """Where its weight stands among its arguments: of a matrix product the operand that is no input."""
        positions, arguments = self.positions, self.arguments
        is_second = positions.input is None and positions.weight < len(arguments)
        return positions.weight - (is_second and isinstance(arguments[positions.weight], Slot))

    @property
    def weight(self) -> Tensor:
        return self.arguments[self.weight_position]

    @property
    def bias(self) -> Tensor | None:
        position = self.row.positions.bias if self.row.positions is not None else None
        return self.arguments[position] if position is not None and position < len(self.arguments) else None

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Operation:
        """The operation with another weight and bias (None: no bias). Errors: `RuleError` if it has no weight."""
        arguments, positions = list(self.arguments), self.positions
        arguments[self.weight_position] = weight
        if positions.bias is not None and positions.bias < len(arguments):
            is_needed = positions.bias == 0  # addmm and its like cannot do without
            arguments[positions.bias] = weight.new_zeros(()) if bias is None and is_needed else bias
        return self.copy(arguments=arguments, hoists={})  # which were made of the old weight

    def offset(self, bias: Tensor | None, epsilon: float) -> Tensor | None:
        """A bias that adds epsilon to every output as well; None where the operation has no bias per output."""
        position = self.positions.bias
        if self.row.outputs is None or position is None or position >= len(self.arguments):
            return None
        return self.weight.new_full((self.row.outputs(self),), epsilon) if bias is None else bias + epsilon

    @property
    def has_samples(self) -> bool:
        """Whether its first dimension counts samples, all of which it treats alike."""
        if self.kind == CONVOLUTION:
            return len(self.sample_shape) == self.weight.dim() - 1
        return self.operator == "linear" and len(self.sample_shape) > 0

    @property
    def _is_layer(self) -> bool:
        return self.is_weighted and self.row.recurrence is None

    # -- adjoints

    @property
    def is_linear(self) -> bool:
        if self.makes_ids:
            return True
        if self.row.is_multilinear:  # a denominator is the second
            return len(self.slots) == 1 and (self.slots == [0] or self.operator != "div")
        return self._is_layer or (self.row.is_linear and self.kind not in (OTHER, MAX_POOL))

    def adjoint(self, s):
        """The transposed linear map applied to s. Errors: `RuleError` if the operation is not linear in its inputs."""
        if not self.is_linear:
            raise RuleError(f"{self.description} is not linear in its inputs, but the rule needs a linear equation.")
        if self.makes_ids:
            return self._typed(tuple([(s / len(self.shapes)).sum_to_size(shape) for shape in self.shapes]))
        part = s[0] if isinstance(s, (tuple, list)) else s
        if self.row.adjoint is not None and (self.kind == MOVEMENT or not self.is_complex(part)):
            result = self.row.adjoint(self, s)
            if result is not None:
                return self._typed(result)
        likes = zip(self.shapes, self._dtypes_of_flows(part), strict=True)
        return self.vjp([torch.zeros(shape, dtype=dtype, device=self.device) for shape, dtype in likes], s)

    @property
    def makes_ids(self) -> bool:
        """Whether it makes one id of another, or of several: each of these has an equal share."""
        return self.row.moves_ids == SHIFT and not any(d.is_floating_point or d.is_complex for d in self.dtypes)

    def is_complex(self, s: Tensor) -> bool:
        """Whether complex numbers take part, of which a transposed map needs the conjugates."""
        return s.is_complex() or any(dtype.is_complex for dtype in self.dtypes)

    def _dtypes_of_flows(self, s: Tensor) -> list[torch.dtype]:
        """Of what its inputs get for s: ids and complex values that are merely moved may have a real relevance."""
        moves_relevance = self.kind == MOVEMENT and not s.is_complex()
        return [
            s.dtype
            if (moves_relevance and dtype.is_complex) or not (dtype.is_floating_point or dtype.is_complex)
            else dtype
            for dtype in self.dtypes
        ]

    def vjp(self, inputs: Sequence[Tensor], s):
        """The vector-Jacobian product at `inputs`: one tensor for one input, a tuple for several."""
        pullback = self.row.pullback
        if pullback is not None and len(inputs) == 2 and not self.is_complex(s):
            moved = pullback(self, inputs, s)
            if moved is not None:
                return self._typed(moved)
        moved = pull_back(lambda *inputs: differentiable(self.smooth(*inputs)), tuple(inputs), s)
        return moved[0] if len(moved) == 1 else moved

    def _typed(self, moved):
        """Each input's share, of its shape and in its own dtype: a sum of float32 and float64 is float64. Ids get
        floats."""
        if isinstance(moved, tuple) and len(moved) > 1:
            return tuple(self._share(tensor, position) for position, tensor in enumerate(moved))
        return self._share(moved[0] if isinstance(moved, tuple) else moved, 0)

    def _share(self, moved: Tensor, position: int) -> Tensor:
        shape, dtype = self.shapes[position], self.dtypes[position]
        if moved.shape != shape:
            raise RuleError(
                f"the adjoint of {self.description} must give its input's shape, {tuple(shape)}, but gave "
                f"{tuple(moved.shape)}: its row in the table of operations is wrong."
            )
        return moved.to(dtype) if dtype.is_floating_point and moved.dtype != dtype else moved

    def remembering(self, *inputs: Tensor) -> tuple[Any, Any]:
        """The value, and what `recall` needs to move a flow back without another forward pass.

        Where nobody watches, that is what autograd records, of any operation and with the fastest kernel there is.
        """
        remembered = self.row.remember(self, *inputs) if self.row.remember is not None else None
        if remembered is not None:
            return remembered
        if self.row.smooth is None:
            return self(*inputs), None
        if not may_record((*inputs, *tensors_in([self.arguments, list(self.keywords.values())]))):
            return self.smooth(*inputs), None
        return record(self, inputs)

    def recall(self, memory, inputs: Sequence[Tensor], s):
        """The vector-Jacobian product at `inputs`, with what `remembering` returned there."""
        if isinstance(memory, Recorded):
            if not is_plain(s):
                return self.vjp(inputs, s)
            moved = torch.autograd.grad(memory.output, memory.leaves, s, retain_graph=not self.is_final)
            return moved[0] if len(moved) == 1 else moved
        if memory is None:
            return self.vjp(inputs, s)
        assert self.row.recall is not None
        return self.row.recall(self, memory, s)

    def smooth(self, *inputs: Tensor):
        """Its value by operations that have derivatives of any order."""
        function = self.row.smooth or self.function
        return function(*_fill(self.arguments, inputs), **self.keywords)


def _fill(template, inputs: Sequence):
    if isinstance(template, Slot):
        return inputs[template.position]
    if isinstance(template, (list, tuple)):
        return type(template)([_fill(item, inputs) for item in template])
    return template


# -- the one place where operations are made --------------------------------------------------------------------------


def bind(
    program: Program,
    equation: Equation,
    values: Mapping[str, Any],
    context: Context = UNKNOWN_CONTEXT,
    inputs: Sequence[Variable] | None = None,
) -> Operation:
    """The operation of an equation, with everything bound but its inputs, which need no values yet.

    `inputs`: what it is a function of, by default its active ones; each has a slot wherever it stands.
    """
    known = facts(program)
    positions = itertools.count()
    inputs = known.inputs_of(equation) if inputs is None else inputs
    free = {variable.name for variable in inputs}

    def fill(template):
        if isinstance(template, Variable):
            return Slot(next(positions)) if template.name in free else values[template.name]
        if isinstance(template, (list, tuple)):
            return type(template)([fill(item) for item in template])
        return template

    factor = known.factor_of(equation)
    operation = Operation(
        equation.name,
        equation.run,
        [fill(argument) for argument in equation.arguments],
        {name: fill(argument) for name, argument in equation.keywords.items()},
        row_of(equation),
        known.kind_of(equation),
        None if factor is None else factor.factor,
        *context,
        sample_shape=inputs[0].shape[1:] if inputs else (),
        operator=equation.operator,
    )
    if isinstance(equation.run, Foreign) and operation.row.is_linear and operation.is_linear:
        return operation.copy(function=replace(equation.run, linear=tuple(operation.slots)))
    return operation


def bind_nothing(program: Program, equation: Equation) -> Operation:
    """The operation of an equation without any values: what it is, and which of its arguments are active."""
    return bind(program, equation, defaultdict(lambda: None))


def bind_function(function: Callable, arguments: Sequence, keywords: Mapping[str, Any], x: Tensor) -> Operation:
    """The operation of a torch function of x, its first argument; the others are bound."""
    name = operator_name(function)
    row, slotted = row_named(name), [Slot(0), *arguments]
    kind = row.kind if isinstance(row.kind, str) else row.kind(slotted, Activity((True,), 1))
    return Operation(name, function, slotted, keywords, row, kind, operator=name).at([x])


def bind_linear(name: str, weight: Tensor, bias: Tensor | None) -> Operation:
    """The operation of a dense layer that is part of another equation."""
    row = row_named("linear")
    return Operation(name, torch.nn.functional.linear, [Slot(0), weight, bias], {}, row, DENSE)


def _parts(operation: Operation) -> tuple:
    return (operation.arguments, dict(operation.keywords), list(operation.hoists.values())), operation, None


def _of_parts(operation: Operation, parts: Sequence) -> Operation:
    arguments, keywords, hoists = parts
    made = dict(zip(operation.hoists, hoists, strict=True))
    return operation.copy(arguments=arguments, keywords=keywords, hoists=made)


optree.register_pytree_node(Operation, _parts, _of_parts, namespace=NAMESPACE)
