"""Small transformers of the common families, with random parameters that no library's version changes.

`tests/lxt_reference.py` builds them in LXT's environment and the tests in lrpfunc's, so neither lrpfunc is imported
here nor, before a model is asked for, transformers or torchvision. What a parameter holds depends on nothing but its
name and shape. Names are those of transformers 5; of the models here, version 4 has the same but for `vit`, `deit`,
`clip` and `mixtral`, which are other networks there.
"""

import zlib

import numpy as np
import torch
from torch import Tensor, nn

VOCABULARY, WIDTH, IMAGE = 50, 32, 32
LABELS = 3

TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BLOCKS = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CAUSAL = {**TOKENS, **BLOCKS, "num_key_value_heads": 2, "head_dim": 8, "use_cache": False}
VISION = {**BLOCKS, "image_size": IMAGE, "patch_size": 8}

# The family's configuration and model by their names in transformers, and what the configuration is given.
FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", CAUSAL),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {name: CAUSAL[name] for name in CAUSAL if name != "head_dim"}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", CAUSAL),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**CAUSAL, "sliding_window": 4}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            **CAUSAL,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 8,
        },
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {**TOKENS, "n_embd": WIDTH, "n_inner": 64, "n_layer": 2, "n_head": 4, "n_positions": 16, "use_cache": False},
    ),
    "bert": (
        "BertConfig",
        "BertForSequenceClassification",
        {**TOKENS, **BLOCKS, "max_position_embeddings": 16, "num_labels": LABELS},
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "pad_token_id": 0,
            "eos_token_id": 2,
            "decoder_start_token_id": 0,
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "use_cache": False,
        },
    ),
    "vit": ("ViTConfig", "ViTForImageClassification", {**VISION, "num_labels": LABELS}),
    "deit": ("DeiTConfig", "DeiTForImageClassification", {**VISION, "num_labels": LABELS}),
    "clip": ("CLIPVisionConfig", "CLIPVisionModel", VISION),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {**CAUSAL, "num_local_experts": 4, "experts_implementation": "batched_mm"},
    ),
}
NAMES = (*FAMILIES, "torchvision_vit")


def build(name: str, dtype: torch.dtype = torch.float32, bias: bool = True, layers: int = 2) -> nn.Module:
    """The model in evaluation mode. Without `bias`, all its biases are zero."""
    if name == "torchvision_vit":
        from torchvision.models import VisionTransformer

        model = VisionTransformer(
            image_size=IMAGE, patch_size=8, num_layers=layers, num_heads=4, hidden_dim=WIDTH, mlp_dim=64, num_classes=5
        )
    else:
        import transformers

        config_class, model_class, keywords = FAMILIES[name]
        key = next(key for key in keywords if key in ("num_hidden_layers", "n_layer", "num_layers"))
        keywords = {**keywords, key: layers}
        model = getattr(transformers, model_class)(getattr(transformers, config_class)(**keywords))
    fill(model, bias)
    return model.to(dtype).eval()


def inputs(name: str, batch: int = 2, length: int = 7, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Embeddings of so many tokens, or images, by the names of the model's arguments."""
    if name == "torchvision_vit":
        shapes = {"x": (batch, 3, IMAGE, IMAGE)}
    elif name in ("vit", "deit", "clip"):
        shapes = {"pixel_values": (batch, 3, IMAGE, IMAGE)}
    else:
        shapes = {"inputs_embeds": (batch, length, WIDTH)}
        if name == "t5":
            shapes["decoder_inputs_embeds"] = (batch, length - 2, WIDTH)
    return {key: torch.from_numpy(random_state(key).standard_normal(shape)).to(dtype) for key, shape in shapes.items()}


def random_state(name: str) -> np.random.RandomState:
    """What it draws is the same under every version of numpy."""
    return np.random.RandomState(zlib.crc32(name.encode()))


def fill(model: nn.Module, bias: bool) -> None:
    """Overwrite every parameter, a tied one once and by the first of its names in the alphabet."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    with torch.no_grad():
        for parameter, its_names in names.items():
            parameter.copy_(torch.from_numpy(draw(model, sorted(its_names), parameter.shape, bias)))


def draw(model: nn.Module, names: list[str], shape: torch.Size, bias: bool) -> np.ndarray:
    """Values of a parameter that keep activations of order one and leave no bias and no scale trivial."""
    random = random_state(names[0])
    owner, _, leaf = names[0].rpartition(".")
    module = model.get_submodule(owner)
    kind = type(module).__name__
    if leaf.endswith("bias"):
        return random.uniform(-0.1, 0.1, shape) * bias
    if "Norm" in kind:
        return random.uniform(-0.3, 0.3, shape) + (not kind.startswith("Gemma"))  # Gemma itself adds the one
    values = random.standard_normal(shape)
    is_tied = len(names) > 1  # an embedding that is the last layer's weight too
    is_matrix = leaf.endswith("weight") and not isinstance(module, nn.Embedding)
    if kind == "Conv1D":  # GPT-2's linear layer, which holds its weight transposed
        return values / shape[0] ** 0.5
    if kind.endswith("Experts"):
        return values / shape[-1] ** 0.5
    return values / np.prod(shape[1:]) ** 0.5 if is_tied or is_matrix else values
