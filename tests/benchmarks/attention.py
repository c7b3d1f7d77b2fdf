"""Transformers: lrpfunc's AttnLRP and CP-LRP beside LXT's, which need an environment and processes of their own."""

import functools
import json
import os
import subprocess
import tempfile
import weakref
from functools import partial
from pathlib import Path

import torch
from torch import nn

import lrpfunc
from lrpfunc import circuits, text
from tests.benchmarks import contenders, networks
from tests.benchmarks.contenders import NotEntered, Question
from tests.benchmarks.measure import Call, SetUp

COMPOSITES = ("attn_lrp", "cp_lrp", "attn_lrp_gamma")
LXT, LXT_GRADIENT = "LXT", "LXT's gradient"
KEPT, FITS, BEARABLE = 32, 8192, 512  # edges of a token; the most tokens with all edges; and with pullbacks
ROOT = Path(__file__).parents[2]


def line_up(
    name: str, size: int, batch: int, composite: str, device: torch.device, compile: bool, lxt: Path | None
) -> dict[str, SetUp]:
    """`lxt`: the Python of LXT's environment. There the gradient has a process to itself, as LXT's patches stay."""
    question = ask(name, size, batch, composite, device)
    own = {"gradient": gradient, "lrpfunc": contenders.attribute, "prepared": contenders.prepared}
    if compile:
        own["compiled"] = contenders.compiled
    what = (name, str(size), str(batch), str(device), str(torch.get_num_threads()))
    others = {LXT_GRADIENT: "gradient", LXT: composite}
    return {
        **{key: partial(set_up, question, contender) for key, contender in own.items()},
        **{key: partial(elsewhere, lxt, method, *what) for key, method in others.items()},
    }


def graphs(name: str, size: int, batch: int, device: torch.device) -> dict[str, SetUp]:
    """The graph of tokens, all edges or the strongest, and by batched pullbacks, beside the input's gradient and
    relevance."""
    composite = lrpfunc.composites.attn_lrp()

    @functools.cache
    def question() -> Question:
        return ask(name, size, batch, "attn_lrp", device)

    def entered(contender: contenders.Contender) -> Call:
        _refuse(name in networks.LARGE and device.type == "cpu", f"{name} is for a GPU")
        return set_up(question(), contender)

    def found(longest: int, method: str | None = None, keep: int | None = None) -> Call:
        _refuse(size > longest, f"more than {longest} tokens take too long, or too much memory")
        _refuse(name in networks.LARGE and device.type == "cpu", f"{name} is for a GPU")
        asked = question()
        return partial(circuits.graph, *asked.canonical, asked.x, asked.classes, composite, method=method, keep=keep)

    return {
        "gradient": partial(entered, gradient),
        "attribute": partial(entered, contenders.attribute),
        f"keep={KEPT}": partial(found, 10**6, None, KEPT),
        "closed": partial(found, FITS, "closed"),
        "pullbacks": partial(found, BEARABLE, "pullbacks"),
    }


def _refuse(when: bool, reason: str) -> None:
    """Errors: `NotEntered`."""
    if when:
        raise NotEntered(reason)


def set_up(question: Question, contender: contenders.Contender) -> Call:
    return partial(contender(question), question.classes)


def ask(name: str, size: int, batch: int, composite: str, device: torch.device) -> Question:
    """A question about random input: why the token at the last position, or why the class?"""
    model, *program = network(name, size, batch, device)
    x = {key: tensor.to(device) for key, tensor in networks.inputs(name, size, batch).items()}
    target = text.token(networks.TOKEN) if name in networks.LLAMAS else networks.CLASS
    return Question(name, model, tuple(program), composite, x, target)


@functools.lru_cache(maxsize=1)
def network(name: str, size: int, batch: int, device: torch.device) -> tuple[nn.Module, lrpfunc.Program, dict]:
    model = networks.build(name, size, device)
    x = {key: tensor.to(device) for key, tensor in networks.inputs(name, size, batch).items()}
    return model, *lrpfunc.functionalize(model, **x)


def gradient(question: Question):
    """The gradient by torch.autograd, of the module as it is."""
    return lambda target: networks.gradient(question.model, question.x)


# -- processes --------------------------------------------------------------------------------------------------------


def elsewhere(lxt: Path | None, method: str, *what: str) -> Call:
    """What `lxt_side` measures: the gradient, or LXT."""
    if lxt is None:
        raise NotEntered("LXT has an environment of its own, whose Python is given by --lxt")
    if method not in ("gradient", *COMPOSITES):
        raise NotEntered(f"LXT has no {method}")
    return Elsewhere(lxt, method, *what)


class Elsewhere:
    """A call in another process, which measures itself when it is its turn and ends when nobody asks any more."""

    def __init__(self, python: Path, *arguments: str):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, "-m", "tests.benchmarks.lxt_side", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},  # where tests/lxt_reference.py finds the zoo
        )
        weakref.finalize(self, _end, self._process, self._errors)

    def __call__(self) -> float:
        return self._ask("seconds")

    def peak(self) -> list[int]:
        return self._ask("peak")

    def _ask(self, what: str):
        try:
            print(what, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            answer = ""
        else:
            answer = self._process.stdout.readline()
        if answer:
            return json.loads(answer)
        self._process.wait()
        self._errors.seek(0)
        raise ChildProcessError((self._errors.read().splitlines() or ["it said nothing"])[-1])


def _end(process: subprocess.Popen, errors) -> None:
    process.communicate()  # the end of its input is the end of the process
    errors.close()
