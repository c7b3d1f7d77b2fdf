"""What is measured: a table is a list of cases, and in a case all contenders answer the same question."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

import lrpfunc
from tests.benchmarks import attention, contenders, datasets, networks
from tests.benchmarks.contenders import CONTENDERS, Contender, ask
from tests.benchmarks.measure import Call, SetUp
from tests.test_models import SIZES, TORCHVISION, build

MODELS = ("vgg16_bn", "resnet50", "densenet121", "vit_b_16")
LENGTHS = (512, 1024, 2048, 4096, 8192)
COMPOSITES = ("epsilon", "epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box")


class Options(NamedTuple):
    """What the command line asks for; what is empty is up to each table."""

    model: Sequence[str] = ()
    size: Sequence[int] = ()
    batch: Sequence[int] = ()
    composite: Sequence[str] = ()
    rounds: int | None = None
    device: torch.device = torch.device("cpu")
    compile: bool = False
    lxt: Path | None = None


class Case(NamedTuple):
    """A row: its labels, its contenders (set up when it is its turn), and how many units a call of them deals with."""

    labels: tuple[str, ...]
    contenders: Callable[[], Mapping[str, SetUp]]
    units: int = 1


class Table(NamedTuple):
    """Cases that are measured alike. `baseline`: what ratios are to, but for the contenders that `baselines` names
    another for, or "" for none. `unit`: to show times too, and per what. `grows`: the label that times grow with, whose
    power is fitted."""

    title: str
    cases: Sequence[Case]
    baseline: str = "gradient"
    header: tuple[str, ...] = ("model", "size", "batch", "composite")
    unit: str = ""
    rounds: int = 5
    memory: bool = False
    slowest_first: bool = False
    baselines: Mapping[str, str] = {}
    grows: str = ""


def explanations(
    options: Options,
    names: Mapping[str, Contender],
    model: Sequence[str] = ("resnet50",),
    size: Sequence[int] = (224,),
    batch: Sequence[int] = (1,),
    composite: Sequence[str] = ("epsilon_plus_flat",),
    classes: int | None = None,
) -> list[Case]:
    """A case for each model, size, batch and composite: those that the options ask for, or else these."""

    def set_up(question: contenders.Question, contender: Contender) -> Call:
        return partial(contender(question), question.classes)

    def line_up(*what) -> dict[str, SetUp]:
        question = ask(*what, options.device, classes)
        return {name: partial(set_up, question, contender) for name, contender in names.items()}

    return [
        Case((m, str(s), str(b), c), partial(line_up, m, s, b, c))
        for m in options.model or model
        for s in options.size or size
        for b in options.batch or batch
        for c in options.composite or composite
    ]


def entrants(options: Options, *names: str) -> dict[str, Contender]:
    """The contenders of these names (by default all), as far as there are such; and compiled code if asked for."""
    chosen = {name: CONTENDERS[name] for name in names or CONTENDERS if name in CONTENDERS}
    return {**chosen, "compiled": contenders.compiled} if options.compile else chosen


def main(options: Options) -> Table:
    cases = explanations(options, entrants(options), MODELS, batch=(1, 8), composite=COMPOSITES)
    return Table("explanations", cases, memory=True)


def overhead(options: Options) -> Table:
    """Layers that cost next to nothing leave what the libraries cost themselves."""

    def repeated(set_up: SetUp) -> Call:
        call = set_up()
        return lambda: [call() for _ in range(50)]

    def repeat(case: Case) -> dict[str, SetUp]:
        return {name: partial(repeated, set_up) for name, set_up in case.contenders().items()}

    names = entrants(options, "gradient", "lrpfunc", "prepared", "zennit", "captum")
    once = explanations(options, names, ("tiny_mlp",), composite=("epsilon", "epsilon_plus_flat"))
    cases = [Case(case.labels, partial(repeat, case), units=50) for case in once]
    return Table("overhead of a call", cases, "zennit", unit="call", rounds=20)


def targets(options: Options) -> Table:
    names = {
        "20 calls": contenders.one_by_one(contenders.attribute),
        "one call": contenders.all_at_once,
        **{f"chunks of {k}": partial(contenders.all_at_once, chunk_size=k) for k in (10, 5, 2)},
        "zennit": contenders.one_by_one(contenders.by_zennit),
    }
    cases = explanations(options, names, MODELS[:2], composite=COMPOSITES[:2], classes=20)
    return Table("20 targets of one sample", cases, "20 calls", unit="20 targets", rounds=3, memory=True)


def batches(options: Options) -> Table:
    names = entrants(options, "gradient", "lrpfunc", "prepared")
    cases = explanations(options, names, ("resnet50", "vit_b_16"), size=(64,), batch=(1, 2, 4, 8, 16))
    return Table("batch sizes", cases, unit="call", grows="batch")


def sizes(options: Options) -> Table:
    names = entrants(options, "gradient", "lrpfunc", "prepared")
    cases = explanations(options, names, size=(64, 128, 224, 320), batch=(2,))
    return Table("image sizes", cases, unit="call", memory=True, grows="size")


def recurrent(options: Options) -> Table:
    """Recurrent layers, step by step; a size is a number of time steps."""
    names = entrants(options, "gradient", "lrpfunc", "prepared")
    cases = explanations(options, names, ("lstm", "gru", "rnn"), (50, 200), (8,), ("epsilon", "attn_lrp_gamma"))
    return Table("recurrent layers", cases, grows="size")


def checkpoint(options: Options) -> Table:
    counts = {f"checkpoint={k}": partial(contenders.attribute, checkpoint=k) for k in (1, 2, 4, 8, 16)}
    names = {**entrants(options, "gradient", "lrpfunc"), **counts}
    return Table("checkpoints", explanations(options, names, MODELS[:2], batch=(8,)), rounds=3, memory=True)


def hoisting(options: Options) -> Table:
    """What `prepare` saves where there are many parameters for little data."""
    names = entrants(options, "lrpfunc", "prepared")
    models = ("vgg16_bn", "wide_resnet50_2", "wide_mlp")
    cases = explanations(options, names, models, composite=("epsilon_plus", "excitation_backprop"))
    return Table("hoisting", cases, "lrpfunc", unit="call")


def transformers(options: Options) -> Table:
    """Attention, explained. LXT's gradient is that of its environment, and what LXT is measured by."""
    limits = {"attn_lrp": ("1.25", "1.05"), "attn_lrp_gamma": ("3", "")}
    cases = [
        Case(
            (m, str(s), str(b), c, *limits.get(c, ("", ""))),
            partial(attention.line_up, m, s, b, c, options.device, options.compile, options.lxt),
        )
        for m in options.model or ("vit_b_16", "llama")
        for s in options.size or networks.USUAL.get(m, networks.USUAL["vit_b_16"])[:1]
        for b in options.batch or networks.USUAL.get(m, networks.USUAL["vit_b_16"])[1:]
        for c in options.composite or attention.COMPOSITES
    ]
    header = ("model", "size", "batch", "composite", "must", "aim")
    baselines = {attention.LXT_GRADIENT: "", attention.LXT: attention.LXT_GRADIENT}
    return Table("transformers", cases, header=header, memory=True, baselines=baselines)


def lengths(options: Options) -> Table:
    """How the price grows with the number of tokens."""
    cases = [
        Case(
            (m, str(s), str(b), c), partial(attention.line_up, m, s, b, c, options.device, options.compile, options.lxt)
        )
        for m in options.model or ("llama",)
        for c in options.composite or ("attn_lrp",)
        for b in options.batch or (1,)
        for s in options.size or (64, 128, 256, 512, 1024)
    ]
    return Table("numbers of tokens", cases, unit="call", rounds=3, memory=True, grows="size")


def graphs(options: Options) -> Table:
    """All edges between all residual streams, and how their price grows with the number of tokens."""
    cases = [
        Case((m, str(s), str(b)), partial(attention.graphs, m, s, b, options.device))
        for m in options.model or ("small_llama", *networks.LARGE)
        for s in options.size or (LENGTHS if m == "small_llama" else networks.USUAL[m][:1])
        for b in options.batch or networks.USUAL[m][1:]
    ]
    header = ("model", "size", "batch")
    return Table("graphs of tokens", cases, "gradient", header, unit="graph", rounds=0, memory=True, grows="size")


def trace(options: Options) -> Table:
    """The first trace of a model counts, in a process that has traced before: torch's imports are no model's cost."""

    def set_up(name: str) -> Call:
        size = SIZES.get(name, 56 if name == "vit_h_14" else 64)
        model = build(name, size)
        lrpfunc.functionalize(torch.nn.ReLU(), torch.zeros(1))
        return partial(lrpfunc.functionalize, model, torch.zeros(1, 3, size, size))

    names = options.model or TORCHVISION
    cases = [Case((name,), partial(dict, functionalize=partial(set_up, name))) for name in names]
    return Table("tracing", cases, "", ("model",), unit="model", rounds=0, slowest_first=True)


def dataset(options: Options) -> Table:
    """What a run over image files adds to the loop over inputs that are in memory: reading, decoding, writing."""
    cases = [
        Case((m, str(s), str(b), f"{count:,}"), partial(datasets.line_up, m, s, b, count, options.device), units=count)
        for m in options.model or ("resnet18",)
        for s in options.size or (64,)
        for b in options.batch or (16,)
        for count in (1_000, 10_000)
    ]
    header = ("model", "size", "batch", "images")
    return Table("data sets", cases, "bare loop", header, unit="image", rounds=1, memory=True)


def imports(options: Options) -> Table:
    """Each in a process of its own, which times itself."""

    def seconds(before: str, module: str) -> float:
        code = f"import time{before}; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)

    names = {
        "torch": lambda: partial(seconds, "", "torch"),
        "lrpfunc after torch": lambda: partial(seconds, ", torch", "lrpfunc"),
    }
    return Table("imports", [Case((), lambda: names)], "torch", (), unit="import")


TABLES: dict[str, Callable[[Options], Table]] = {
    "main": main,
    "overhead": overhead,
    "targets": targets,
    "batches": batches,
    "sizes": sizes,
    "lengths": lengths,
    "recurrent": recurrent,
    "checkpoint": checkpoint,
    "hoisting": hoisting,
    "transformers": transformers,
    "graphs": graphs,
    "trace": trace,
    "dataset": dataset,
    "import": imports,
}
