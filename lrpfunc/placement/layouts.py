"""How others pack weights: torchao and bitsandbytes. None of them is imported."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.errors import ParameterError, near_misses
from lrpfunc.program import DTYPE, Variable, dequantized, looked_up, unpacked

STATE = ".quant_state.bitsandbytes__"
OF_THE_MODEL = Variable(DTYPE)  # scales are float32, whatever the model is


class Layout(NamedTuple):
    """What becomes of a parameter: its leaves, and the function of them and of the rest that makes it; None: itself."""

    leaves: dict[str, Tensor]
    function: Callable | None = None
    rest: tuple = ()


def layout(name: str, params: Mapping[str, Tensor], shape: tuple) -> Layout:
    """How a parameter is packed among others. Errors: `ParameterError`."""
    if name not in params:
        raise ParameterError(f"params lacks the leaf '{name}'.{near_misses(name, params)}")
    leaf = params[name]
    if {f"{name}.absmax", f"{name}.quant_map"} <= params.keys():
        return _four_bits(name, params, shape)
    scale = params.get(f"{name.rpartition('.')[0]}.SCB".lstrip("."))
    if leaf.dtype == torch.int8 and scale is not None:
        _check_rows(name, params)
        leaves = {f"{name}.int8": leaf, f"{name}.scale": scale[:, None] / 127}
        return Layout(leaves, unpacked, (8, shape, OF_THE_MODEL))
    if type(leaf).dequantize is not Tensor.dequantize:
        return Layout({name: leaf}, dequantized)
    if tuple(leaf.shape) != shape:
        raise ParameterError(
            f"'{name}' must have shape {shape}, but has {tuple(leaf.shape)}, and is packed in no way that is known: "
            "tensors of torchao, int8 with SCB, or 4 bits with absmax and quant_map, as bitsandbytes has them."
        )
    return Layout({name: leaf})


def _four_bits(name: str, params: Mapping[str, Tensor], shape: tuple) -> Layout:
    """Blocks with a scale each, which may be packed itself: a place in a table, a scale and an offset."""
    scale, table = params[f"{name}.absmax"], params[f"{name}.quant_map"]
    found = next((leaf for key, leaf in params.items() if key.startswith(name + STATE)), None)
    if found is None:
        raise ParameterError(f"params lacks '{name}{STATE}...', which says how '{name}' is packed.")
    state = json.loads(bytes(found.tolist()))
    block = state["blocksize"]
    if f"{name}.nested_absmax" in params:
        outer = params[f"{name}.nested_absmax"].repeat_interleave(state["nested_blocksize"])[: len(scale)]
        scale = params[f"{name}.nested_quant_map"][scale.long()] * outer + state["nested_offset"]
    count, needed = math.prod(shape), 2 * params[name].numel()
    if tuple(state["shape"]) != shape or needed - count not in (0, 1) or len(scale) != -(-count // block):
        raise ParameterError(
            f"'{name}' must have shape {shape}, but {len(scale)} blocks of {block} with {needed} numbers of 4 bits are "
            f"packed, of shape {tuple(state['shape'])}."
        )
    leaves = {f"{name}.int4": params[name], f"{name}.scale": scale, f"{name}.table": table}
    return Layout(leaves, looked_up, (block, shape, OF_THE_MODEL))


def _check_rows(name: str, params: Mapping[str, Tensor]) -> None:
    """Old versions of bitsandbytes wrote numbers in the order of a GPU's tiles. Errors: `ParameterError`."""
    order = params.get(f"{name.rpartition('.')[0]}.weight_format".lstrip("."))
    if order is not None and order.item() != 0:
        raise ParameterError(
            f"'{name}' is not packed row by row, but in the order {order.item()} of an old bitsandbytes: load and save "
            "the model with a new one."
        )
