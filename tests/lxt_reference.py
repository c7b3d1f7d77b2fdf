"""What LXT says of the small transformers: writes tests/lxt_reference.safetensors, which the parity test reads.

LXT wants older libraries than lrpfunc does, and it patches classes for good, so it has an environment of its own,
and here each explanation a process of its own. From the repository's root:

    python -m venv lxt
    lxt/bin/pip install lxt==2.1 transformers==4.57.6 torchvision zennit==0.5.1
    lxt/bin/python tests/lxt_reference.py

Each method of each model leaves four tensors, in float32 `MODEL.METHOD.logits` and `MODEL.METHOD.relevance`, and
`...logits64` and `...relevance64` of the same in float64, but for RMS normalization and rotary angles, which
transformers and LXT compute in float32 whatever they are given. Relevance is the embeddings or pixels times their
gradient, entry by entry. Each sample's own logit is explained: of causal language models token 3 at the last position,
else class 1. METHOD is `attn_lrp`, `cp_lrp`, and of torchvision's vision transformer also `attn_gamma` and `cp_gamma`,
which have zennit's gamma rule besides (see `gamma`).
"""

import functools
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import transformer_zoo
from lxt.efficient import monkey_patch, monkey_patch_zennit, patches
from safetensors.torch import save_file
from torch import Tensor, nn
from zennit.composites import LayerMapComposite
from zennit.rules import Gamma

PATH = Path(__file__).with_suffix(".safetensors")
CAUSAL = ("llama", "qwen2", "qwen3", "gemma3", "gpt2")
METHODS = {
    **dict.fromkeys((*CAUSAL, "bert"), ("attn_lrp", "cp_lrp")),
    "torchvision_vit": ("attn_lrp", "cp_lrp", "attn_gamma", "cp_gamma"),
}


def main() -> None:
    tensors = {}
    # A fresh process for each, as LXT's patches cannot be undone.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        for name, methods in METHODS.items():
            for method in methods:
                for key, array in processes.submit(explain, name, method).result().items():
                    tensors[f"{name}.{method}.{key}"] = torch.from_numpy(array)
                check(name, method, tensors)
    save_file(tensors, PATH, {package: version(package) for package in ("lxt", "zennit", "transformers", "torch")})
    print(f"{PATH}: {len(tensors)} tensors, {PATH.stat().st_size} bytes")


def check(name: str, method: str, tensors: dict[str, Tensor]) -> None:
    """LXT changes gradients only, and so the logits must be those of the model in this process, which has no patch."""
    logits, relevance = (tensors[f"{name}.{method}.{key}"] for key in ("logits", "relevance"))
    with torch.no_grad():
        expected = logits_of(transformer_zoo.build(name)(**transformer_zoo.inputs(name)))
    off = (logits - expected).abs().max()
    exact = tensors[f"{name}.{method}.relevance64"]
    rounding = (relevance - exact).abs().max() / exact.abs().max()
    print(f"{name:15} {method:14} logits off by {off:.1e}, relevance by {rounding:.1e} in float32")
    assert off < 1e-5
    assert rounding < 1e-4


def explain(name: str, method: str) -> dict[str, np.ndarray]:
    """The logits, and the relevance of the embeddings or pixels for one logit of each sample, in both precisions."""
    torch.set_num_threads(1)
    has_gamma = method.endswith("_gamma")
    patch(name, method.replace("_gamma", "_lrp"))
    if has_gamma:
        monkey_patch_zennit()
    arrays = {}
    for suffix, dtype in (("", torch.float32), ("64", torch.float64)):
        model = transformer_zoo.build(name, dtype)
        ((key, x),) = transformer_zoo.inputs(name, dtype=dtype).items()
        x.requires_grad_()
        with gamma().context(model) if has_gamma else nullcontext(model) as explained:
            logits = logits_of(explained(**{key: x}))
            chosen = logits[:, -1, 3] if name in CAUSAL else logits[:, 1]
            chosen.sum().backward()
        arrays["logits" + suffix] = logits.detach().numpy()
        arrays["relevance" + suffix] = (x * x.grad).detach().numpy()
    return arrays


def logits_of(output: Tensor | object) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def patch(name: str, method: str) -> None:
    """Have LXT patch a family for "attn_lrp" or "cp_lrp"."""
    identity_rule = functools.partial(patches.patch_method, patches.non_linear_forward, keep_original=True)
    if name == "torchvision_vit":
        from lxt.efficient.models import vit_torch

        patch_map = dict(vit_torch.cp_LRP)
        if method == "attn_lrp":
            # LXT has no AttnLRP for torchvision. It is CP-LRP, which LXT has, but for attention, and there LXT's
            # wrapper that shares relevance among query, key and value goes around the function that torch calls.
            del patch_map[nn.MultiheadAttention]
            patch_map[torch.nn.functional] = functools.partial(patch_torch_attention, patches.wrap_attention_forward)
        monkey_patch(vit_torch.vision_transformer, patch_map)
    elif name == "bert" and method == "cp_lrp":
        # LXT has no CP-LRP for BERT, and its AttnLRP is an older BERT with changes inside, so this is put together for
        # transformers' own: LXT's wrapper that holds query and key constant around the function that torch calls, and
        # outside attention what LXT's BERT does, the identity rule at normalization and both activations.
        from transformers.activations import GELUActivation
        from transformers.models.bert import modeling_bert

        patch_map = {
            GELUActivation: identity_rule,
            nn.Tanh: identity_rule,
            nn.LayerNorm: functools.partial(patches.patch_method, patches.layer_norm_forward),
            torch.nn.functional: functools.partial(patch_torch_attention, patches.cp_wrap_attention_forward),
        }
        monkey_patch(modeling_bert, patch_map)
    else:
        family = import_module(f"lxt.efficient.models.{name}")
        patch_map = family.attnLRP if method == "attn_lrp" else family.cp_LRP
        monkey_patch(import_module(f"transformers.models.{name}.modeling_{name}"), patch_map)


def patch_torch_attention(wrap: Callable, functional) -> bool:
    """Patch it where nn.MultiheadAttention and BERT look it up; input that needs a gradient keeps off fast paths."""
    attention = functional.scaled_dot_product_attention
    wrapped = wrap(lambda module, *arguments, **keywords: attention(*arguments, **keywords))
    functional.scaled_dot_product_attention = functools.partial(wrapped, None)
    return True


def gamma() -> LayerMapComposite:
    """zennit's gamma rule, by LXT's bridge, for the layers that are called as modules.

    Those are the patches' convolution, the perceptrons' layers and the head. nn.MultiheadAttention passes the weights
    of its projections on without a call, which leaves these to the gradient, that is LRP-0. zennit's stabilizer is
    1e-6, and biases keep their share (`zero_params=None`); LXT's bridge divides by the input stabilized by 1e-10.
    """
    return LayerMapComposite([(nn.Conv2d, Gamma(0.25)), (nn.Linear, Gamma(0.25))])


if __name__ == "__main__":
    main()
