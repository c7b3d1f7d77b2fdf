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

IDENTITY = (1.0, 0.0, 0.0, 1.0, 0.0)  # weight, bias, mean, var and eps of a batch norm that does nothing


class Draft:
    """Changes to a program and its parameters, collected one by one and made at once."""

    def __init__(self, program: Program, params: Parameters):
        check_flat(program, params)
        self.program, self.params = program, params
        self.facts = facts(program)
        self.leaves = dict(params)
        self.variables = dict(program.parameters)
        self.computed: dict[str, Tensor] = {}
        self.put_in: dict[str, list[Equation]] = {}
        self.bypassed: dict[str, Variable] = {}
        self.notes = dict(program.notes)
        self.names = {variable.name for equation in program.equations for variable in equation.outputs}
        self.names |= {equation.name for equation in program.equations}

    def is_free(self, equations: Iterable[Equation]) -> bool:
        """Whether none of the equations is changed yet."""
        names = [equation.outputs[0].name for equation in equations]
        return not any(name in self.put_in or name in self.bypassed for name in names)

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
            assert self.program.reference is not None
            reference = self.value(self.program.reference)
            return reference.device if variable.name == DEVICE else reference.dtype
        return self.value(variable)

    def scale_and_shift(self, batch_norm: Equation) -> tuple[Tensor, Tensor]:
        """a and b of a batch norm y = a x + b, in float32 at least: half precision is rounded once, at the end."""
        gamma, beta, mean, var, eps = (_single(self.value(argument)) for argument in batch_norm.arguments[1:])
        scale = (var + eps).rsqrt()
        scale = scale if gamma is None else scale * gamma
        shift = -scale * mean if beta is None else beta - scale * mean
        _check(batch_norm.name, var + eps, scale, shift)
        return scale, shift

    # -- changes

    def own_leaf(self, equation: Equation, old, part: str, tensor: Tensor, like: Variable) -> Variable:
        """A leaf with a new value for a part of an equation: the old one if it fits and nothing else reads it."""
        is_leaf = isinstance(old, Variable) and old.name.startswith(PARAMETER)
        if is_leaf and old.shape == tuple(tensor.shape) and self._is_read_once(old, equation):
            name = old.name.removeprefix(PARAMETER)
            self.leaves[name] = tensor.to(self.params[name].dtype)
            return old
        return self.new_leaf(f"{equation.name}.{part}", tensor, like)

    def _is_read_once(self, leaf: Variable, by: Equation) -> bool:
        is_read_by_others = self.facts.readers[leaf.name] != [by] or leaf.name in self.facts.results
        return not is_read_by_others and [variable.name for variable in by.reads].count(leaf.name) == 1

    def new_leaf(self, name: str, tensor: Tensor, like: Variable) -> Variable:
        """A leaf of a new name, in the dtype of another one, which need not be that of the trace any more."""
        while name in self.variables:
            name += "'"
        self.leaves[name] = tensor.to(self.value(like).dtype)
        self.variables[name] = Variable(PARAMETER + name, tuple(tensor.shape), like.dtype)
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
        kept, gone = [], []
        for old in self.program.equations:
            name = old.outputs[0].name
            if name in self.bypassed:
                gone.append(old)
            else:
                kept += [equation.renamed(self.bypassed) for equation in self.put_in.get(name, [old])]
        output = optree.tree_map(lambda leaf: rename(leaf, self.bypassed), self.program.output, namespace=NAMESPACE)
        program = self.program.replace(equations=tuple(kept), output=output, notes=self.notes)
        read = {v.name for e in program.equations for v in e.reads} | self.facts.results
        for batch_norm in gone:
            self._reset(batch_norm, read)
        return program.with_parameters(self.variables, self.leaves), self.leaves

    def _reset(self, batch_norm: Equation, read: set[str]) -> None:
        leaves = [v if isinstance(v, Variable) and v.name.startswith(PARAMETER) else None for v in batch_norm.arguments]
        for variable, identity in zip(leaves[1:], IDENTITY, strict=True):
            if variable is not None and variable.name not in read and leaves.count(variable) == 1:
                name = variable.name.removeprefix(PARAMETER)
                self.leaves[name] = torch.full_like(self.params[name], identity)


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


def _single(value):
    return value.to(torch.promote_types(value.dtype, torch.float32)) if isinstance(value, Tensor) else value


def _check(name: str, variance: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Refuse what cannot be folded. Inside vmap and torch.compile, and on fake tensors, there are no values to see."""
    if torch.compiler.is_compiling():
        return
    try:
        wrong = (~((variance > 0) & scale.isfinite() & shift.isfinite())).nonzero()[:1].tolist()
    except RuntimeError:
        return
    if wrong:
        channel = wrong[0][0]
        raise CanonizeError(
            f"batch norm '{name}' cannot be folded: its variance + eps must be positive and all finite, but channel "
            f"{channel} has variance + eps {variance[channel].item():g}, scale {scale[channel].item():g} and shift "
            f"{shift[channel].item():g}."
        )
