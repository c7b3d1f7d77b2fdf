"""How a small random model of Hugging Face's is described, and what it is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests import transformer_zoo


class Spec(NamedTuple):
    """A configuration and a model by their names in transformers, and what the configuration is given."""

    config: str
    model: str
    keywords: Mapping[str, Any]
    inputs: Mapping[str, Tensor] | None = None  # None: those of the oracle
    fixed: Mapping[str, list] = {}  # integers by which the model decides while it is traced


def random(*shape: int) -> Tensor:
    return torch.from_numpy(transformer_zoo.random_state(str(shape)).standard_normal(shape))


def ids(*shape: int, count: int = transformer_zoo.VOCABULARY) -> Tensor:
    """Ids of tokens, none of them special."""
    return torch.from_numpy(transformer_zoo.random_state(str(shape)).randint(3, count, shape))
