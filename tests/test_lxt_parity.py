"""lrpfunc's AttnLRP and CP-LRP against LXT 2.1 on small transformers: the same relevance of every embedding and pixel.

LXT needs an older transformers, so its answers are on file: `tests/lxt_reference.py` says how they came about.
"""

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import lrpfunc
from lrpfunc import composites, rules
from tests import transformer_zoo
from tests.helpers import relative_error

PROMISED = 1e-6
REFERENCE = load_file(Path(__file__).with_name("lxt_reference.safetensors"))
CAUSAL = ("llama", "qwen2", "qwen3", "gemma3", "gpt2")
MODELS = (*CAUSAL, "bert", "torchvision_vit")
METHODS = {"attn_lrp": composites.attn_lrp, "cp_lrp": composites.cp_lrp}
DTYPES = {torch.float32: "", torch.float64: "64"}

# The layers that zennit saw: those called as modules, so none inside attention.
GAMMA = dict.fromkeys(("conv_proj", "encoder.layers.*.mlp.*", "heads"), rules.gamma(0.25))


def explained_logits(name: str, logits: Tensor) -> Tensor:
    """The logits that were explained, with zeros for all others."""
    chosen = (slice(None), -1, 3) if name in CAUSAL else (slice(None), 1)
    seed = torch.zeros_like(logits)
    seed[chosen] = logits[chosen]
    return seed


@functools.cache
def traced(name: str, dtype: torch.dtype):
    model, x = transformer_zoo.build(name, dtype), transformer_zoo.inputs(name, dtype=dtype)
    return *lrpfunc.functionalize(model, **x), x


def assert_parity(name: str, method: str, composite: composites.Composite, dtype: torch.dtype) -> None:
    """First of the logits, as relevance of another function's would mean nothing."""
    if name != "torchvision_vit":
        pytest.importorskip("transformers")
    fmodel, params, x = traced(name, dtype)
    (key,) = x
    seen = []

    def target(output):
        if isinstance(output, Tensor):
            seen.append(output)
            return explained_logits(name, output)
        assert set(output) == {"logits"}
        seen.append(output.logits)
        return type(output)(logits=explained_logits(name, output.logits))

    relevance = lrpfunc.attribute(fmodel, params, x, composite, target=target)
    expected = {what: REFERENCE[f"{name}.{method}.{what}{DTYPES[dtype]}"] for what in ("logits", "relevance")}
    assert relative_error(seen[0], expected["logits"]) <= PROMISED
    assert relative_error(relevance[key], expected["relevance"]) <= PROMISED


# In float32, as promised; the float64 references, which tell rounding from differences, by `pytest -m slow`.
PRECISIONS = [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_parity_with_lxt(name, method, dtype):
    assert_parity(name, method, METHODS[method](), dtype)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("method", ["attn", "cp"])
def test_gamma_parity_with_lxt(method, dtype):
    """zennit's gamma rule through LXT's bridge, and AttnLRP or CP-LRP for the rest."""
    composite = composites.first_match(GAMMA, METHODS[f"{method}_lrp"]())
    assert_parity("torchvision_vit", f"{method}_gamma", composite, dtype)
