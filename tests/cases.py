"""The table of the laws: networks, and the cases, one row for each composite or rule on a network.

A law (`tests/test_laws.py`, `tests/test_compiling.py`) is a function of a case; `law` has it run for every row. So a
new composite or rule is one more row here, and no test of its own for what holds for all.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrpfunc
from lrpfunc import composites, rules
from tests import transformer_zoo
from tests.helpers import branches, randomize

# -- networks: each a factory of a new module and of samples (batch, ...); logits (batch, classes) come out ------------


class Layers(nn.Module):
    """A layer of each kind and nothing else: where each output has terms of both signs, every rule conserves."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2)
        self.transposed = nn.ConvTranspose2d(32, 8, 3, stride=2)
        self.linear = nn.Linear(8 * 5 * 5, 5)

    def forward(self, x):
        return self.linear(self.transposed(self.conv(x)).flatten(1))


class Convolutional(nn.Module):
    """The smallest network with all that image presets have rules for."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.second = nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        x = self.first(x).relu()
        x = F.max_pool2d(self.second(x) + x, 2)
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Two layers, for inductor."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.first(x).relu())


class Attending(nn.Module):
    """The smallest network with all that presets for transformers have rules for."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.query, self.gate, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.norm(x)
        x = F.scaled_dot_product_attention(self.query(h), h, h) + x
        return self.head(F.silu(self.gate(x)) * x)[:, -1]


class Recurrent(nn.Module):
    """Recurrent layers with gates, one of them in both directions."""

    def __init__(self):
        super().__init__()
        self.first, self.then = nn.LSTM(3, 2, batch_first=True, bidirectional=True), nn.GRU(4, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.then(self.first(x)[0])[0][:, -1])


class Steps(nn.Module):
    """The smallest network with a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.steps, self.head = nn.LSTM(2, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.steps(x)[0][:, -1])


class Logits(nn.Module):
    """A transformer of the zoo as a function from one tensor to the logits of its last token."""

    def __init__(self, name: str):
        super().__init__()
        self.model = transformer_zoo.build(name, layers=1)
        (self.argument,) = transformer_zoo.inputs(name)

    def forward(self, x):
        output = self.model(**{self.argument: x})
        return output if isinstance(output, Tensor) else output.logits[:, -1]


Made = tuple[nn.Module, Tensor]


def _random(network: Callable[[], nn.Module], *shape: int) -> Made:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize(network()), torch.randn(shape)


def _from_zoo(name: str) -> Made:
    if name != "torchvision_vit":
        pytest.importorskip("transformers")
    (x,) = transformer_zoo.inputs(name).values()
    return Logits(name).eval(), x


NETWORKS: dict[str, Callable[[], Made]] = {
    "branches": lambda: branches(True, dtype=torch.float32),
    "layers": lambda: _random(Layers, 2, 16, 4, 4),
    "convolutional": lambda: _random(Convolutional, 2, 1, 4, 4),
    "dense": lambda: _random(Dense, 2, 4),
    "attending": lambda: _random(Attending, 2, 3, 4),
    "recurrent": lambda: _random(Recurrent, 2, 3, 3),
    "steps": lambda: _random(Steps, 2, 2, 2),
    "llama": lambda: _from_zoo("llama"),
    "torchvision_vit": lambda: _from_zoo("torchvision_vit"),
}

# What torch runs by kernels of its own, from which programs differ by rounding.
BY_KERNELS = ("recurrent", "steps")

# Parameters that are added to values. They keep their share, so that relevance is conserved where they are zero.
ADDED = ("bias", "pos_embedding", "class_token", *(f"bias_{of}h_l0{way}" for of in "ih" for way in ("", "_reverse")))


class Subject(NamedTuple):
    """A network as a program, its parameters and samples, both in float64."""

    fmodel: lrpfunc.Program
    params: dict[str, Tensor]
    x: Tensor


@functools.cache
def subject(network: str, bias: bool = True) -> Subject:
    """Traced once a process. In float32, as Llama's normalization would cast to that from anything else."""
    if not bias:
        fmodel, params, x = subject(network)
        return Subject(fmodel, {name: p * 0 if name.endswith(ADDED) else p for name, p in params.items()}, x)
    model, x = NETWORKS[network]()
    fmodel, params = lrpfunc.functionalize(model, x)
    return Subject(fmodel, in_float64(params), x.double())


def in_float64(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.double() if p.is_floating_point() else p for name, p in params.items()}


# -- cases ------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A row of the table: what explains which network.

    `exact`: the same with stabilizers that take nothing, for conservation. `breaks`: the laws that do not hold, and why
    not; their tests must fail. `slow`: the laws that only `pytest -m slow` has for this row ("*": all), because other
    rows have the same rules, or a smaller network.
    """

    network: str
    name: str
    rules: composites.Entries
    exact: composites.Entries = None
    breaks: Mapping[str, str] = {}
    slow: tuple[str, ...] = ()

    @property
    def subject(self) -> Subject:
        return subject(self.network)

    def relevance(self, params: Mapping[str, Tensor], x: Tensor, target: int | Tensor | None = 1) -> Tensor:
        return lrpfunc.attribute(self.subject.fmodel, params, x, self.rules, target)


CONSERVATION = "relevance_is_conserved_at_every_equation"
NO_SHARE = {CONSERVATION: "a gradient is no share of anything"}
NO_NEGATIVE_TERMS = {CONSERVATION: "beta's share is lost where an output has no negative terms, as behind ReLUs"}
SOFTMAX = {CONSERVATION: "a softmax has its Jacobian, which is no share"}
GUIDED = NO_SHARE | {"bfloat16_is_finite_and_near_the_exact_result": "rounding turns signs, and a sign decides"}

TRACES = ("make_fx_gives_the_eager_result", "torch_export_gives_the_eager_result")
ALL = ("*",)

TINY = 1e-14  # of a stabilizer that takes nothing
BOX = (-3.0, 3.0)


def _first(rule: rules.Rule, *stabilizers: float) -> composites.Composite:
    return composites.epsilon_plus(*stabilizers, entries=composites.first_layer(rule))


CASES = [
    # composites for images
    Case("branches", "epsilon", composites.epsilon(1e-2), composites.epsilon(TINY)),
    Case("branches", "epsilon_plus", composites.epsilon_plus(), composites.epsilon_plus(TINY, TINY), slow=TRACES),
    Case("branches", "epsilon_plus_flat", composites.epsilon_plus_flat(), composites.epsilon_plus_flat(TINY, TINY)),
    Case(
        "branches", "epsilon_gamma_box",
        composites.epsilon_gamma_box(*BOX), composites.epsilon_gamma_box(*BOX, TINY, stabilizer=TINY),
    ),
    Case("branches", "epsilon_alpha2_beta1", composites.epsilon_alpha2_beta1(), breaks=NO_NEGATIVE_TERMS),
    Case(
        "branches", "epsilon_alpha2_beta1_flat",
        composites.epsilon_alpha2_beta1_flat(), breaks=NO_NEGATIVE_TERMS, slow=TRACES,
    ),
    Case(
        "branches", "excitation_backprop",
        composites.excitation_backprop(), composites.excitation_backprop(TINY), slow=TRACES,
    ),
    Case("branches", "wsquare", _first(rules.wsquare()), _first(rules.wsquare(TINY), TINY, TINY)),
    Case("branches", "deconvnet", composites.deconvnet(), breaks=NO_SHARE),
    Case("branches", "guided_backprop", composites.guided_backprop(), breaks=GUIDED),
    Case("branches", "beta_smooth", composites.beta_smooth(), breaks=NO_SHARE),
    # rules, each for all layers
    Case("layers", "epsilon", rules.epsilon(), rules.epsilon(TINY), slow=TRACES),
    Case("layers", "zplus", rules.zplus(), rules.zplus(TINY), slow=TRACES),
    Case("layers", "alpha_beta(2, 1)", rules.alpha_beta(2, 1), rules.alpha_beta(2, 1, TINY), slow=TRACES),
    Case("layers", "alpha_beta(1.5, 0.5)", rules.alpha_beta(1.5, 0.5), rules.alpha_beta(1.5, 0.5, TINY), slow=TRACES),
    Case("layers", "gamma", rules.gamma(), rules.gamma(0.25, TINY), slow=TRACES),
    Case("layers", "zbox", rules.zbox(-40.0, 40.0), rules.zbox(-40.0, 40.0, TINY), slow=TRACES),
    Case("layers", "wsquare", rules.wsquare(), rules.wsquare(TINY), slow=TRACES),
    Case("layers", "flat", rules.flat(), rules.flat(TINY), slow=TRACES),
    # composites for transformers
    Case("attending", "attn_lrp", composites.attn_lrp(), breaks=SOFTMAX),
    Case("attending", "cp_lrp", composites.cp_lrp(), slow=TRACES),
    Case("attending", "attn_lrp(gamma)", composites.attn_lrp(gamma=0.25), breaks=SOFTMAX, slow=TRACES),
    # recurrent layers
    Case("recurrent", "epsilon", composites.epsilon(), composites.epsilon(TINY)),
    Case("recurrent", "attn_lrp", composites.attn_lrp(), slow=TRACES),
    Case("llama", "attn_lrp", composites.attn_lrp(), breaks=SOFTMAX, slow=TRACES),
    Case("llama", "cp_lrp", composites.cp_lrp(), slow=ALL),
    Case("llama", "attn_lrp(gamma)", composites.attn_lrp(gamma=0.25), breaks=SOFTMAX, slow=ALL),
    Case("torchvision_vit", "attn_lrp", composites.attn_lrp(), breaks=SOFTMAX, slow=ALL),
    Case("torchvision_vit", "cp_lrp", composites.cp_lrp(), slow=ALL),
    Case("torchvision_vit", "attn_lrp(gamma)", composites.attn_lrp(gamma=0.25), breaks=SOFTMAX, slow=ALL),
]  # fmt: skip


def law(test: Callable) -> Callable:
    """Have a test run for every case. Where the case says that the law does not hold, it must fail."""
    name = test.__name__.removeprefix("test_")
    return pytest.mark.parametrize("case", [_row(case, name) for case in CASES])(test)


def _row(case: Case, law: str):
    marks = []
    if reason := case.breaks.get(law):
        marks.append(pytest.mark.xfail(reason=reason, raises=AssertionError, strict=True))
    if law in case.slow or case.slow == ALL:
        marks.append(pytest.mark.slow)
    return pytest.param(case, marks=marks, id=f"{case.network}-{case.name}")
