"""Programs, canonical forms and prepared explanations in files."""

from lrpfunc.storage.saving import load, read, save, write

__all__ = ["load", "save"]
