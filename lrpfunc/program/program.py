"""A model as data: variables, equations and the program that they make, in the manner of a jaxpr.

A program knows nothing of rules, of `torch.export` or of modules. It evaluates, checks what it is called with,
prints itself and can be rewritten; everything else in lrpfunc is a function of programs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from lrpfunc.errors import InputError, ParameterError, near_misses

# Values that no equation makes: factory functions inside a model follow the call, not the machine it was traced on.
DEVICE, DTYPE = "@device", "@dtype"

PARAMETER = "params."  # how the variables of parameter leaves begin

# Results that count as constants whatever they are made of. A model's author who detaches a value declares it one, to
# relevance as to the gradient; of the others only the shape depends on what they read.
CONSTANT = ("detach", "ones_of")

NAMESPACE = "lrpfunc"  # optree's registry of the dataclasses that we met, kept apart from everybody else's


@dataclass(frozen=True, eq=False)
class Variable:
    """One edge of a program. `shape` has a name in place of a size that may differ from call to call."""

    name: str
    shape: tuple[int | str, ...] = ()
    dtype: torch.dtype | None = None  # None: no tensor but a size

    @property
    def is_tensor(self) -> bool:
        return self.dtype is not None

    @property
    def is_floating(self) -> bool:
        return self.dtype is not None and self.dtype.is_floating_point

    def __str__(self) -> str:
        return "(" + ", ".join(map(str, self.shape)) + ")" if self.is_tensor else "size"


@dataclass(frozen=True, eq=False)
class Equation:
    """`outputs = function(*arguments, **keywords)`, where variables stand for values.

    `operator` is the name of the function without its overload: `conv2d`, `add`, `frozen_batch_norm`; `reads` holds the
    variables among the arguments.
    """

    name: str
    function: Callable
    arguments: tuple
    keywords: Mapping[str, Any]
    outputs: tuple[Variable, ...]
    source: str = ""
    operator: str = field(init=False)
    reads: tuple[Variable, ...] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "operator", operator_name(self.function))
        object.__setattr__(self, "reads", tuple(variables_in((self.arguments, tuple(self.keywords.values())))))

    def renamed(self, variables: Mapping[str, Variable]) -> Equation:
        """The same equation that reads other variables, by the names of the old ones."""
        keywords = {key: rename(value, variables) for key, value in self.keywords.items()}
        return replace(self, arguments=rename(self.arguments, variables), keywords=keywords)

    def evaluate(self, values: Mapping[str, Any]) -> tuple:
        result = self.function(
            *substitute(self.arguments, values), **{k: substitute(v, values) for k, v in self.keywords.items()}
        )
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)


class Leaf(NamedTuple):
    """One leaf of the inputs: its path, also as text for messages, and its variable or the literal of the trace."""

    path: tuple
    label: str
    value: Variable | Any


@dataclass(frozen=True, eq=False)
class Program:
    """A model as a pure function: `program(params, *inputs)`.

    Equations come in an order in which they can be evaluated. `parameters` maps the leaf names of the parameter pytree,
    in flattening order, to variables, and `parameter_paths` has the same leaves' paths. `output` is the output's pytree
    with variables for tensors. `active` holds the names of the floating-point variables that depend on an input, and of
    token ids from the input to an embedding,
    `last_reads` for each equation the results that nobody reads after it. `reference` is the tensor whose device and
    dtype rule a call: the first floating-point one with dimensions, or the first.
    `notes` has, by name, what became of equations that a pass took away, and where.
    """

    parameters: Mapping[str, Variable]
    parameter_paths: tuple[tuple, ...]
    input_names: tuple[str, ...]
    input_leaves: tuple[Leaf, ...]
    equations: tuple[Equation, ...]
    output: Any
    size_ranges: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    takes_keywords: bool = False
    notes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    active: frozenset[str] = field(init=False)
    producers: Mapping[str, Equation] = field(init=False)
    output_leaves: tuple = field(init=False)
    last_reads: tuple[tuple[str, ...], ...] = field(init=False)
    reference: Variable | None = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "producers", {v.name: e for e in self.equations for v in e.outputs})
        object.__setattr__(self, "active", _active(self))
        object.__setattr__(self, "output_leaves", tuple(optree.tree_leaves(self.output, namespace=NAMESPACE)))
        object.__setattr__(self, "last_reads", _last_reads(self))
        object.__setattr__(self, "reference", _reference(self))

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
        if len(inputs) > len(self.input_names):
            raise InputError(f"the program takes {self._signature()}, but got {len(inputs)} positional inputs.")
        given = dict(zip(self.input_names, inputs, strict=False))
        for name, value in keywords.items():
            if name not in self.input_names:
                hint = near_misses(name, self.input_names)
                raise InputError(f"no input is called '{name}': the program takes {self._signature()}.{hint}")
            if name in given:
                raise InputError(f"input '{name}' was given twice, by position and by name.")
            given[name] = value
        if missing := [name for name in self.input_names if name not in given]:
            raise InputError(f"input '{missing[0]}' is missing: the program takes {self._signature()}.")
        return tuple(given[name] for name in self.input_names)

    def bind(self, params, inputs: tuple) -> dict[str, Any]:
        """The first values of an evaluation, checked: parameters, inputs, and the call's device and dtype."""
        return self.bind_inputs(inputs, self.bind_params(params))

    def bind_params(self, params) -> dict[str, Any]:
        """The values of the parameters, checked, and the call's device and dtype if they rule them."""
        names = (variable.name for variable in self.parameters.values())
        values: dict[str, Any] = dict(zip(names, self.flatten_params(params), strict=True))
        self._bind_place(values)
        return values

    def bind_inputs(self, inputs: tuple, values: dict[str, Any]) -> dict[str, Any]:
        """Add the values of the inputs, checked, and the call's device and dtype."""
        leaves = self.flatten_inputs(inputs)
        for leaf, value in zip(self.input_leaves, leaves, strict=True):
            if isinstance(leaf.value, Variable):
                values[leaf.value.name] = value
        self._bind_place(values)
        self._check_inputs(leaves, values)
        return values

    def _bind_place(self, values: dict[str, Any]) -> None:
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
        for variable, result in zip(equation.outputs, results, strict=True):
            values[variable.name] = result

    def result(self, values: Mapping[str, Any]):
        return optree.tree_map(lambda leaf: substitute(leaf, values), self.output, namespace=NAMESPACE)

    # -- structure ----------------------------------------------------------------------------------------------------

    def flatten_params(self, params) -> list[Tensor]:
        # Paths instead of structures, here and below: torch.compile cannot compare optree's structures.
        leaves = optree.tree_leaves(params, namespace=NAMESPACE)
        if tuple(optree.tree_paths(params, namespace=NAMESPACE)) != self.parameter_paths:
            raise ParameterError(_structure_difference(list(self.parameters), leaf_names(params)))
        for (name, variable), leaf in zip(self.parameters.items(), leaves, strict=True):
            if not isinstance(leaf, Tensor):
                raise ParameterError(f"leaf '{name}' of params must be a tensor, but is {type(leaf).__name__}.")
            if tuple(leaf.shape) != variable.shape:
                raise ParameterError(
                    f"leaf '{name}' of params must have shape {variable}, but has {tuple(leaf.shape)}. "
                    "For several parameter sets stacked along a dimension, use torch.func.vmap over params."
                )
        return leaves

    def flatten_inputs(self, inputs: tuple) -> list:
        leaves = optree.tree_leaves(inputs, namespace=NAMESPACE)
        if [leaf.path for leaf in self.input_leaves] != optree.tree_paths(inputs, namespace=NAMESPACE):
            given = ", ".join(label_inputs(self.input_names, inputs)) or "nothing"
            raise InputError(
                f"the inputs must have the leaves {', '.join(leaf.label for leaf in self.input_leaves)} that they were "
                f"traced with, but have {given}. Trace the model again for another structure."
            )
        for (_, label, expected), value in zip(self.input_leaves, leaves, strict=True):
            if isinstance(expected, Variable) and not isinstance(value, Tensor):
                raise InputError(f"input '{label}' must be a tensor, but is {type(value).__name__}.")
            if not isinstance(expected, Variable) and (isinstance(value, Tensor) or value != expected):
                raise InputError(
                    f"input '{label}' is part of the trace with the value {expected!r}, but is now {value!r}. "
                    "Trace the model again for another value."
                )
        return leaves

    def _check_inputs(self, leaves: Sequence, values: Mapping[str, Any]) -> None:
        sizes: dict[str, tuple[int, str]] = {}
        for (_, label, expected), value in zip(self.input_leaves, leaves, strict=True):
            if isinstance(expected, Variable):
                self._check_tensor(label, expected, value, values)
                self._check_shape(label, expected, value, sizes)

    def _check_tensor(self, path: str, expected: Variable, value: Tensor, values: Mapping[str, Any]) -> None:
        if value.device != values[DEVICE]:
            raise InputError(
                f"input '{path}' is on {value.device}, but the other tensors are on {values[DEVICE]}. "
                "Move one to the other: optree.tree_map(lambda p: p.to(device), params)."
            )
        follows = self.reference is not None and expected.is_floating and expected.dtype == self.reference.dtype
        needed = values[DTYPE] if follows else expected.dtype
        if value.dtype != needed:
            why = "as the parameters are" if follows else "as in the trace"
            raise InputError(f"input '{path}' must be {needed} {why}, but is {value.dtype}. Cast one.")

    def _check_shape(self, path: str, expected: Variable, value: Tensor, sizes: dict[str, tuple[int, str]]) -> None:
        shape = tuple(value.shape)
        if len(shape) != len(expected.shape):
            raise InputError(
                f"input '{path}' must have the {len(expected.shape)} dimensions {expected}, but has {shape}."
            )
        for axis, (size, needed) in enumerate(zip(shape, expected.shape, strict=True)):
            if isinstance(needed, str):
                first, where = sizes.setdefault(needed, (size, path))
                if size != first:
                    raise InputError(
                        f"inputs '{where}' and '{path}' must agree in '{needed}', but have {first} and {size}."
                    )
                low, high = self.size_ranges.get(needed, (0, None))
                if size < low or (high is not None and size > high):
                    bounds = f"at least {low}" if high is None else f"between {low} and {high}"
                    is_long = needed.startswith("length") and size > low
                    why = "the model takes no longer sequences. Shorten it" if is_long else "the model decides on it"
                    raise InputError(f"'{needed}' of input '{path}' must be {bounds}, but is {size}: {why}.")
            elif size != needed:
                remedy = (
                    f"The model fixes its batch size at {needed}: trace it with the batch size you need."
                    if axis == 0
                    else "Trace the model again for another size."
                )
                raise InputError(f"input '{path}' must have shape {expected}, but has {shape}. {remedy}")

    def _signature(self) -> str:
        return "(params, " + ", ".join(self.input_names) + ")"

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

    def with_parameters(self, variables: Mapping[str, Variable], params) -> Program:
        """A new program that takes parameters like `params`, whose leaves are the variables of the same names."""
        paths = tuple(optree.tree_paths(params, namespace=NAMESPACE))
        return replace(self, parameters={name: variables[name] for name in leaf_names(params)}, parameter_paths=paths)

    def __str__(self) -> str:
        rows = [equation_row(equation) for equation in self.equations if equation.outputs[0].is_tensor]
        return format_table(("name", "operation", "input", "output"), rows)


# -- helpers ----------------------------------------------------------------------------------------------------------


def operator_name(function: Callable) -> str:
    """The name of a function without its namespace and overload."""
    packet = getattr(function, "overloadpacket", function)
    name = getattr(packet, "__name__", type(packet).__name__)
    return name.removeprefix("aten.")


def substitute(template, values: Mapping[str, Any]):
    """`template` with each variable replaced by its value."""
    if isinstance(template, Variable):
        return values[template.name]
    if isinstance(template, (list, tuple)):
        return type(template)([substitute(item, values) for item in template])
    return template


def variables_in(template) -> Iterator[Variable]:
    """The variables of nested lists and tuples, in order."""
    if isinstance(template, Variable):
        yield template
    elif isinstance(template, (list, tuple)):
        for item in template:
            yield from variables_in(item)


def rename(template, renamed: Mapping[str, Variable]):
    """`template` with variables exchanged for other variables, by name."""
    return substitute(template, {v.name: renamed.get(v.name, v) for v in variables_in(template)})


def leaf_names(tree) -> list[str]:
    """Dotted names of a pytree's leaves in flattening order; for a flat dict these are its keys."""
    return [".".join(map(str, path)) for path in optree.tree_paths(tree, namespace=NAMESPACE)]


def label_inputs(names: Sequence[str], inputs: tuple) -> list[str]:
    """What the leaves of the inputs are called in messages: `x`, `batch['mask']`."""
    accessors = optree.tree_accessors(inputs, namespace=NAMESPACE)
    return [names[a[0].entry] + "".join(entry.codify("") for entry in a[1:]) for a in accessors]


def equation_row(equation: Equation) -> tuple[str, str, str, str]:
    """An equation in a printed table: its name, operator, and the shapes that it reads and makes."""
    read = [str(v) for v in equation.reads if v.is_tensor and not v.name.startswith(PARAMETER)]
    return equation.name, equation.operator, " ".join(read), " ".join(map(str, equation.outputs))


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, each as wide as its widest cell."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (header, *rows)]
    return "\n".join(lines)


def _active(program: Program) -> frozenset[str]:
    active = {v.value.name for v in program.input_leaves if isinstance(v.value, Variable) and v.value.is_floating}
    tokens = _tokens(program)
    for equation in program.equations:
        is_active = any(variable.name in active for variable in equation.reads)
        embeds = equation.operator == "embedding" and equation.arguments[1].name in tokens
        if equation.operator not in CONSTANT and (is_active or embeds):
            active.update(variable.name for variable in equation.outputs if variable.is_floating)
    return frozenset(active | tokens)


# What token ids may go through on their way to an embedding and still be the input's own.
MOVES_TOKENS = ("reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "slice", "select", "expand", "contiguous",
                "clone", "to", "_to_copy", "transpose", "permute", "cat", "split", "chunk", "unbind", "narrow", "flip",
                "roll", "where", "masked_fill", "index_put", "overwrite", "clamp", "clamp_min", "clamp_max", "index",
                "index_select", "gather")  # fmt: skip


def _tokens(program: Program) -> set[str]:
    """Integer inputs whose rows an embedding looks up, and the variables on the way: each has its row's relevance."""
    leaves = {leaf.value.name for leaf in program.input_leaves if isinstance(leaf.value, Variable)}
    makers = {variable.name: equation for equation in program.equations for variable in equation.outputs}
    given = set(leaves)  # what depends on an input
    for equation in program.equations:
        if any(variable.name in given for variable in equation.reads):
            given.update(variable.name for variable in equation.outputs)
    lookups = [equation.arguments[:2] for equation in program.equations if equation.operator == "embedding"]
    pending = [ids for table, ids in lookups if table.name not in given]
    tokens: set[str] = set()
    for variable in pending:
        path = list(_way_back(variable, makers, makers.keys() - given))
        if path[-1].name in leaves:
            tokens.update(step.name for step in path)
    return tokens


def _way_back(variable: Variable, makers: Mapping[str, Equation], constant: Collection[str]) -> Iterator[Variable]:
    """A variable, what it was moved from, and so on."""
    yield variable
    while (maker := makers.get(variable.name)) is not None and maker.operator in MOVES_TOKENS:
        reads = maker.reads[:1] if maker.operator in ("index", "index_select", "gather") else maker.reads
        sources = [read for read in reads if read.is_tensor and read.dtype != torch.bool]
        sources = [read for read in sources if read.name not in constant]
        if len(sources) != 1 or sources[0].is_floating:
            return
        variable = sources[0]
        yield variable


def _reference(program: Program) -> Variable | None:
    inputs = (leaf.value for leaf in program.input_leaves if isinstance(leaf.value, Variable))
    tensors = (*program.parameters.values(), *inputs)
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


def _structure_difference(expected: list[str], given: list[str]) -> str:
    missing = [name for name in expected if name not in given]
    extra = [name for name in given if name not in expected]
    if missing:
        return (
            f"params lacks the leaf '{missing[0]}'{_more(missing)}. It needs the leaves that functionalize returned."
            + (near_misses(missing[0], extra))
        )
    if extra:
        return f"params has the leaf '{extra[0]}'{_more(extra)}, which the program never reads. Remove it." + (
            near_misses(extra[0], expected)
        )
    return "params has the right leaves in another kind of container than the one that was traced."


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
