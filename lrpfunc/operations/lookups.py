"""Where the axes of ids are in what is looked up by them: the first of them, and how many there are.

Each gets an `Operation` and the number of its output's dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lrpfunc.operations.row import Slot

if TYPE_CHECKING:
    from lrpfunc.operations.operation import Operation


def of_embedding(operation: Operation, dimensions: int) -> tuple[int, int]:
    """In front of the rows."""
    return 0, len(operation.shapes[0])


def of_all(operation: Operation, dimensions: int) -> tuple[int, int]:
    """One element for each id."""
    return 0, dimensions


def of_index_select(operation: Operation, dimensions: int) -> tuple[int, int]:
    """The one axis along which rows are picked."""
    return operation.arguments[1] % dimensions, 1


def of_index(operation: Operation, dimensions: int) -> tuple[int, int]:
    """Of indices that stand side by side their axes take their place, else they come first."""
    indices = operation.arguments[1]
    places = [place for place, index in enumerate(indices) if index is not None]
    shapes = iter(operation.shapes)
    of_each = [next(shapes) if isinstance(indices[place], Slot) else indices[place].shape for place in places]
    is_together = places[-1] - places[0] == len(places) - 1
    return places[0] if is_together else 0, len(torch.broadcast_shapes(*of_each))
