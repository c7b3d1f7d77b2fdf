"""Whether a program is well-formed: what it is made of fits together, and its equations make what they declare.

Nothing is computed: equations are evaluated on meta tensors, which have shapes and dtypes and no data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lrpfunc.compat import is_intercepted, outside_transforms
from lrpfunc.errors import ProgramError
from lrpfunc.program.equations import DEVICE, DTYPE, PARAMETER, Equation, Variable
from lrpfunc.program.program import Program
from lrpfunc.program.sizes import function_of, sizes_in

TRACING = "tracing"

# Where open sizes begin to look for a number: for small ones that differ, and for large ones of which all batch sizes
# are the same, and all lengths. A kernel may be wider than a short sequence is long, and sizes that a kernel (and not
# the model) compares are open each for itself, so that an equation has to fail on both.
SMALL, LARGE = 2, 67
TRIED = 512  # numbers, for one that fits conditions


def check(program: Program, before: Program | None = None, who: str = TRACING) -> None:
    """Refuse an ill-formed program.

    In a well-formed one, everything is made before it is read and under a name of its own, all results are made, the
    parameters and inputs have the names that the program takes them by, and each equation makes the outputs that it
    declares: as many, with the same shapes and dtypes. The last is found by evaluating equations without data, which
    is left out while `torch.compile` or another tracer watches, and for an operation that torch cannot evaluate so.

    Args:
        program: what to check.
        before: a well-formed program that this one was made of. Equations that it has as well are not evaluated again.
        who: what made the program, as the subject of the error: `tracing`, or `the pass 'merge_batch_norm'`.

    Errors: `ProgramError`, which names who, the equation, what was needed and what came.

    >>> import dataclasses, lrpfunc, torch
    >>> fmodel, _ = lrpfunc.trace(lambda w, x: (x @ w).relu(), torch.eye(3), torch.ones(2, 3))
    >>> check(fmodel)
    >>> last_only = dataclasses.replace(fmodel, equations=fmodel.equations[1:])
    >>> check(last_only, before=fmodel, who="the pass 'mine'")
    Traceback (most recent call last):
    ...
    lrpfunc.errors.ProgramError: the pass 'mine' made an ill-formed program: equation 'relu' reads 'matmul.0', which \
no equation makes before it. A pass that takes an equation away must rename what reads it (equation.renamed).
    """
    declared = _check_leaves(program, who)
    _check_order(program, declared, who)
    if torch.compiler.is_compiling() or is_intercepted():
        return
    kept = set() if before is None else {id(equation) for equation in before.equations}
    # Grad mode and transforms of whoever calls do not concern stand-ins.
    with outside_transforms(), torch.no_grad():
        _check_results(program, [e for e in program.equations if id(e) not in kept], declared, who)


def _error(who: str, what: str, way_out: str) -> ProgramError:
    if who == TRACING:
        way_out = "This is a mistake of lrpfunc: please report it with the model."
    return ProgramError(f"{who} made an ill-formed program: {what}. {way_out}")


# -- names and order --------------------------------------------------------------------------------------------------


def _check_leaves(program: Program, who: str) -> dict[str, Variable]:
    """The variables of parameters and inputs, by name."""
    declared: dict[str, Variable] = {}
    paths = [".".join(map(str, path)) for path in program.parameter_paths]
    if paths != list(program.parameters):
        raise _error(
            who,
            f"its parameters are called {_listed(program.parameters)}, but have the paths {_listed(paths)}",
            "A pass that changes parameters must end with program.with_parameters(variables, params).",
        )
    for name, variable in program.parameters.items():
        if variable.name != PARAMETER + name:
            raise _error(
                who,
                f"the variable of parameter '{name}' must be called '{PARAMETER}{name}', but is '{variable.name}'",
                "A pass that makes a parameter must name its variable so.",
            )
        declared[variable.name] = variable
    for path, label, variable in program.input_leaves:
        if path[0] not in range(len(program.input_names)):
            raise _error(
                who,
                f"input '{label}' is a leaf of input {path[0]}, but there are {len(program.input_names)} inputs",
                "A pass must leave input_leaves and input_names as they are, or change both.",
            )
        if isinstance(variable, Variable):
            _add(declared, variable, f"input '{label}'", who)
    return declared


def _check_order(program: Program, declared: dict[str, Variable], who: str) -> None:
    """Check what is read and add what equations make to what is declared."""
    names: set[str] = set()
    for equation in program.equations:
        if equation.name in names:
            raise _error(
                who, f"two equations are called '{equation.name}'", "A pass must give new equations new names."
            )
        names.add(equation.name)
        for variable in equation.reads:
            if variable.name not in (DEVICE, DTYPE):
                _check_read(declared, variable, f"equation '{equation.name}' reads", "no equation makes before it", who)
        if not equation.outputs:
            raise _error(who, f"equation '{equation.name}' has no output", "A pass must declare what a function makes.")
        for variable in equation.outputs:
            _add(declared, variable, f"equation '{equation.name}'", who)
    for leaf in program.output_leaves:
        if isinstance(leaf, Variable):
            _check_read(declared, leaf, "the program returns", "no equation makes", who)


def _add(declared: dict[str, Variable], variable: Variable, maker: str, who: str) -> None:
    if variable.name in declared or variable.name in (DEVICE, DTYPE):
        raise _error(
            who,
            f"{maker} makes '{variable.name}', a name that another variable has",
            "A pass must give new variables new names.",
        )
    declared[variable.name] = variable


def _check_read(declared: Mapping[str, Variable], read: Variable, reader: str, lacking: str, who: str) -> None:
    made = declared.get(read.name)
    if made is None:
        raise _error(
            who,
            f"{reader} '{read.name}', which {lacking}",
            "A pass that takes an equation away must rename what reads it (equation.renamed).",
        )
    if made is not read and (made.shape, made.dtype) != (read.shape, read.dtype):
        raise _error(
            who,
            f"{reader} '{read.name}' as {_described(read)}, but it is made as {_described(made)}",
            "A pass that changes the shape or dtype of a variable must rename what reads it (equation.renamed).",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"


def _described(variable: Variable) -> str:
    return f"{variable} {variable.dtype}" if variable.is_tensor else "a size"


# -- shapes and dtypes ------------------------------------------------------------------------------------------------


class _Unknown(Exception):
    """A value that cannot be had without data."""


class _StandIns(Mapping):
    """Values by the names of variables, made when asked for: meta tensors as declared, and sizes as computed."""

    def __init__(self, program: Program, declared: Mapping[str, Variable], sizes: Mapping[str, int]):
        self.declared, self.producers, self.sizes = declared, program.producers, sizes
        reference = program.reference
        dtype = reference.dtype if reference is not None else torch.get_default_dtype()
        self.made: dict[str, Any] = {DEVICE: torch.device("meta"), DTYPE: dtype}
        self.agreeing: set[tuple] = set()  # what agreed already, but for the names of its variables
        self.counted: dict[str, int] = {}  # expressions of open sizes

    def __getitem__(self, name: str):
        if name not in self.made:
            variable = self.declared[name]
            if variable.is_tensor:
                self.made[name] = torch.empty(self.shape(variable), dtype=variable.dtype, device="meta")
            else:
                self.made[name] = self._computed(variable)
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self.declared, DEVICE, DTYPE))

    def __len__(self) -> int:
        return len(self.declared) + 2

    def shape(self, variable: Variable) -> tuple[int, ...]:
        return tuple(n if isinstance(n, int) else self._count(n) for n in variable.shape)

    def _computed(self, variable: Variable):
        maker = self.producers.get(variable.name)  # none for an input that is a size
        if maker is None:
            raise _Unknown
        try:
            return dict(zip((v.name for v in maker.outputs), maker.evaluate(self), strict=True))[variable.name]
        except Exception:  # such as the value of an element; a wrong number of outputs is found at the maker itself
            raise _Unknown from None

    def _count(self, expression: str) -> int:
        """The value of a size as tracing writes it: `batch`, `4*batch`, `((length - 1)//2) + 1`."""
        if expression not in self.counted:
            try:
                number = function_of(expression)(self.sizes)
            except (ValueError, LookupError, ArithmeticError):  # other functions, or sizes that only the data decide
                raise _Unknown from None
            if int(number) != number or number < 0:
                raise _Unknown
            self.counted[expression] = int(number)
        return self.counted[expression]


def some_sizes(program: Program) -> dict[str, int] | None:
    """Small numbers for the open sizes of a program, no two alike; None if none are found for which conditions hold."""
    variables = [leaf.value for leaf in program.input_leaves if isinstance(leaf.value, Variable)]
    return _numbers(program, [*program.parameters.values(), *variables], SMALL)


def _check_results(program: Program, equations: list[Equation], declared: Mapping[str, Variable], who: str) -> None:
    numbers = _numbers(program, declared.values(), SMALL)
    if numbers is None:
        return
    small = _StandIns(program, declared, numbers)
    large: _StandIns | None = None
    for equation in equations:
        failure = _failure(equation, small)
        if failure and small.sizes:
            numbers = _numbers(program, declared.values(), LARGE, alike=True)
            large = large or (_StandIns(program, declared, numbers) if numbers is not None else small)
            failure = _failure(equation, large) and failure
        if failure:
            raise _error(
                who,
                f"equation '{equation.name}' ({equation.operator}) {failure}",
                "A pass must declare as outputs what the function makes of the arguments.",
            )


def _numbers(program: Program, variables: Iterable[Variable], least: int, alike: bool = False) -> dict[str, int] | None:
    """A number for each open size, of none that is fixed, as far as the ranges allow; `alike`: the same for each word
    (`batch`, `batch2`), else no two. None if no numbers are found for which the conditions of sizes hold."""
    taken = {n for variable in variables for n in variable.shape if isinstance(n, int)}
    shapes = [leaf.value.shape for leaf in program.input_leaves if isinstance(leaf.value, Variable)]
    names = dict.fromkeys(n for shape in shapes for n in shape if isinstance(n, str) and n.isidentifier())
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rstrip("0123456789") if alike else name, []).append(name)
    numbers: dict[str, int] = {}
    for group in groups.values():
        ranges = [program.size_ranges.get(name, (0, None)) for name in group]
        number = max(least, *(low for low, _ in ranges))
        while number in taken:
            number += 1
        number = min([number, *(high for _, high in ranges if high is not None)])
        numbers.update(dict.fromkeys(group, number))
        taken.add(number)
    return _conditioned(program, numbers, alike)


def _conditioned(program: Program, numbers: dict[str, int], alike: bool) -> dict[str, int] | None:
    """Numbers for which conditions of sizes hold as well, if some are found: n, 2 n, 3 n, or alike."""
    if not program.size_conditions:
        return numbers
    names = dict.fromkeys(name for condition in program.size_conditions for name in sizes_in(condition))
    start = max(numbers[name] for name in names)
    for n in range(start, start + TRIED):
        tried = {**numbers, **{name: n if alike else n * i for i, name in enumerate(names, 1)}}
        bounds = [(tried[name], program.size_ranges.get(name, (0, None))[1]) for name in names]
        if all(high is None or n <= high for n, high in bounds) and all(holds(tried) for holds in program.conditions):
            return tried
    return None


def _failure(equation: Equation, values: _StandIns) -> str | None:
    """What is wrong with an equation's outputs; None if they are as declared, or nobody can tell."""
    try:
        key = _key(equation, values)
        if key in values.agreeing:
            return None
        results = equation.evaluate(values)
    except (_Unknown, NotImplementedError):
        return None
    except Exception as error:
        if any(word in str(error) for word in ("meta", "fake impl")):  # the operation, or a literal tensor, needs data
            return None
        read = " and ".join(_described(variable) for variable in equation.reads if variable.is_tensor) or "nothing"
        return f"cannot be computed of {read}{_where(values)}: {type(error).__name__}: {str(error).splitlines()[0]}"
    if len(results) != len(equation.outputs):
        return f"must make the {len(equation.outputs)} outputs that it declares, but makes {len(results)}"
    for variable, result in zip(equation.outputs, results, strict=True):
        if not _agrees(variable, result, values):
            made = f"{tuple(result.shape)} {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
            return f"must make {_described(variable)} as it declares, but makes {made}{_where(values)}"
    if key is not None:
        values.agreeing.add(key)
    return None


def _key(equation: Equation, values: _StandIns) -> tuple | None:
    """Equal for equations that make the same of the same; None where an argument has no hash.

    Networks repeat themselves, and a meta tensor takes milliseconds to go through what torch has written in Python.
    """

    def known(template):
        if isinstance(template, Variable):
            return (template.shape, template.dtype) if template.is_tensor else values[template.name]
        if isinstance(template, (list, tuple)):
            return type(template), *map(known, template)
        return type(template), template

    read = known(equation.arguments), known(tuple(equation.keywords.items()))
    key = equation.function, read, tuple((variable.shape, variable.dtype) for variable in equation.outputs)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _agrees(variable: Variable, result, values: _StandIns) -> bool:
    if not (variable.is_tensor and isinstance(result, Tensor)):
        return not variable.is_tensor and not isinstance(result, Tensor)
    try:
        shape = values.shape(variable)
    except _Unknown:
        return result.dtype == variable.dtype and result.dim() == len(variable.shape)
    return result.dtype == variable.dtype and tuple(result.shape) == shape


def _where(values: _StandIns) -> str:
    return " where " + " and ".join(f"{name} is {n}" for name, n in values.sizes.items()) if values.sizes else ""
