"""Layer-wise relevance propagation for PyTorch as pure functions.

A model is a pure function, an explanation is that function's custom vector-Jacobian product:

    relevance = lrpfunc.relevance(model, x)                 # all in one call; or step by step:

    fmodel, params = lrpfunc.functionalize(model, x)        # a program and a flat dict of its parameters
    fmodel, params, restore, report = lrpfunc.canonize(fmodel, params)
    relevance = lrpfunc.attribute(fmodel, params, x, lrpfunc.composites.epsilon_plus_flat())

Nothing is hooked, patched or mutated, so `vmap`, `grad`, `jvp` and `torch.compile` work on an explanation as they do on
any other function of tensors. The folders are the architecture: program, operations, tracing, canonizers, placement,
rules, composites, attribution, heatmaps, text, pictures; each has a README.
"""

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from lrpfunc.errors import VersionError, near_misses

if sys.version_info < (3, 11):  # noqa: UP036, as a copy of the sources may be run without an installer
    raise VersionError(f"lrpfunc needs Python 3.11 or newer, but this is {sys.version.split()[0]}.")

if TYPE_CHECKING:
    from lrpfunc.contents import *  # noqa: F403

__version__ = "0.6.0"


def __getattr__(name: str) -> Any:
    """A folder, or a public name. The first name that is asked for brings all of them.

    They need torch, and `lrpfunc --help` does without.
    """
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'lrpfunc' has no attribute '{name}'")
    if importlib.util.find_spec(f"lrpfunc.{name}") is not None:
        return importlib.import_module(f"lrpfunc.{name}")
    contents = importlib.import_module("lrpfunc.contents")
    globals().update({public: getattr(contents, public) for public in contents.__all__}, __all__=contents.__all__)
    if name not in globals():
        raise AttributeError(f"module 'lrpfunc' has no attribute '{name}'.{near_misses(name, contents.__all__)}")
    return globals()[name]


def __dir__() -> list[str]:
    return [*__getattr__("__all__"), "__version__"]
