"""Sums of a layer's result and a parameter: the layer's bias, however it is written.

`x @ W + b` is the layer that `linear(x, W.T, b)` is, and a rule that counts biases must see it as one. So is the layer
whose bias is made of parameters for the size at hand, as in canonical programs that are traced again, with others in
front of them. The functions that take the sums' place compute what was written, to the last bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from lrpfunc.operations import facts, row_of
from lrpfunc.program import Equation, Program, Variable, variables_in


class _Sum(NamedTuple):
    """A layer without a bias, the equation that adds one to its result, and what that adds."""

    layer: Equation
    addition: Equation
    bias: Variable


def with_biases(program: Program) -> tuple[Program, dict[str, str]]:
    """A program in which layers have their biases, and by the name of such a layer's result the one it had before."""
    constants = _of_no_values(program)
    sums = [found for equation in program.equations if (found := _match(program, constants, equation)) is not None]
    made = {found.addition.outputs[0].name: _biased(found) for found in sums}
    gone = {found.layer.outputs[0].name for found in sums}
    equations = [
        made.get(equation.outputs[0].name, equation)
        for equation in program.equations
        if equation.outputs[0].name not in gone
    ]
    renamed = {found.addition.outputs[0].name: found.layer.outputs[0].name for found in sums}
    return program.replace(equations=tuple(equations)), renamed


def _of_no_values(program: Program) -> frozenset[str]:
    """The variables that depend on parameters and sizes alone, not on the values of an input."""
    found = set(facts(program).fixed)
    for equation in program.equations:
        row, arguments = row_of(equation), list(equation.arguments)
        if row.shape_giver is not None:
            del arguments[row.shape_giver]
        read = variables_in((arguments, *equation.keywords.values()))
        if row.reads_shape or all(variable.name in found for variable in read):
            found.update(variable.name for variable in equation.outputs)
    return frozenset(found)


def _match(program: Program, constants: frozenset[str], equation: Equation) -> _Sum | None:
    known = facts(program)
    if equation.operator != "add" or equation.keywords.get("alpha", 1) != 1 or len(equation.arguments) != 2:
        return None
    for value, bias in (equation.arguments, equation.arguments[::-1]):
        layer = program.producers.get(value.name) if isinstance(value, Variable) else None
        if layer is None or row_of(layer).biased is None or not isinstance(bias, Variable):
            continue
        is_layer = row_of(layer).positions is not None and len(known.inputs_of(layer)) == 1
        is_only_reader = len(known.readers[value.name]) == 1 and value.name not in known.results
        if is_layer and is_only_reader and bias.name in constants and _fits(layer, equation, bias):
            return _Sum(layer, equation, bias)
    return None


def _fits(layer: Equation, addition: Equation, bias: Variable) -> bool:
    """Whether a layer has no bias yet, and adding this one leaves its result's shape and dtype."""
    position = _place(layer)
    has_bias = position is not None and position < len(layer.arguments) and layer.arguments[position] is not None
    before, after = layer.outputs[0], addition.outputs[0]
    return not has_bias and bias.is_tensor and after.shape == before.shape and after.dtype == before.dtype == bias.dtype


def _place(layer: Equation) -> int | None:
    """The position of a layer's bias among its arguments."""
    positions = row_of(layer).positions
    return None if positions is None else positions.bias


def _biased(found: _Sum) -> Equation:
    layer = found.layer
    function, position = row_of(layer).biased, _place(layer)
    assert function is not None
    arguments = list(layer.arguments)
    if position is None or position >= len(arguments):
        arguments.append(found.bias)
    else:
        arguments[position] = found.bias
    return replace(layer, function=function, arguments=tuple(arguments), outputs=found.addition.outputs)
