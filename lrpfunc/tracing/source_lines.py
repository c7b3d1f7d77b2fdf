"""Lines of the user's code, for messages and for what an equation says of where it came from."""

from __future__ import annotations

import contextlib
import linecache
import os
import re

import optree
import torch

TORCH = os.path.dirname(torch.__file__) + os.sep
LRPFUNC = os.path.dirname(os.path.dirname(__file__)) + os.sep
INTERNAL = (TORCH, os.path.dirname(optree.__file__) + os.sep, LRPFUNC, contextlib.__file__, "<")


def line_of(node) -> str:
    """The user's line that made a node: the innermost one outside torch."""
    frames = re.findall(r'File "(.*?)", line (\d+)', node.meta.get("stack_trace", ""))
    lines = [(file, int(line)) for file, line in frames if os.path.isabs(file) and not file.startswith(INTERNAL)]
    return source_line(*lines[-1]) if lines else f"operation '{node.name}'"


def source_line(file: str, line: int) -> str:
    """A line of source for messages, with its code where that can be read."""
    code = linecache.getline(file, line).strip()
    return f"{file}:{line} (`{code}`)" if code else f"{file}:{line}"
