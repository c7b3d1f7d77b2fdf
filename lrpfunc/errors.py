"""The errors of lrpfunc: each names who, what was needed, what came, and the way out."""

import difflib
from collections.abc import Iterable


class LrpError(Exception):
    """The parent of every error that lrpfunc raises on purpose.

    >>> import lrpfunc, torch
    >>> fmodel, params = lrpfunc.functionalize(torch.nn.Linear(2, 3), torch.ones(1, 2))
    >>> try:
    ...     lrpfunc.attribute(fmodel, params, torch.ones(1, 2), lrpfunc.rules.epsilon(), target=7)
    ... except lrpfunc.LrpError as error:
    ...     type(error).__name__
    'TargetError'
    """


class TraceError(LrpError):
    """A model or function cannot be turned into a program."""


class ProgramError(LrpError):
    """A program is ill-formed: something is read before it is made, named twice, or not what its equation declares."""


class ParameterError(LrpError):
    """A parameter pytree does not fit the program: leaves missing, left over, or of a wrong shape."""


class InputError(LrpError):
    """An input does not fit the program: wrong structure, rank, size, dtype or device."""


class TargetError(LrpError):
    """A target does not select one relevance seed per sample."""


class RuleError(LrpError):
    """A rule or composite is ill-formed, matches nothing, or cannot handle an equation."""


class CanonizeError(LrpError):
    """A canonization pass cannot be applied."""


class ModelError(LrpError):
    """A model or composite cannot be found or made by its name, or weights do not fit it."""


class FileError(LrpError):
    """A file or folder is missing, unreadable, in the way, or does not hold what is needed."""


class VersionError(LrpError, ImportError):
    """Python or torch is older than what lrpfunc runs on."""


class MissingExtraError(LrpError):
    """A package that only some users need is not installed."""


def near_misses(name: str, names: Iterable[str]) -> str:
    """The sentence "Did you mean ...?" for a misspelt name, empty if nothing is near."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
