"""`lrpfunc check`: what must hold of every explanation, tried here: with this torch, on this device.

Each law needs no other library to compare with: a gradient of torch, a sum, or another way to the same result. All but
the last are computed in float64 where the device has it, so that rounding is told from what is wrong.
"""

from __future__ import annotations

import copy
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lrpfunc
from lrpfunc import composites, digits, rules
from lrpfunc.pictures.explainers import device_named
from lrpfunc.pictures.tables import print_table

if TYPE_CHECKING:
    from rich.console import Console

ROUNDING: Mapping[torch.dtype, float] = {torch.float64: 1e-9, torch.float32: 1e-3}
SINGLE = 1e-2  # of float32 beside float64; a GPU may round factors to ten bits (TF32)
NO_FLOAT64 = ("mps",)
COUNT = 10  # digits, one of each class


class Law(NamedTuple):
    """What must hold: a sentence, how far a subject is from it, and how far it may be: `None` for rounding."""

    text: str
    measure: Callable[[Subjects], float]
    allowed: float | None = None


class Finding(NamedTuple):
    """How far from a law: relative to the largest value, or why that cannot be said. `allowed` is the most that is."""

    text: str
    deviation: float
    allowed: float
    error: str = ""

    @property
    def holds(self) -> bool:
        return not self.error and self.deviation <= self.allowed  # which nan is not


class Result(NamedTuple):
    """The findings, one a law, and the words for where they are from."""

    findings: Sequence[Finding]
    where: str

    @property
    def holds(self) -> bool:
        return all(finding.holds for finding in self.findings)


def run(device: str = "cpu") -> Result:
    """Try all laws on a device, in a few seconds. Errors: `ModelError` for a device that is not there.

    >>> from lrpfunc.pictures import selfcheck
    >>> selfcheck.run().holds
    True
    """
    where = device_named(device)
    dtype = torch.float32 if where.type in NO_FLOAT64 else torch.float64
    with torch.random.fork_rng(devices=[]), digits.single_thread():
        torch.default_generator.manual_seed(0)  # the CPU's alone
        subjects = Subjects(where, dtype)
        return Result([_finding(law, subjects) for law in LAWS], _words(where, dtype))


def _finding(law: Law, subjects: Subjects) -> Finding:
    allowed = ROUNDING[subjects.dtype] if law.allowed is None else law.allowed
    try:
        return Finding(law.text, law.measure(subjects), allowed)
    except Exception as error:  # whatever it is, the other laws are of interest too
        first = (str(error).splitlines() or [""])[0]
        return Finding(law.text, float("nan"), allowed, f"{type(error).__name__}: {first}")


def _words(device: torch.device, dtype: torch.dtype) -> str:
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return (
        f"lrpfunc {lrpfunc.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, device {device}{name}, {str(dtype).removeprefix('torch.')}"
    )


# -- what the laws are tried on ---------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """A module, inputs (N, ...), its program and its parameters."""

    module: nn.Module
    x: Tensor
    fmodel: lrpfunc.Program
    params: Any

    def relevance(self, entries: Any, target: Any = None) -> Tensor:
        return lrpfunc.attribute(self.fmodel, self.params, self.x, entries, target)


class Subjects:
    """The networks, made when a law first asks for them, so that one that cannot be made fails its own laws alone."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    @cached_property
    def digits(self) -> Subject:
        """The shipped network: convolutions with batch norms, a residual sum, both kinds of pooling, biases."""
        return self.traced(*_digits())

    @cached_property
    def plain(self) -> Subject:
        """A ReLU network without biases."""
        layers = [
            nn.Conv2d(1, 4, 3, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(36, 5, bias=False),
        ]
        return self.traced(nn.Sequential(*layers), _digits()[1])

    @cached_property
    def attending(self) -> Subject:
        """One attention without biases."""
        return self.traced(Attending(), torch.rand(3, 5, 8) - 0.5)

    def traced(self, module: nn.Module, x: Tensor) -> Subject:
        module, x = module.to(self.device, self.dtype).eval(), x.to(self.device, self.dtype)
        return Subject(module, x, *lrpfunc.functionalize(module, x))


class Attending(nn.Module):
    """Logits (N, 4) of tokens (N, tokens, 8): attention with two heads, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.head = nn.Linear(8, 24, bias=False), nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.inward(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


def _digits() -> tuple[nn.Module, Tensor]:
    """The network, and digits on paper that is not quite blank, so that max-pooling has no ties to break."""
    model, images, _ = digits.load()
    noise = torch.rand(images[:COUNT].shape, generator=torch.Generator().manual_seed(0))
    return model, images[:COUNT] + 0.1 * noise


def deviation(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value that is expected."""
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    return difference / largest if largest else difference


# -- the laws ---------------------------------------------------------------------------------------------------------


def program_is_the_module(subjects: Subjects) -> float:
    _, x, fmodel, params = subject = subjects.digits
    return deviation(fmodel(params, x), subject.module(x))


def lrp_0_is_input_times_gradient(subjects: Subjects) -> float:
    subject = subjects.plain
    x = subject.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(subject.module(x)[:, 1].sum(), x)
    return deviation(subject.relevance(rules.epsilon(0), 1), subject.x * gradient)


def relevance_is_conserved(subjects: Subjects) -> float:
    """Under each rule that conserves, alone in the layers of the network; the rest passes on."""
    subject = subjects.plain
    conserving = (
        rules.epsilon(0),
        rules.zplus(0),
        rules.alpha_beta(2, 1, 0),
        rules.gamma(0.25, 0),
        rules.wsquare(0),
        rules.flat(0),
        rules.zbox(-1, 2, 0),
    )
    logit = subject.module(subject.x)[:, 1]
    totals = (subject.relevance(_in_layers(rule), 1).flatten(1).sum(1) for rule in conserving)
    return max(deviation(total, logit) for total in totals)


def _in_layers(rule: rules.Rule) -> composites.Composite:
    return composites.by_kind({"convolution": rule, "dense": rule, "activation": rules.pass_through()})


def attention_conserves(subjects: Subjects) -> float:
    subject = subjects.attending
    total = subject.relevance(composites.cp_lrp(epsilon=0), 1).flatten(1).sum(1)
    return deviation(total, subject.module(subject.x)[:, 1])


def ledger_adds_up(subjects: Subjects) -> float:
    """With biases and stabilizers: what does not arrive was absorbed by an equation that says so."""
    _, x, fmodel, params = subjects.digits
    account = lrpfunc.ledger(fmodel, params, x, composites.epsilon_plus_flat(), 1)
    return abs(account.arrived + account.absorbed - account.seed) / abs(account.seed)


def batch_is_its_samples(subjects: Subjects) -> float:
    _, x, fmodel, params = subject = subjects.digits
    entries = composites.epsilon_plus_flat()
    alone = [lrpfunc.attribute(fmodel, params, sample[None], entries, 1) for sample in x]
    return deviation(torch.cat(alone), subject.relevance(entries, 1))


def vmap_is_the_loop(subjects: Subjects) -> float:
    """Over samples, and over the targets of one forward pass."""
    _, x, fmodel, params = subject = subjects.digits
    entries = composites.epsilon_gamma_box(0.0, 1.1)
    loop = torch.stack([subject.relevance(entries, target) for target in range(3)])
    mapped = torch.func.vmap(lambda one: lrpfunc.attribute(fmodel, params, one[None], entries, 2)[0])(x)
    each = lrpfunc.attribute_each(fmodel, params, x, entries, range(3))
    return max(deviation(each, loop), deviation(mapped, loop[2]))


def prepared_is_attribute(subjects: Subjects) -> float:
    _, x, fmodel, params = subject = subjects.digits
    entries = composites.epsilon_alpha2_beta1()
    return deviation(lrpfunc.prepare(fmodel, params, entries)(x, 1), subject.relevance(entries, 1))


def canonizing_keeps_the_function(subjects: Subjects) -> float:
    _, x, fmodel, params = subject = subjects.digits
    canonical = lrpfunc.canonize(fmodel, params)
    return deviation(canonical.fmodel(canonical.params, x), subject.module(x))


def restore_is_exact(subjects: Subjects) -> float:
    _, _, fmodel, params = subjects.digits
    canonical = lrpfunc.canonize(fmodel, params)
    return _difference(canonical.restore(canonical.params), params)


def nothing_is_mutated(subjects: Subjects) -> float:
    module, x, fmodel, params = subjects.digits
    before = copy.deepcopy(({**module.state_dict()}, {**params}, {"x": x}))
    lrpfunc.relevance(module, x)
    lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus())
    return max(map(_difference, (module.state_dict(), params, {"x": x}), before))


def loaded_is_saved(subjects: Subjects) -> float:
    _, x, fmodel, params = subjects.digits
    canonical = lrpfunc.canonize(fmodel, params)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.safetensors"
        lrpfunc.save(path, canonical)
        loaded = lrpfunc.load(path, subjects.device)
    entries = composites.epsilon_plus_flat()
    found, expected = (lrpfunc.attribute(one.fmodel, one.params, x, entries, 1) for one in (loaded, canonical))
    return max(deviation(found, expected), _difference(loaded.params, canonical.params))


def single_precision_is_near(subjects: Subjects) -> float:
    """float32 on the device beside float64 on the CPU."""
    places = (Subjects(subjects.device, torch.float32), Subjects(torch.device("cpu"), torch.float64))
    found, expected = (place.digits.relevance(composites.epsilon_plus_flat(), 1).cpu() for place in places)
    return deviation(found.double(), expected)


def _difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """0 for tensors that are equal bit for bit, else the largest difference."""
    if found.keys() != expected.keys():
        return float("inf")
    return max((found[name].double() - expected[name].double()).abs().max().item() for name in expected)


LAWS = (
    Law("a program computes what its module computes", program_is_the_module),
    Law("LRP-0 without biases is input times gradient", lrp_0_is_input_times_gradient),
    Law("without biases, relevance sums to the logit", relevance_is_conserved),
    Law("so it does behind attention (CP-LRP)", attention_conserves),
    Law("with biases, the ledger adds up", ledger_adds_up),
    Law("a batch equals its samples", batch_is_its_samples),
    Law("vmap over samples and targets equals the loop", vmap_is_the_loop),
    Law("a prepared explanation equals attribute", prepared_is_attribute),
    Law("canonizing keeps the function", canonizing_keeps_the_function),
    Law("restore gives the parameters back, bit for bit", restore_is_exact, 0.0),
    Law("module, parameters and input stay as they were", nothing_is_mutated, 0.0),
    Law("what is saved and loaded explains the same", loaded_is_saved),
    Law("float32 is near float64 on the CPU", single_precision_is_near, SINGLE),
)


# -- what people see --------------------------------------------------------------------------------------------------


def table(result: Result, console: Console) -> None:
    """Print where the laws were tried, a line for each, and how it ended."""
    from rich.text import Text

    verdicts = {True: Text("ok", style="green"), False: Text("FAILED", style="red")}
    rows = [(one.text, f"{one.deviation:.1e}", f"{one.allowed:.0e}", verdicts[one.holds]) for one in result.findings]
    console.print(Text(result.where))
    print_table(console, ("law", "deviation", "allowed", ""), rows, numbers=("deviation", "allowed"))
    for one in result.findings:
        if one.error:
            console.print(Text(f"{one.text}: {one.error}", style="red"))
    failed = sum(not one.holds for one in result.findings)
    console.print(f"{failed} of {len(result.findings)} laws do not hold" if failed else "all laws hold")
