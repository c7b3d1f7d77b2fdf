"""`lrpfunc text`: a language model and what its words rest on."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lrpfunc.cli.application import app
from lrpfunc.cli.options import Device, Overwrite
from lrpfunc.cli.words import notes, output
from lrpfunc.pictures.progress import ProgressBar


class Precision(StrEnum):
    """What numbers a model computes in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


@app.command()
def text(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="The folder of a language model of Hugging Face: config.json, weights in safetensors, a tokenizer. "
            "Nothing is downloaded, and no code in it is run.",
        ),
    ],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What the model reads; - takes the standard input.")],
    answer: Annotated[
        str,
        typer.Option(
            "--answer",
            "-a",
            help="What is written behind it, as it stands (begin with a space where a word does): each word is "
            "explained.",
            show_default="the word that is likeliest next",
        ),
    ] = "",
    other: Annotated[
        str | None,
        typer.Option(help="A word: what speaks for each word of the answer, and not for this one.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("lrpfunc-text.html"),
    composite: Annotated[
        str,
        typer.Option(
            "--composite", "-c", help="The rules: attn_lrp, cp_lrp, epsilon, or your own as module.path:composite."
        ),
    ] = "attn_lrp",
    dtype: Annotated[
        Precision, typer.Option(help="What the model computes in; auto: as its weights are.")
    ] = Precision.auto,
    device: Device = "cpu",
    chunk: Annotated[
        int, typer.Option(help="Words of the answer that are explained at once; fewer take less memory.", min=1)
    ] = 8,
    graph: Annotated[
        int | None,
        typer.Option(
            help="Show a word of the answer, the 1st, 2nd, ..., as tokens through layers, too: who told whom.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Explain what a language model writes: which words of the prompt, and of the answer before, each word rests on.

    Without --answer it is the next word, of which the likeliest are listed.
    """
    from lrpfunc.pictures import texts

    read = sys.stdin.read() if prompt == "-" else prompt
    with ProgressBar("explaining") as bar:
        found = texts.write(
            model, read, out, answer, other, composite, dtype.value, device, chunk, overwrite, graph, progress=bar
        )
    notes(found.notes)
    console = output()
    texts.tables(found, console)
    console.print(f"page: {out}", soft_wrap=True, markup=False)
