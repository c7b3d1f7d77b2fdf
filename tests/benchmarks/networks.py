"""The transformers that are measured, in lrpfunc's environment and in LXT's: neither of them is imported here."""

import contextlib
from collections.abc import Callable, Iterator
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
    "llama_8b": Usual(8192, 1),
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
    "llama_8b": {  # of the shape of Llama 3, in bfloat16, and for a GPU
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "tiny_llama": {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 10,
    },
}


LARGE = {"llama_8b": torch.bfloat16}
CPU = torch.device("cpu")


def build(name: str, size: int, device: torch.device = CPU) -> nn.Module:
    """With random parameters, none of them all zero, that need no gradients; in evaluation mode."""
    if name in LARGE:  # which has its first parameters, small ones, where it is measured
        with _default_dtype(LARGE[name]), device:
            return _llama(LLAMAS[name]).eval().requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomize(_llama(LLAMAS[name]) if name in LLAMAS else _vit(name, size))
    return model.requires_grad_(False).to(device)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


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
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    return {key: x.to(LARGE.get(name, x.dtype))}


def gradient(model: Callable[..., Any], inputs: dict[str, Tensor]) -> Tensor:
    """Of each sample's logit with respect to its input: of a token at the last position, or of a class."""
    ((key, x),) = inputs.items()
    x = x.detach().requires_grad_()
    output = model(**{key: x})
    logits = output[:, CLASS] if isinstance(output, Tensor) else output.logits[:, -1, TOKEN]
    return torch.autograd.grad(logits.sum(), x)[0]
