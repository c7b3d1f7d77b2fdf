"""Passes one after another, and the one place where the result of each is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lrpfunc.canonizers.draft import Parameters, check_flat
from lrpfunc.errors import CanonizeError, LrpError
from lrpfunc.program import PARAMETER, Program, Variable, check, variables_in

Pass = Callable[[Program, Parameters], tuple[Program, Parameters]]


def chain(*passes: Pass) -> Pass:
    """Passes one after another, as one pass.

    Args:
        passes: functions `(program, params) -> (program, params)`, in the order in which they are called.

    Errors: `CanonizeError`, when the chain is called, for what is no pass and for a pass whose result is ill-formed.

    >>> import lrpfunc, torch
    >>> from lrpfunc import canonizers
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.ReLU()).eval()
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 2))
    >>> smooth = canonizers.replace("2", lambda params, x: torch.nn.functional.softplus(x))
    >>> program, params = canonizers.chain(canonizers.merge_batch_norm, smooth)(fmodel, params)
    >>> [equation.operator for equation in program.equations]
    ['linear', 'softplus']
    """

    def chained(program: Program, params: Parameters) -> tuple[Program, Parameters]:
        for one in passes:
            program, params = apply(one, program, params)
        return program, params

    return chained


def settle(*passes: Pass) -> Pass:
    """Passes as one pass that begins again with the first after each that changed something: it may have made room."""

    def settled(program: Program, params: Parameters) -> tuple[Program, Parameters]:
        for one in passes:
            changed, new = apply(one, program, params)
            if changed is not program:
                return settled(changed, new)
        return program, params

    return settled


def apply(one: Pass, program: Program, params: Parameters) -> tuple[Program, Parameters]:
    """What a pass makes of a program, checked. Errors: `CanonizeError` and `ProgramError`, which name the pass."""
    if not callable(one):
        raise CanonizeError(
            f"a pass is a function (program, params) -> (program, params), but got {type(one).__name__}. "
            "For several passes use canonizers.chain(first, second)."
        )
    name = getattr(one, "__name__", type(one).__name__)
    made = one(program, params)
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Program)):
        raise CanonizeError(
            f"the pass '{name}' must return (program, params), but returned {type(made).__name__}. "
            "If it is made by a function, call that first: canonizers.replace(name, function)."
        )
    if made[0] is not program or made[1] is not params:
        _check(name, params, *made)
        check(made[0], before=program, who=f"the pass '{name}'")
    return made


def _check(name: str, before: Parameters, program: Program, params: Parameters) -> None:
    """Refuse an ill-formed result here, where the pass that made it is known, and not when it is evaluated."""
    try:
        check_flat(program, params)
    except LrpError as error:
        raise CanonizeError(
            f"the pass '{name}' returned parameters that do not fit the program it returned: {error}"
        ) from error
    if missing := before.keys() - params.keys():
        raise CanonizeError(f"the pass '{name}' dropped the leaf '{min(missing)}': a pass may only add leaves.")
    _check_reads(name, program)


def _check_reads(name: str, program: Program) -> None:
    """Each leaf that equations or the output read is declared, in the shape in which they read it."""
    declared: Mapping[str, Variable] = {variable.name: variable for variable in program.parameters.values()}
    reads = [variable for equation in program.equations for variable in equation.reads]
    for variable in (*reads, *variables_in(program.output_leaves)):
        if variable.name.startswith(PARAMETER):
            leaf = declared.get(variable.name)
            if leaf is None or leaf.shape != variable.shape:
                has = "no such leaf" if leaf is None else f"one of shape {leaf}"
                raise CanonizeError(
                    f"the pass '{name}' returned a program that reads the leaf "
                    f"'{variable.name.removeprefix(PARAMETER)}' of shape {variable}, but its parameters have {has}. "
                    "program.with_parameters(variables, params) declares leaves."
                )
