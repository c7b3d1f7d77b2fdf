"""`lrpfunc text`: a language model and what its words rest on, of one prompt or of a file of them."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lrpfunc.cli.application import app
from lrpfunc.cli.engines import (
    RANKS,
    Address,
    BlockSize,
    Cluster,
    CpusPerProcess,
    Engine,
    GpusPerProcess,
    Processes,
    check_cluster,
    run_blocks,
)
from lrpfunc.cli.options import Device, Overwrite, here
from lrpfunc.cli.words import notes, output, tell
from lrpfunc.errors import InputError
from lrpfunc.pictures.progress import ProgressBar

PAGE, FOLDER = "lrpfunc-text.html", "lrpfunc-texts"
MANY = "With --prompts"


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
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", help="What the model reads; - takes the standard input.", show_default="--prompts"
        ),
    ] = None,
    answer: Annotated[
        str,
        typer.Option(
            "--answer",
            "-a",
            help="What is written behind it, as it stands (begin with a space where a word does): each word is "
            "explained.",
            show_default="what the model writes",
        ),
    ] = "",
    words: Annotated[
        int, typer.Option(help="How many the model writes where no answer is given, the likeliest each.", min=1)
    ] = 1,
    other: Annotated[
        str | None,
        typer.Option(help="A word: what speaks for each word of the answer, and not for this one.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The page to write; of many prompts the folder of tables.",
            show_default=f"{PAGE}, {FOLDER}",
            parser=here,
        ),
    ] = None,
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
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Instead of one prompt a file of them, or its URL: .jsonl with a prompt, an answer and an id in each "
            "line, .parquet or .arrow with such columns, or .txt.",
            metavar="FILE",
            show_default=False,
            rich_help_panel=MANY,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Prompts that are looked at together; those of one length are explained at once.",
            min=1,
            show_default="16",
            rich_help_panel=MANY,
        ),
    ] = None,
    engine: Engine = None,
    block_size: BlockSize = None,
    address: Address = None,
    processes: Processes = None,
    cpus_per_process: CpusPerProcess = None,
    gpus_per_process: GpusPerProcess = None,
) -> None:
    """Explain what a language model writes: which words of the prompt, and of the answer before, each word rests on.

    Without an answer it is what the model writes: the likeliest next word, or as many as --words says. A file of
    prompts gives Parquet files of 256 prompts each, and the same command goes on after any stop; prompts that cannot
    be explained are listed in their column `error`, and the exit code is then 3.
    """
    cluster = Cluster(engine, block_size, address, processes, cpus_per_process, gpus_per_process)
    if (prompt is None) == (prompts is None):
        raise InputError("give one prompt by --prompt, or a file of them by --prompts.")
    if prompts is None:
        if batch is not None or cluster != Cluster():
            raise InputError("--batch and what is for many processes go with --prompts.")
        if answer and words > 1:
            raise InputError("--words is for what the model writes: leave it or --answer out.")
        place = out or Path(PAGE)
        _page(model, prompt or "", answer, other, place, composite, dtype, device, chunk, graph, overwrite, words)
        return
    if answer or graph is not None:
        raise InputError("--answer and --graph are of one prompt: the answers of a file stand in it.")
    check_cluster(cluster, overwrite=overwrite, in_blocks=True)
    from lrpfunc.pictures import distributed

    folder = out or Path(FOLDER)
    task = distributed.TextTask(prompts, folder, model, composite, other, dtype.value, device, chunk=chunk, words=words)
    with ProgressBar("explaining") as bar:
        outcome = run_blocks(cluster, task if batch is None else task._replace(batch=batch), bar)
    tell(outcome, is_among_others=engine == RANKS, what="prompt", listed="the column 'error'")


def _page(
    model: str,
    prompt: str,
    answer: str,
    other: str | None,
    out: Path,
    composite: str,
    dtype: Precision,
    device: str,
    chunk: int,
    graph: int | None,
    overwrite: bool,
    words: int,
) -> None:
    from lrpfunc.pictures.texts import pages

    read = sys.stdin.read() if prompt == "-" else prompt
    with ProgressBar("explaining") as bar:
        found = pages.write(
            model, read, out, answer, other, composite, dtype.value, device, chunk, overwrite, graph, words, bar
        )
    notes(found.notes)
    console = output()
    pages.tables(found, console)
    console.print(f"page: {out}", soft_wrap=True, markup=False)
