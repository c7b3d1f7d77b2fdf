"""Programs, canonical forms and prepared explanations in files."""

from lrpfunc.storage.saving import load, save

__all__ = ["load", "save"]
