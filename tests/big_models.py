"""What explanations of language models take of memory: planned from 1 to 70 billion parameters, and measured where they
run here.

`python -m tests.big_models plan [1B 3B 8B 70B]` prints the planned table, `python -m tests.big_models measure` the one
with a small Llama beside its plan. Each measurement is a process of its own, of which Linux tells the most memory that
it ever had (VmHWM).
"""

import json
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import lrpfunc
from lrpfunc import composites, text
from lrpfunc.placement.files import stored_in

# Width, width of the MLP, blocks, heads, heads of keys, whether the table of tokens is the last layer as well.
SHAPES = {
    "1B": (2048, 8192, 16, 32, 8, True),
    "3B": (3072, 8192, 28, 24, 8, True),
    "8B": (4096, 14336, 32, 32, 8, False),
    "70B": (8192, 28672, 80, 64, 8, False),
}
SMALL = (768, 2048, 24, 12, 4, False)
LENGTH = 512
WORDS = {"plan": 128_256, "measure": 4_096}


def llama(shape: tuple, words: int):
    """A Llama of a shape without numbers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, inner, blocks, heads, keys, is_tied = shape
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=words,
        tie_word_embeddings=is_tied,
        use_cache=False,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).eval()


def traced(shape: tuple, words: int, dtype: torch.dtype):
    """Its program and parameters, of which none has numbers but the frequencies, which files do not have."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    model = llama(shape, words).to(dtype)
    ids = torch.ones(1, LENGTH, dtype=torch.long, device="meta")
    fmodel, params = lrpfunc.functionalize(model, ids, logits_to_keep=1)
    params["model.rotary_emb.inv_freq"] = LlamaRotaryEmbedding(model.config).inv_freq
    return fmodel, params


# -- planned ----------------------------------------------------------------------------------------------------------


def plan(names: list[str]) -> None:
    print(f"{LENGTH} tokens, bfloat16, attn_lrp, planned in GB\n")
    print("| | parameters | all at once | in segments | fetched, in segments | equations |")
    print("|---|---|---|---|---|---|")
    for name in names:
        blocks = SHAPES[name][2]
        fmodel, params = traced(SHAPES[name], WORDS["plan"], torch.bfloat16)
        x = tokens(LENGTH)
        rules, target = composites.attn_lrp(), text.token(3)
        plain = lrpfunc.footprint(fmodel, params, x, rules, target)
        split = lrpfunc.footprint(fmodel, params, x, rules, target, checkpoint=blocks)
        fetched = lrpfunc.footprint(*lrpfunc.offload(fmodel, params, "cuda"), x, rules, target, checkpoint=blocks)
        cells = (plain.parameters, plain.total, split.total, fetched.working)
        print(f"| {name} | " + " | ".join(f"{cell / 1e9:.2f}" for cell in cells) + f" | {len(fmodel.equations)} |")


# -- measured ---------------------------------------------------------------------------------------------------------


def write(folder: Path, params: dict) -> None:
    """Random weights in files of a block each."""
    shards: dict[str, list[str]] = {}
    for name, leaf in params.items():
        if leaf.is_meta:
            shards.setdefault("-".join(name.split(".")[1:3]) if ".layers." in name else "rest", []).append(name)
    generator = torch.Generator().manual_seed(0)
    for shard, names in shards.items():
        tensors = {name: torch.randn(params[name].shape, generator=generator) * 0.02 for name in names}
        save_file(tensors, folder / f"{shard}.safetensors")


def measured(folder: str, way: str, checkpoint: int | None) -> dict:
    """What one way takes beside the process itself, in bytes, beside its plan, and the relevance."""
    fmodel, params = pickle.loads((Path(folder) / "traced").read_bytes())
    rules, target = composites.attn_lrp(), text.token(3)
    offloaded = lrpfunc.offload(fmodel, params, files=folder)
    fmodel, params = offloaded if way == "files" else (fmodel, params)
    planned = lrpfunc.footprint(fmodel, params, tokens(LENGTH), rules, target, checkpoint)
    lrpfunc.attribute(*offloaded, tokens(8), rules, target, checkpoint=len(fmodel.equations))  # so that code is loaded
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the most begins anew
    if way == "memory":
        params |= {name: one.to(torch.device("cpu")).clone() for name, one in stored_in(folder).items()}
    relevance = lrpfunc.attribute(fmodel, params, tokens(LENGTH), rules, target, checkpoint=checkpoint)
    return {
        "planned": planned.total,
        "measured": _status("VmHWM") - before,
        "relevance": relevance["input_ids"].tolist(),
    }


def tokens(length: int) -> dict:
    return {"input_ids": torch.arange(length)[None] % 1000, "logits_to_keep": 1}


def _status(what: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def in_a_process(folder: str, way: str, checkpoint: int | None) -> dict:
    arguments = [sys.executable, "-m", "tests.big_models", "one", folder, way, str(checkpoint or "")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure() -> list[tuple[str, int | None, dict]]:
    """A small Llama, all at once and in segments, in memory and from files."""
    fmodel, params = traced(SMALL, WORDS["measure"], torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), params)
        (Path(folder) / "traced").write_bytes(pickle.dumps((fmodel, params)))
        ways = [("memory", None), ("memory", 24), ("files", 4), ("files", 12), ("files", 24)]
        return [(way, checkpoint, in_a_process(folder, way, checkpoint)) for way, checkpoint in ways]


def main(arguments: list[str]) -> None:
    match arguments:
        case ["plan", *names]:
            plan(names or list(SHAPES))
        case ["measure"]:
            print("| parameters | segments | planned, MB | measured, MB |\n|---|---|---|---|")
            for way, checkpoint, found in measure():
                planned, seen = (f"{found[name] / 1e6:.0f}" for name in ("planned", "measured"))
                print(f"| in {way} | {checkpoint or 1} | {planned} | {seen} |")
        case ["one", folder, way, checkpoint]:
            print(json.dumps(measured(folder, way, int(checkpoint) if checkpoint else None)))
        case _:
            print(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
