"""Passes over a new program: frozen batch norms, names, ranges of sizes, what follows the call.

Each is a function of a program. None of them changes what it computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch

from lrpfunc.errors import TraceError
from lrpfunc.operations import facts, is_active, row_of
from lrpfunc.program import (
    DEVICE,
    DTYPE,
    PARAMETER,
    Equation,
    Program,
    Variable,
    frozen_batch_norm,
    size,
    variables_in,
)
from lrpfunc.tracing.biases import with_biases
from lrpfunc.tracing.graphs import Origin, is_random, random_message
from lrpfunc.tracing.idioms import with_idioms
from lrpfunc.tracing.sizes import Ranges


def tidied(program: Program, origins: Mapping[str, Origin]) -> Program:
    """A new program after all passes. Errors: `TraceError` where it draws random numbers."""
    program = program.replace(equations=_fuse_frozen_batch_norms(program.replace()))
    program, renamed = with_biases(with_idioms(program))
    origins = {**origins, **{new: origins[old] for new, old in renamed.items()}}
    program = program.replace(equations=_name(program, origins))
    program = replace(program, size_ranges=_within_tables(program))
    _refuse_random(program)
    return program.replace(equations=_follow_call(program))


# -- names ------------------------------------------------------------------------------------------------------------


def _name(program: Program, origins: Mapping[str, Origin]) -> tuple[Equation, ...]:
    """Name each equation after the module that made it if it is that call's only one, else after the weight it reads.

    A module called twice gives `name` and `name:1`; anything else is called after its module and operation.
    """
    rows = [(e, origins[e.outputs[0].name], is_active(program, e)) for e in program.equations]
    results = Counter(origin.call for _, origin, active in rows if active)
    parents = {parent for _, origin, active in rows if active for parent in _parents(origin.path)}
    names, layers = [], Counter[str]()
    for equation, origin, active in rows:
        is_whole = active and origin.path and origin.path not in parents and results[origin.call] == 1
        layer = origin.path if is_whole else _parameter_name(equation)
        layers[layer or ""] += 1
        names.append(layer or ".".join(filter(None, (origin.path, equation.operator.removesuffix("_with_bias")))))
    numbers = _numbers(origin for _, origin, _ in rows)
    used: Counter[str] = Counter()
    named = []
    for (equation, origin, _), name in zip(rows, names, strict=True):
        number = used[name]
        used[name] += 1
        calls = {path: numbers[path, call] for path, call in origin.stack if (path, call) in numbers}
        if layers[name] > 1:
            calls[name] = number
        named.append(replace(equation, name=f"{name}:{number}" if number else name, calls=calls))
    return tuple(named)


def _numbers(origins: Iterable[Origin]) -> dict[tuple[str, str], int]:
    """The numbers of the calls of those modules that are called more than once, by path and call."""
    calls: dict[str, dict[str, int]] = {}
    for origin in origins:
        for path, call in origin.stack:
            known = calls.setdefault(path, {})
            known.setdefault(call, len(known))
    return {(path, call): n for path, known in calls.items() if len(known) > 1 for call, n in known.items()}


def _parents(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _parameter_name(equation: Equation) -> str | None:
    positions = row_of(equation).positions
    weights = [] if positions is None else list(variables_in(equation.arguments[: positions.weight + 1]))
    leaves = [v.name.removeprefix(PARAMETER) for v in weights if v.name.startswith(PARAMETER)]
    return leaves[-1].removesuffix(".weight") if leaves and leaves[-1] != "weight" else None


# -- what a program must not or need not hold -------------------------------------------------------------------------


def _refuse_random(program: Program) -> None:
    for equation in program.equations:
        if is_random(equation.function) and row_of(equation).deterministic is None:
            raise TraceError(random_message(equation.operator, equation.source))


def _follow_call(program: Program) -> tuple[Equation, ...]:
    """The equations with those of the call in place of the device and dtype that were baked into the trace."""
    device, dtype = Variable(DEVICE), Variable(DTYPE)
    traced = program.reference.dtype if program.reference is not None and program.reference.is_floating else None

    def follow(template):
        if isinstance(template, (list, tuple)):
            return type(template)([follow(item) for item in template])
        if isinstance(template, torch.device):
            return device
        return dtype if isinstance(template, torch.dtype) and template == traced else template

    return tuple(
        replace(e, arguments=follow(e.arguments), keywords={key: follow(value) for key, value in e.keywords.items()})
        for e in program.equations
    )


# -- ranges of sizes --------------------------------------------------------------------------------------------------


def _within_tables(program: Program) -> Ranges:
    """The ranges of sizes, with no more positions than a model has rows for: of a table of them, or of their ids."""
    ranges = dict(program.size_ranges)
    for equation in program.equations:
        table = equation.arguments[0] if equation.arguments else None
        if not isinstance(table, Variable) or not table.name.startswith(PARAMETER):
            continue
        if equation.operator == "slice" and len(equation.arguments) > 3:
            _, axis, start, end = equation.arguments[:4]
            name, rows = _size_named(program, end) if start in (None, 0) else None, table.shape[axis]
        elif equation.operator == "embedding":
            name, first = _counted(program, equation.arguments[1])
            rows = int(table.shape[0]) - first
        else:
            continue
        if name is not None:
            low, high = ranges.get(name, (0, None))
            ranges[name] = (low, min(int(rows), high or int(rows)))
    return ranges


def _counted(program: Program, ids: Variable) -> tuple[str | None, int]:
    """The size that ids count to, and from where: 0, 1, 2, ...; None if they are something else."""
    first, maker = 0, program.producers.get(ids.name)
    while maker is not None and (maker.operator == "add" or row_of(maker).keeps_values):
        if maker.operator == "add":
            if not isinstance(maker.arguments[1], int):
                return None, 0
            first += maker.arguments[1]
        maker = program.producers.get(maker.arguments[0].name)
    if maker is None or maker.operator != "arange" or len(maker.arguments) != 1:
        return None, 0
    return _size_named(program, maker.arguments[0]), first


def _size_named(program: Program, value) -> str | None:
    """The name of an open size, if that is what a value is."""
    maker = program.producers.get(value.name) if isinstance(value, Variable) else None
    if maker is None or maker.function is not size:
        return None
    name = maker.arguments[0].shape[maker.arguments[1]]
    return name if isinstance(name, str) and name.isidentifier() else None


# -- frozen batch norms -----------------------------------------------------------------------------------------------


def _fuse_frozen_batch_norms(program: Program) -> tuple[Equation, ...]:
    """Make one of `x * s + (b - m * s)` with `s = w * rsqrt(v + eps)` over parameters, as FrozenBatchNorm2d does it."""
    return tuple(
        replace(equation, function=frozen_batch_norm, arguments=arguments, keywords={}) if arguments else equation
        for equation in program.equations
        for arguments in [_match_frozen_batch_norm(program, equation)]
    )


def _match_frozen_batch_norm(program: Program, equation: Equation) -> tuple | None:
    """The arguments of a frozen batch norm whose last equation this is."""

    def made_by(value, operator: str) -> Equation | None:
        maker = program.producers.get(value.name) if isinstance(value, Variable) else None
        return maker if maker is not None and maker.operator == operator else None

    def parameter(value) -> Variable | None:
        """The one-dimensional parameter under a reshape that makes one value of it for each channel of the result."""
        maker = made_by(value, "reshape")
        channels = equation.outputs[0].shape[1:2]
        if maker is None or maker.outputs[0].shape != (1, *channels, *[1] * (len(equation.outputs[0].shape) - 2)):
            return None
        value = maker.arguments[0]
        is_leaf = isinstance(value, Variable) and value.name.startswith(PARAMETER) and len(value.shape) == 1
        return value if is_leaf else None

    if equation.operator != "add" or equation.keywords:
        return None
    product, shift = made_by(equation.arguments[0], "mul"), made_by(equation.arguments[1], "sub")
    if product is None or shift is None or product.arguments[0].name not in facts(program).active:
        return None
    x, scale = product.arguments
    if x.shape != equation.outputs[0].shape:
        return None
    scaled, shifted = made_by(scale, "mul"), made_by(shift.arguments[1], "mul")
    if scaled is None or shifted is None or shifted.arguments[1] is not scale:
        return None
    root = made_by(scaled.arguments[1], "rsqrt")
    total = made_by(root.arguments[0], "add") if root is not None else None
    if total is None:
        return None
    leaves = [parameter(v) for v in (scaled.arguments[0], shift.arguments[0], shifted.arguments[0], total.arguments[0])]
    eps = total.arguments[1]
    return None if None in leaves or not isinstance(eps, float) else (x, *leaves, eps)
