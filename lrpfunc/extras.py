"""What not every user needs, and so comes with an extra: `pip install 'lrpfunc[cli]'`."""

import importlib
from importlib.util import find_spec
from types import ModuleType

from lrpfunc.errors import MissingExtraError


def extra(module: str, name: str, purpose: str) -> ModuleType:
    """A module that the extra `name` brings, imported now. Errors: as `need` has them."""
    need(module, name, purpose)
    return importlib.import_module(module)


def need(module: str, name: str, purpose: str) -> None:
    """Ask that the extra `name` is there; nothing is imported.

    Errors: `MissingExtraError` where it is not installed: what it is needed for, and the command that installs it.
    """
    if not is_installed(module):
        package = module.partition(".")[0]
        raise MissingExtraError(f"{purpose} needs {package}: pip install 'lrpfunc[{name}]'")


def is_installed(module: str) -> bool:
    """Whether the package of a module is there; it is not imported."""
    return find_spec(module.partition(".")[0]) is not None
