"""Changes to a program and its parameters, collected one by one and made at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import optree
import torch
from torch import Tensor

from lrpfunc.errors import CanonizeError
from lrpfunc.operations import facts
from lrpfunc.program import DEVICE, DTYPE, NAMESPACE, PARAMETER, Equation, Program, Variable, rename

Parameters = dict[str, Tensor]


class Draft:
    """Changes to a program and its parameters, collected one by one and made at once."""

    def __init__(self, program: Program, params: Parameters):
        check_flat(program, params)
        self.program, self.params = program, params
        self.facts = facts(program)
        self.leaves = dict(params)
        self.variables = dict(program.parameters)
        self.computed: dict[str, Tensor] = {}
        self.exchanged: dict[str, list[Equation]] = {}  # both by the name of the old equation's first output
        self.bypassed: dict[str, Variable] = {}
        self.left_behind: dict[str, Sequence[float]] = {}
        self.notes = dict(program.notes)
        self.names = {variable.name for equation in program.equations for variable in equation.outputs}
        self.names |= {equation.name for equation in program.equations}

    @property
    def has_changes(self) -> bool:
        return bool(self.exchanged or self.bypassed)

    def is_unchanged(self, equations: Iterable[Equation]) -> bool:
        """Whether none of the equations is changed yet."""
        names = [equation.outputs[0].name for equation in equations]
        return not any(name in self.exchanged or name in self.bypassed for name in names)

    # -- values

    def value(self, argument):
        """The value of a fixed argument, one that depends on parameters only."""
        if not isinstance(argument, Variable):
            return argument
        if argument.name.startswith(PARAMETER):
            return self.params[argument.name.removeprefix(PARAMETER)]
        if argument.name not in self.computed:
            maker = self.program.producers[argument.name]
            values = {variable.name: self._known(variable) for variable in maker.reads}
            made = zip(maker.outputs, maker.evaluate(values), strict=True)
            self.computed.update({variable.name: value for variable, value in made})
        return self.computed[argument.name]

    def _known(self, variable: Variable):
        if variable.name in (DEVICE, DTYPE):
            assert self.program.reference is not None
            reference = self.value(self.program.reference)
            return reference.device if variable.name == DEVICE else reference.dtype
        return self.value(variable)

    # -- changes

    def write_leaf(self, equation: Equation, part: str, old, tensor: Tensor, like: Variable) -> Variable:
        """A leaf with a new value for a part of an equation: the old one if it fits and nothing else reads it."""
        is_leaf = isinstance(old, Variable) and old.name.startswith(PARAMETER)
        if is_leaf and old.shape == tuple(tensor.shape) and self._is_read_once(old, equation):
            name = old.name.removeprefix(PARAMETER)
            self.leaves[name] = tensor.to(self.params[name].dtype)
            return old
        return self.add_leaf(f"{equation.name}.{part}", tensor, like)

    def _is_read_once(self, leaf: Variable, by: Equation) -> bool:
        is_read_by_others = self.facts.readers[leaf.name] != [by] or leaf.name in self.facts.results
        return not is_read_by_others and [variable.name for variable in by.reads].count(leaf.name) == 1

    def add_leaf(self, name: str, tensor: Tensor, like: Variable) -> Variable:
        """A leaf of a new name, in the dtype of another one, which need not be that of the trace any more."""
        while name in self.variables:
            name += "'"
        self.leaves[name] = tensor.to(self.value(like).dtype)
        self.variables[name] = Variable(PARAMETER + name, tuple(tensor.shape), like.dtype)
        return self.variables[name]

    def new_equation(self, name: str, function: Callable, arguments: tuple, shape: tuple, keywords=None) -> Equation:
        """A new equation with one output, like its first argument in dtype."""
        fresh = name
        while fresh in self.names:
            fresh += "'"
        self.names.add(fresh)
        output = Variable(fresh, shape, arguments[0].dtype)
        return Equation(fresh, function, arguments, keywords or {}, (output,))

    def exchange(self, equation: Equation, before: Sequence[Equation] = ()) -> None:
        """Exchange the equation that has the same output for this one, and put others before it."""
        self.exchanged[equation.outputs[0].name] = [*before, equation]

    def bypass(self, equation: Equation, became: str, where: str, leaves: Sequence[float] = ()) -> None:
        """Take an equation away: what reads its output now reads its first argument.

        `leaves` says for its other arguments what the leaves among them become, if nothing reads them any more.
        """
        name = equation.outputs[0].name
        self.bypassed[name] = equation.arguments[0]
        self.left_behind[name] = leaves
        self.notes[equation.name] = (became, where)

    def remove(self, equation: Equation, became: str, where: str) -> None:
        """Take an equation away whose output nothing reads any more; its leaves stay as they are."""
        self.exchanged[equation.outputs[0].name] = []
        self.notes[equation.name] = (became, where)

    def finish(self) -> tuple[Program, Parameters]:
        """The new program and its parameters, with all changes."""
        kept, gone = [], []
        for old in self.program.equations:
            name = old.outputs[0].name
            if name in self.bypassed:
                gone.append(old)
            else:
                kept += [equation.renamed(self.bypassed) for equation in self.exchanged.get(name, [old])]
        output = optree.tree_map(lambda leaf: rename(leaf, self.bypassed), self.program.output, namespace=NAMESPACE)
        program = self.program.replace(equations=tuple(kept), output=output, notes=self.notes)
        read = {v.name for e in program.equations for v in e.reads} | self.facts.results
        for equation in gone:
            self._reset(equation, read)
        return program.with_parameters(self.variables, self.leaves), self.leaves

    def _reset(self, equation: Equation, read: set[str]) -> None:
        """Give the leaves that an equation leaves behind the values that it was bypassed with."""
        leaves = [v if isinstance(v, Variable) and v.name.startswith(PARAMETER) else None for v in equation.arguments]
        for variable, value in zip(leaves[1:], self.left_behind[equation.outputs[0].name], strict=False):
            if variable is not None and variable.name not in read and leaves.count(variable) == 1:
                name = variable.name.removeprefix(PARAMETER)
                self.leaves[name] = torch.full_like(self.params[name], value)


def check_flat(program: Program, params: Parameters) -> None:
    """Errors: `CanonizeError` unless given a program and a flat dict of its parameters; `ParameterError`."""
    if not isinstance(program, Program):
        raise CanonizeError(
            f"a program is needed, as functionalize and trace return it first, but got {type(program).__name__}."
        )
    program.flatten_params(params)
    if not isinstance(params, dict) or set(params) != set(program.parameters):
        raise CanonizeError(
            "canonization needs the parameters as a flat dict {name: tensor}, as functionalize returns them."
        )
