"""The transformers that are measured, in lrpfunc's environment and in LXT's: neither of them is imported here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.helpers import randomize

TOKEN, CLASS = 3, 1  # whose logits are explained


class Usual(NamedTuple):
    """The size (of images, or tokens) and the batch that a network is measured with, unless others are asked for."""

    size: int
    batch: int


USUAL = {
    "vit_b_16": Usual(224, 8),
    "llama": Usual(256, 4),
    "small_llama": Usual(512, 1),
    "tiny_vit": Usual(16, 2),
    "tiny_llama": Usual(6, 2),
}

TINY_VIT = {"patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16, "num_classes": 4}
LLAMAS: dict[str, dict[str, int]] = {
    "llama": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "vocab_size": 1000,
    },
    "small_llama": {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "vocab_size": 1000,
    },
    "tiny_llama": {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 10,
    },
}


def build(name: str, size: int) -> nn.Module:
    """With random parameters, none of them all zero, that need no gradients; in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize(_llama(LLAMAS[name]) if name in LLAMAS else _vit(name, size)).requires_grad_(False)


def _llama(sizes: dict[str, int]) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2, use_cache=False))


def _vit(name: str, size: int) -> nn.Module:
    from torchvision import models

    if name == "tiny_vit":
        return models.VisionTransformer(image_size=size, **TINY_VIT)
    return models.get_model(name, weights=None, image_size=size)


def inputs(name: str, size: int, batch: int) -> dict[str, Tensor]:
    """Embeddings of so many tokens, or images, by the name of the model's argument."""
    key, shape = ("inputs_embeds", (size, LLAMAS[name]["hidden_size"])) if name in LLAMAS else ("x", (3, size, size))
    return {key: torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))}


def gradient(model: Callable[..., Any], inputs: dict[str, Tensor]) -> Tensor:
    """Of each sample's logit with respect to its input: of a token at the last position, or of a class."""
    ((key, x),) = inputs.items()
    x = x.detach().requires_grad_()
    output = model(**{key: x})
    logits = output[:, CLASS] if isinstance(output, Tensor) else output.logits[:, -1, TOKEN]
    return torch.autograd.grad(logits.sum(), x)[0]
