"""Changes to a program and its parameters, collected one by one and made at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import optree
import torch
from torch import Tensor

from lrpfunc.channels import Structure
from lrpfunc.errors import CanonizeError
from lrpfunc.program import DEVICE, DTYPE, NAMESPACE, PARAMETER, Equation, Program, Variable, rename

Parameters = dict[str, Tensor]

IDENTITY = (1.0, 0.0, 0.0, 1.0, 0.0)  # weight, bias, mean, var and eps of a batch norm that does nothing


class Draft:
    """Changes to a program and its parameters, collected one by one and made at once."""

    def __init__(self, program: Program, params: Parameters):
        self.program, self.params = program, params
        self.structure = Structure(program)
        self.leaves = dict(params)
        self.variables = dict(program.parameters)
        self.computed: dict[str, Tensor] = {}
        self.claimed: set[str] = set()
        self.put_in: dict[str, list[Equation]] = {}
        self.bypassed: dict[str, Variable] = {}
        self.notes = dict(program.notes)
        self.names = {variable.name for equation in program.equations for variable in equation.outputs}
        self.names |= {equation.name for equation in program.equations}

    def claim(self, equations: Iterable[Equation]) -> bool:
        """Whether none of the equations has been changed yet; from now on they count as changed."""
        names = {equation.outputs[0].name for equation in equations}
        is_free = not names & self.claimed
        if is_free:
            self.claimed |= names
        return is_free

    # -- values

    def value(self, argument):
        """The value of an argument that depends on parameters alone."""
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
            return self._reference.device if variable.name == DEVICE else self._reference.dtype
        return self.value(variable)

    @property
    def _reference(self) -> Tensor:
        assert self.program.reference is not None
        return self.value(self.program.reference)

    def scale_and_shift(self, batch_norm: Equation) -> tuple[Tensor, Tensor]:
        """a and b of a batch norm y = a x + b, in float32 at least: half precision is rounded once, at the end."""
        gamma, beta, mean, var, eps = (_single(self.value(argument)) for argument in batch_norm.arguments[1:])
        _check_variance(batch_norm.name, var + eps)
        scale = (var + eps).rsqrt()
        scale = scale if gamma is None else scale * gamma
        return scale, -scale * mean if beta is None else beta - scale * mean

    # -- changes

    def own_leaf(self, equation: Equation, old, part: str, tensor: Tensor) -> Variable:
        """A leaf with a new value for a part of an equation: the old one if nothing else reads it, else a new one."""
        is_leaf = isinstance(old, Variable) and old.name.startswith(PARAMETER)
        if is_leaf and self.structure.readers[old.name] == [equation] and old.name not in self.structure.results:
            name = old.name.removeprefix(PARAMETER)
            self.leaves[name] = tensor.to(self.params[name].dtype)
            return old
        return self.new_leaf(f"{equation.name}.{part}", tensor)

    def new_leaf(self, name: str, tensor: Tensor) -> Variable:
        """A leaf of a new name, in the dtype of the other parameters, which need not be the one that was traced."""
        while name in self.variables:
            name += "'"
        self.leaves[name] = tensor.to(self._reference.dtype)
        assert self.program.reference is not None
        self.variables[name] = Variable(PARAMETER + name, tuple(tensor.shape), self.program.reference.dtype)
        return self.variables[name]

    def equation(self, name: str, function: Callable, arguments: tuple, shape: tuple, keywords=None) -> Equation:
        """A new equation with one output, like its first argument in dtype."""
        fresh = name
        while fresh in self.names:
            fresh += "'"
        self.names.add(fresh)
        output = Variable(fresh, shape, arguments[0].dtype)
        return Equation(fresh, function, arguments, keywords or {}, (output,))

    def put(self, equation: Equation, before: Sequence[Equation] = ()) -> None:
        """Put an equation in the place of the one with the same output, and others before it."""
        self.put_in[equation.outputs[0].name] = [*before, equation]

    def bypass(self, batch_norm: Equation, became: str, where: str) -> None:
        """Take a batch norm away: what reads its output now reads its input."""
        self.bypassed[batch_norm.outputs[0].name] = batch_norm.arguments[0]
        self.notes[batch_norm.name] = (became, where)

    def finish(self) -> tuple[Program, Parameters]:
        """The new program and its parameters, where what went away leaves an identity batch norm behind."""
        redirected = {name: self._end_of(variable) for name, variable in self.bypassed.items()}
        kept, gone = [], []
        for old in self.program.equations:
            name = old.outputs[0].name
            if name in self.bypassed:
                gone.append(old)
            else:
                kept += [equation.renamed(redirected) for equation in self.put_in.get(name, [old])]
        output = optree.tree_map(lambda leaf: rename(leaf, redirected), self.program.output, namespace=NAMESPACE)
        program = self.program.replace(equations=tuple(kept), output=output, notes=self.notes)
        self._reset(gone, {variable.name for equation in program.equations for variable in equation.reads})
        return program.with_parameters(self.variables, self.leaves), self.leaves

    def _end_of(self, variable: Variable) -> Variable:
        """What a bypassed batch norm's readers read, if several in a row go."""
        while variable.name in self.bypassed:
            variable = self.bypassed[variable.name]
        return variable

    def _reset(self, batch_norms: Sequence[Equation], read: set[str]) -> None:
        for batch_norm in batch_norms:
            for variable, identity in zip(batch_norm.arguments[1:], IDENTITY, strict=True):
                if isinstance(variable, Variable) and variable.name.startswith(PARAMETER) and variable.name not in read:
                    name = variable.name.removeprefix(PARAMETER)
                    self.leaves[name] = torch.full_like(self.params[name], identity)


def _single(value):
    return value.to(torch.promote_types(value.dtype, torch.float32)) if isinstance(value, Tensor) else value


def _check_variance(name: str, variance: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    try:
        wrong = (~(variance > 0)).nonzero()[:1].tolist()
    except RuntimeError:  # inside vmap and on fake tensors there are no values to ask for
        return
    if wrong:
        channel = wrong[0][0]
        raise CanonizeError(
            f"batch norm '{name}' cannot be folded: its variance + eps must be positive, but is "
            f"{variance[channel].item():g} in channel {channel}."
        )
