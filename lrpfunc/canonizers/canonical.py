"""The canonical form: the same function in a form that LRP can explain, as a new program and new parameters."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lrpfunc.canonizers.chains import Pass, chain
from lrpfunc.canonizers.draft import Parameters, check_flat
from lrpfunc.canonizers.passes import DEFAULT
from lrpfunc.canonizers.report import Report, report_on
from lrpfunc.program import Program


class Canonical(NamedTuple):
    """The result of `canonize`.

    Args:
        fmodel: the program in canonical form.
        params: its parameters, a flat dict {name: tensor}.
        restore: `restore(params)` turns canonical parameters back into the original ones.
        report: what became of each batch norm and of each sum of branches.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).eval()
    >>> fmodel, params, restore, report = lrpfunc.canonize(*lrpfunc.functionalize(model, torch.ones(1, 2)))
    >>> torch.equal(restore(params)["0.weight"], model[0].weight)
    True
    """

    fmodel: Program
    params: Parameters
    restore: Callable[[Parameters], Parameters]
    report: Report


def canonize(fmodel: Program, params: Parameters, passes: Pass | Sequence[Pass] | None = None) -> Canonical:
    """The canonical form: batch norms folded into layers, summed branches into one, the same function, nothing mutated.

    Args:
        fmodel: a program, as `functionalize` and `trace` return it.
        params: its parameters, a flat dict {name: tensor}.
        passes: what to do, a pass or a list of them. By default `merge_batch_norm`, `merge_parallel`,
            `merge_batch_norm_right` and `threshold_relu`, in this order, until nothing changes any more.

    Returns: the canonical `fmodel` and `params`; `restore` and `report`. `restore(params)` gives the original
    parameters bit for bit: what a pass changed comes from the original, everything else from the parameters that are
    given to it. `report` says what became of each batch norm and of each sum of branches. The canonical parameters
    alone, given to the original `fmodel`, give the same function wherever only `merge_batch_norm` was needed and no
    weight is shared or computed.

    Errors: `ParameterError` for parameters that do not fit; `CanonizeError` if they are no flat dict, for passes that
    are none or whose result is ill-formed, and if a batch norm's variance + eps is not positive or its scale or shift
    not finite (which nobody can see inside vmap and torch.compile).

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.ReLU()).eval()
    >>> canonical = lrpfunc.canonize(*lrpfunc.functionalize(model, torch.ones(1, 2)))
    >>> print(canonical.report)
    batch norm  became  where
    1           merged  0
    >>> x = torch.randn(4, 2)
    >>> torch.testing.assert_close(canonical.fmodel(canonical.params, x), model(x))
    """
    check_flat(fmodel, params)
    given = DEFAULT if passes is None else passes
    program, new = chain(*(given if isinstance(given, (list, tuple)) else (given,)))(fmodel, params)
    originals = {name: params[name] for name in params if new[name] is not params[name]}

    restore = functools.partial(restored, program, originals, tuple(params))
    return Canonical(program, new, restore, report_on(fmodel, program))


def restored(program: Program, originals: Parameters, names: Sequence[str], canonical_params: Parameters) -> Parameters:
    """The original parameters: what passes changed from `originals`, everything else from what is given."""
    program.flatten_params(canonical_params)
    return {name: originals.get(name, canonical_params[name]) for name in names}
