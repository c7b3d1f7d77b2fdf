"""Why this word and not another: the next token of a language model, explained by the tokens before it.

    python examples/next_token.py                      # trains a small Llama first, half a minute; needs no network
    python examples/next_token.py --save small         # and keeps it with its tokenizer
    python examples/next_token.py --model small --prompt "Near the red door, the white cup is" --word white --other red
    python examples/next_token.py --model gpt2 --prompt "The keys to the old cabinet" --word are --other is

Needs the extra `transformers`. Any causal model of transformers will do. The small Llama has learned sentences that end
with the first colour, or with the first one behind a comma: "The red key near the blue door is red." What is explained
is the logit of the word less that of the other.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

import lrpfunc
from lrpfunc import circuits, composites, digits, heatmaps, text

PROMPTS = ("The red key near the blue door is", "Near the green window, the blue key to the red door is")
WORDS = (("red", "blue"), ("blue", "red"))

COLOURS = ("red", "blue", "green", "black", "white", "yellow")
THINGS = ("key", "door", "window", "letter", "drawer", "book", "picture", "house", "box", "cup", "hat", "bag")
PREPOSITIONS = ("to", "near", "behind", "of", "with")


# -- a small language model -------------------------------------------------------------------------------------------


def sentence(draw: random.Random) -> str:
    """It ends with the colour of its subject; others are in the way."""
    colours, things = draw.sample(COLOURS, 3), draw.sample(THINGS, 3)
    subject, beside, before = (f"the {colour} {thing}" for colour, thing in zip(colours, things, strict=True))
    start = f"{draw.choice(('near', 'behind'))} {before}, " if draw.random() < 0.5 else ""
    end = f" {draw.choice(PREPOSITIONS)} {beside}" if draw.random() < 0.5 else ""
    whole = f"{start}{subject}{end} is {colours[0]}."
    return whole[0].upper() + whole[1:]


def make_tokenizer(sentences: Sequence[str]) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE, as GPT-2's, that has learned its pieces from the sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = {"eos_token": "</s>", "pad_token": "<pad>"}
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*special.values()], initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def train(steps: int, seed: int) -> tuple[transformers.LlamaForCausalLM, transformers.PreTrainedTokenizerFast]:
    """A small Llama and its tokenizer; every batch is of new sentences. The global random state is left as it was."""
    draw = random.Random(seed)
    tokenizer = make_tokenizer([sentence(draw) for _ in range(2000)])
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]), digits.single_thread():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.003, total_steps=steps)
        for _ in range(steps):
            batch = tokenizer([sentence(draw) for _ in range(64)], padding=True, return_tensors="pt")
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            loss = model(batch["input_ids"], batch["attention_mask"], labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval(), tokenizer


def load(name: str):
    """A causal language model and its tokenizer, from a folder or from the hub. Errors: `SystemExit` in words."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise SystemExit(f"no language model in {name}: there is no config.json, which save_pretrained would write.")
    if not folder.is_dir() and (folder.is_absolute() or name.startswith(".")):
        raise SystemExit(f"no language model in {name}: there is no such folder.")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        return transformers.AutoModelForCausalLM.from_pretrained(name).eval(), tokenizer
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"no language model {name!r}: {str(error).strip().splitlines()[0]}") from error


# -- its explanation --------------------------------------------------------------------------------------------------


class Explanation(NamedTuple):
    """Of prompts: pieces, and what each has to do with `word` and not `other` being next.

    `relevance` (prompts, length) is zero at padding, where the `mask` is too; `layers` (prompts, length, width) and
    `values` (prompts, heads, length, width), what attention reads, are relevance within the model, by name. `pairs`
    (prompts, 2): the ids of the words.
    """

    pieces: list[list[str]]
    words: list[tuple[str, str]]
    mask: Tensor
    relevance: Tensor
    margin: Tensor
    layers: dict[str, Tensor]
    values: dict[str, Tensor]
    pairs: Tensor


def attribute(
    model: nn.Module, tokenizer, prompts: Sequence[str], words: Sequence[Sequence[str]] | None
) -> Explanation:
    """The logit of a word less that of another, for each prompt. `words`: pairs; None: the best two of the model."""
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(list(prompts), padding=True, return_tensors="pt")
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    last = inputs["attention_mask"].sum(1) - 1  # the rest is padding
    if (last < 0).any():
        raise SystemExit("a prompt needs one token at least.")

    fmodel, params = lrpfunc.functionalize(model, **inputs)
    logits = fmodel(params, **inputs).logits[torch.arange(len(last)), last]
    if words is None:
        pairs = logits.topk(2).indices
    else:
        both = zip(prompts, words, strict=True)
        pairs = torch.tensor([[first_token(tokenizer, prompt, word) for word in pair] for prompt, pair in both])
    right, other = pairs.unbind(1)

    layers, values = layer_names(model), value_names(fmodel)
    relevance, inner = lrpfunc.attribute(
        fmodel, params, inputs, composites.attn_lrp(), text.contrast(right, other, last), at=[*layers, *values]
    )
    return Explanation(
        [tokenizer.convert_ids_to_tokens(ids) for ids in inputs["input_ids"]],
        [tuple(tokenizer.decode(token).strip() for token in pair) for pair in pairs],
        inputs["attention_mask"],
        relevance["input_ids"],
        (logits.gather(1, pairs) @ torch.tensor([1.0, -1.0])),
        {name: inner[name] for name in layers},
        {name: inner[name] for name in values},
        pairs,
    )


def graph_page(model: nn.Module, tokenizer, prompt: str, pair: Sequence[int], path: Path) -> None:
    """Tokens through layers as a page: who sent how much of the difference of two words' logits to whom."""
    inputs = {"input_ids": tokenizer(prompt, return_tensors="pt")["input_ids"]}
    fmodel, params = lrpfunc.functionalize(model, **inputs)
    graph = circuits.graph(fmodel, params, inputs, text.contrast(*pair), composites.attn_lrp(), split=True)
    tokens = text.words(tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]))
    graph.html(tokens, path, answer=", not ".join(tokenizer.decode(token).strip() for token in pair), title=prompt)


def first_token(tokenizer, prompt: str, word: str) -> int:
    """The token with which a word begins if it comes after the prompt."""
    before, after = tokenizer(prompt)["input_ids"], tokenizer(f"{prompt} {word}")["input_ids"]
    if not word or after[: len(before)] != before or len(after) == len(before):
        raise SystemExit(f"{word!r} is no word that could come after {prompt!r}.")
    return after[len(before)]


def layer_names(model: nn.Module) -> list[str]:
    """The blocks of a transformer, as "model.layers.0", whatever its author has called them."""
    depth = model.config.num_hidden_layers
    lists = (
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth
    )
    return [f"{name}.{number}" for name in list(lists)[:1] for number in range(depth)]


def value_names(fmodel: lrpfunc.Program) -> list[str]:
    """The equations that make the values which attention reads, one per block."""
    makers = {variable.name: equation.name for equation in fmodel.equations for variable in equation.outputs}
    attentions = [e for e in fmodel.equations if e.operator == "scaled_dot_product_attention"]
    return [makers[equation.arguments[2].name] for equation in attentions]


# -- what people see --------------------------------------------------------------------------------------------------


def show(found: Explanation, out: Path) -> None:
    """Coloured tokens in the terminal, as a page and as an image; relevance in the layers and heads as figures."""
    tokens = [text.words(pieces) for pieces in found.pieces]
    titles = [f"{word}, not {other}" for word, other in found.words]
    text.show(tokens, found.relevance, found.mask, titles, scale="each")
    out.mkdir(parents=True, exist_ok=True)
    for ending in ("html", "png"):
        name = out / f"next_token.{ending}"
        text.save(name, tokens, found.relevance, found.mask, titles, "The next token", scale="each")
    for i, title in enumerate(titles):
        layers = {name: relevance[i] for name, relevance in found.layers.items()}
        heads = {name.rsplit(".", 1)[0]: relevance[i] for name, relevance in found.values.items()}
        drawn = {"layers": {"tokens": found.relevance[i], **layers}, "heads": heads}
        for kind, rows in drawn.items():
            if rows:
                figure = text.layers(tokens[i], rows, found.mask[i], title)
                heatmaps.save(figure, out / f"{kind}{i + 1}.png")


def main(arguments: Sequence[str] | None = None) -> Explanation:
    """Explain, print, write the pictures, and return the explanation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, or a name of the hub; without one a small Llama is trained")
    parser.add_argument("--prompt", action="append", help="as often as you like")
    parser.add_argument("--word", help="that might come next; else the most likely one")
    parser.add_argument("--other", help="that might come instead; else the next likely one")
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="a folder for the small model")
    parser.add_argument("--out", type=Path, default=Path("next_token"), help="a folder for the pictures")
    options = parser.parse_args(arguments)
    if (options.word is None) != (options.other is None):
        parser.error("--word and --other are given both or neither.")

    transformers.utils.logging.disable_progress_bar()
    model, tokenizer = load(options.model) if options.model else train(options.steps, options.seed)
    if options.save:
        model.save_pretrained(options.save)
        tokenizer.save_pretrained(options.save)
    prompts = PROMPTS if options.prompt is None else options.prompt
    words = [(options.word, options.other)] * len(prompts) if options.word is not None else None
    if options.prompt is None and options.word is None and options.model is None:
        words = WORDS
    found = attribute(model, tokenizer, prompts, words)
    show(found, options.out)
    for i, (prompt, pair) in enumerate(zip(prompts, found.pairs.tolist(), strict=True)):
        graph_page(model, tokenizer, prompt, pair, options.out / f"graph{i + 1}.html")
    for (word, other), margin, total in zip(found.words, found.margin, found.relevance.sum(1), strict=True):
        print(f"logit of {word!r} less that of {other!r}: {margin:+.2f}; relevance of all tokens: {total:+.2f}")
    print(f"wrote pages and pictures to {options.out}")
    return found


if __name__ == "__main__":
    main()
