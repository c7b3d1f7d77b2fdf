"""The program: a model as equations between variables, in the manner of a jaxpr.

A program knows nothing of rules, of `torch.export` or of modules. It evaluates, checks what it is called with,
prints itself and can be rewritten; everything else in lrpfunc is a function of programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import optree
import torch
from torch import Tensor

from lrpfunc.errors import InputError
from lrpfunc.program import calls, cuts
from lrpfunc.program.equations import DEVICE, DTYPE, SIZES, Equation, Variable, rename, substitute, variables_in
from lrpfunc.program.functions import PACKINGS, moved
from lrpfunc.program.names import below_call, matches
from lrpfunc.program.pytrees import NAMESPACE, Leaf, leaf_names, register
from lrpfunc.program.sizes import Given, function_of, refuse
from lrpfunc.program.tables import equation_row, format_table


@dataclass(frozen=True, eq=False)
class Program:
    """A model as a pure function: `program(params, *inputs)`.

    `functionalize` and `trace` make programs; passes make others of them (`dataclasses.replace`, `replace` and
    `with_parameters`). `check` says whether one is well-formed.

    Args:
        parameters: the variables of the parameter pytree by the names of its leaves, in flattening order.
        parameter_paths: the paths of the same leaves.
        input_names: what the inputs are called, in order.
        input_leaves: all leaves of the inputs: variables, and literals for what is no tensor.
        equations: in an order in which they can be evaluated.
        output: the output's pytree with variables for tensors.
        size_ranges: the lowest and highest value of open sizes that not all values are taken for.
        size_conditions: what else must hold of open sizes, `2*(height//2) == height`.
        takes_keywords: whether some inputs were given by name.
        notes: what became of equations that a pass took away, and where, by their name.
        nodes: the dataclasses among the containers of parameters, inputs and output.
        buffers: the names of the leaves of parameters that a module keeps as buffers, which nobody learns.
        origin: what makes the inputs of a program that was cut off another one, and
        sequel: what becomes of its output there. They tell what its values are, so that kinds stay what they were, and
            nobody evaluates them.

    Of these follow: `producers`, the equation that makes a variable, by its name; `output_leaves`; `last_reads`, for
    each equation the results that nobody reads after it; `reference`, the tensor whose device and dtype rule a call:
    the first floating-point one with dimensions, or the first. `facts` is what `operations.facts` keeps here, `kept`
    what `attribution.keeping` does.

    >>> import lrpfunc, torch
    >>> program, params = lrpfunc.trace(lambda w, x: (x @ w).relu(), torch.eye(3), torch.ones(2, 3))
    >>> [equation.name for equation in program.equations], program.input_names
    (['matmul', 'relu'], ('x',))
    >>> program(params, torch.tensor([[1.0, -2.0, 3.0]]))
    tensor([[1., 0., 3.]])
    """

    parameters: Mapping[str, Variable]
    parameter_paths: tuple[tuple, ...]
    input_names: tuple[str, ...]
    input_leaves: tuple[Leaf, ...]
    equations: tuple[Equation, ...]
    output: Any
    size_ranges: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    size_conditions: tuple[str, ...] = ()
    takes_keywords: bool = False
    notes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    nodes: tuple[type, ...] = ()
    buffers: tuple[str, ...] = ()
    origin: Program | None = None
    sequel: Program | None = None
    producers: Mapping[str, Equation] = field(init=False)
    output_leaves: tuple = field(init=False)
    last_reads: tuple[tuple[str, ...], ...] = field(init=False)
    reference: Variable | None = field(init=False)
    conditions: tuple[Callable[[Mapping[str, int]], bool], ...] = field(init=False)
    facts: Any = field(init=False, default=None)  # what operations.facts knows of it
    kept: Any = field(init=False, default=None)  # what an explanation leaves for the next one

    def __post_init__(self):
        for kind in self.nodes:
            register(kind)
        object.__setattr__(self, "producers", {v.name: e for e in self.equations for v in e.outputs})
        object.__setattr__(self, "output_leaves", tuple(optree.tree_leaves(self.output, namespace=NAMESPACE)))
        object.__setattr__(self, "last_reads", _last_reads(self))
        object.__setattr__(self, "reference", _reference(self))
        object.__setattr__(self, "conditions", tuple(map(function_of, self.size_conditions)))

    def __reduce__(self):
        return Program, tuple(getattr(self, given.name) for given in fields(self) if given.init)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def __call__(self, params, /, *inputs, **keywords):
        """The model's output, equal to `functional_call(model, params, inputs)`.

        Errors: `ParameterError`, `InputError` where what is given does not fit what was traced.
        """
        values = self.bind(params, self.collect(inputs, keywords))
        for equation, dead in zip(self.equations, self.last_reads, strict=True):
            self.store(equation, equation.evaluate(values), values)
            for name in dead:
                del values[name]
        return self.result(values)

    def collect(self, inputs: Sequence, keywords: Mapping[str, Any]) -> tuple:
        """Positional and keyword inputs as one tuple, in the order of `input_names`."""
        return calls.collect(self.input_names, inputs, keywords)

    def bind(self, params, inputs: tuple) -> dict[str, Any]:
        """The first values of an evaluation, checked: parameters, inputs, and the call's device and dtype."""
        return self.bind_inputs(inputs, self.bind_params(params))

    def bind_params(self, params) -> dict[str, Any]:
        """The values of the parameters, checked, and the call's device and dtype if they rule them."""
        return self.bind_leaves(self.flatten_params(params))

    def bind_leaves(self, leaves: Sequence[Tensor]) -> dict[str, Any]:
        """As `bind_params`, of the leaves of parameters in their order."""
        names = (variable.name for variable in self.parameters.values())
        values: dict[str, Any] = dict(zip(names, leaves, strict=True))
        self._bind_device_and_dtype(values)
        return values

    def bind_inputs(self, inputs: tuple, values: dict[str, Any]) -> dict[str, Any]:
        """Add the values of the inputs, checked, and the call's device and dtype."""
        leaves = self.flatten_inputs(inputs)
        for leaf, value in zip(self.input_leaves, leaves, strict=True):
            if isinstance(leaf.value, Variable):
                values[leaf.value.name] = value
        self._bind_device_and_dtype(values)
        self._check_inputs(leaves, values)
        return values

    def _bind_device_and_dtype(self, values: dict[str, Any]) -> None:
        if self.reference is None:
            values[DEVICE], values[DTYPE] = torch.empty(()).device, torch.get_default_dtype()
        elif self.reference.name in values:
            values[DEVICE], values[DTYPE] = values[self.reference.name].device, values[self.reference.name].dtype

    def store(self, equation: Equation, results: Sequence, values: dict[str, Any]) -> None:
        if len(results) != len(equation.outputs):
            traced = len(equation.outputs)
            raise InputError(
                f"'{equation.name}' makes {len(results)} values of inputs of this size, but made {traced} when it was "
                "traced. Trace the model again for this size."
            )
        given = values.get(SIZES)  # none while torch.compile watches
        for variable, result in zip(equation.outputs, results, strict=True):
            if given is not None and variable.is_tensor and not given.fits(variable.shape, result.shape):
                raise InputError(
                    f"'{equation.name}' makes {tuple(result.shape)} of inputs of this size, which is not {variable} as "
                    "it was traced. Trace the model again for this size."
                )
            values[variable.name] = result

    def result(self, values: Mapping[str, Any]):
        return optree.tree_map(lambda leaf: substitute(leaf, values), self.output, namespace=NAMESPACE)

    # -- checks of a call ---------------------------------------------------------------------------------------------

    def flatten_params(self, params) -> list[Tensor]:
        """The leaves of parameters. Errors: `ParameterError` where they do not fit."""
        return calls.flatten_params(self.parameters, self.parameter_paths, params)

    def flatten_inputs(self, inputs: tuple) -> list:
        """The leaves of inputs. Errors: `InputError` for other leaves than traced."""
        return calls.flatten_inputs(self.input_leaves, self.input_names, inputs)

    def _check_inputs(self, leaves: Sequence, values: dict[str, Any]) -> None:
        seen: dict[str, tuple[int, str]] = {}
        for (_, label, expected), value in zip(self.input_leaves, leaves, strict=True):
            if isinstance(expected, Variable):
                follows = self.reference is not None and expected.is_floating and expected.dtype == self.reference.dtype
                dtype = values[DTYPE] if follows else expected.dtype
                calls.check_tensor(label, value, values[DEVICE], dtype, follows)
                calls.check_shape(label, expected, tuple(value.shape), self.size_ranges, seen)
        sizes = {name: n for name, (n, _) in seen.items()}
        for condition, holds in zip(self.size_conditions, self.conditions, strict=True):
            if not holds(sizes):
                refuse(condition, seen, self.size_ranges, self.size_conditions)
        if not torch.compiler.is_compiling():
            values[SIZES] = Given(sizes)

    @property
    def whole(self) -> Program:
        """The program together with what makes its inputs and what becomes of its output, if it was cut off these."""
        if self.origin is None and self.sequel is None:
            return self
        parts = [part for part in (self.origin, self, self._continued()) if part is not None]
        equations: dict[str, Equation] = {}
        for equation in (equation for part in parts for equation in part.equations):
            equations.setdefault(equation.outputs[0].name, equation)  # what two of them make is the first one's
        return replace(
            parts[0],
            parameters={name: variable for part in parts for name, variable in part.parameters.items()},
            equations=tuple(equations.values()),
            output=parts[-1].output,
            origin=None,
            sequel=None,
        )

    def _continued(self) -> Program | None:
        """What becomes of the output, as it reads what that is by now."""
        if self.sequel is None:
            return None
        taken = (leaf.value for leaf in self.sequel.input_leaves)
        given = {old.name: new for old, new in zip(taken, self.output_leaves, strict=True) if isinstance(new, Variable)}
        equations = tuple(equation.renamed(given) for equation in self.sequel.equations)
        output = optree.tree_map(lambda leaf: rename(leaf, given), self.sequel.output, namespace=NAMESPACE)
        return replace(self.sequel, equations=equations, output=output)

    # -- rewriting ----------------------------------------------------------------------------------------------------

    def readers(self) -> dict[str, list[Equation]]:
        """For each variable, the equations that read it; an equation that reads it twice is listed once."""
        readers: dict[str, list[Equation]] = {}
        for equation in self.equations:
            for name in dict.fromkeys(variable.name for variable in equation.reads):
                readers.setdefault(name, []).append(equation)
        return readers

    def replace(self, **changes) -> Program:
        """A new program with other fields, without the equations whose results nobody reads."""
        program = replace(self, **changes)
        needed = {v.name for v in variables_in(program.output_leaves)}
        kept = []
        for equation in reversed(program.equations):
            if any(variable.name in needed for variable in equation.outputs):
                kept.append(equation)
                needed.update(variable.name for variable in equation.reads)
        return replace(program, equations=tuple(reversed(kept)))

    def names(self, pattern: str = "*") -> tuple[str, ...]:
        """The names of equations: all, those that match a pattern with wildcards, or those below a module's path.

        Of what is called more than once all calls match, "act" and "act:1"; "act:0" and "block:1" mean one call.
        """
        start = f"{pattern}."
        of_call = set(below_call(self.equations, pattern))
        names = (e.name for e in self.equations if e.outputs[0].is_tensor)
        return tuple(n for n in names if n.startswith(start) or n in of_call or matches(n, pattern))

    def cut(self, name: str) -> tuple[Program, Program]:
        """Two programs: what makes the output of a layer, and what becomes of it.

        `lower, upper = fmodel.cut("layer3")`: both take all parameters, and `upper(params, lower(params, x))` is the
        model's output. Where more than the layer's output crosses (a skip connection, a mask), `lower` gives a tuple
        of it, and `upper` takes as many inputs; the layer's own is the first.

        Relevance goes on through a cut as the seed of `lower`, exactly the whole's in the form in which it arrives: as
        `Flow(coefficient=...)` of what `record(upper, ...)` pulls with `form="coefficient"` or, where that warns that
        only a relevance is known, as it is. Stabilizers take their share of a relevance that is divided by a value, and
        none of a coefficient that is handed on: in the other form some 1e-5 differ with an epsilon of 1e-6.

        Errors: `ProgramError` for a name that there is not, that several calls have ("act:0" is the first of them), and
        for a layer that nothing follows.
        """
        return cuts.cut(self, name)

    def with_parameters(self, variables: Mapping[str, Variable], params) -> Program:
        """A new program that takes parameters like `params`, whose leaves are the variables of the same names."""
        paths, names = tuple(optree.tree_paths(params, namespace=NAMESPACE)), leaf_names(params)
        buffers = tuple(name for name in self.buffers if name in names)
        parameters = {name: variables[name] for name in names}
        return replace(self, parameters=parameters, parameter_paths=paths, buffers=buffers)

    def __str__(self) -> str:
        rows = [equation_row(equation) for equation in self.equations if equation.outputs[0].is_tensor]
        return format_table(("name", "operation", "input", "output"), rows)


# -- facts ------------------------------------------------------------------------------------------------------------


def _reference(program: Program) -> Variable | None:
    inputs = (leaf.value for leaf in program.input_leaves if isinstance(leaf.value, Variable))
    packed: set[str] = set()
    for equation in reversed(program.equations):
        if equation.function in PACKINGS or (equation.function is moved and equation.outputs[0].name in packed):
            packed.update(variable.name for variable in equation.reads)
    own = [v for v in program.parameters.values() if v.name not in packed]  # scales may have a dtype of their own
    tensors = (*own, *program.parameters.values(), *inputs)
    return next((v for v in tensors if v.is_floating and v.shape), next(iter(tensors), None))


def _last_reads(program: Program) -> tuple[tuple[str, ...], ...]:
    needed = {variable.name for variable in program.output_leaves if isinstance(variable, Variable)}
    results = {variable.name for equation in program.equations for variable in equation.outputs}
    last_reads = []
    for equation in reversed(program.equations):
        names = dict.fromkeys(variable.name for variable in (*equation.outputs, *equation.reads))
        last_reads.append(tuple(name for name in names if name in results and name not in needed))
        needed.update(names)
    return tuple(reversed(last_reads))
