"""Who is measured: the plain gradient, lrpfunc and others, all with the same network, input and classes.

A contender takes a question and returns a function from classes to their explanation. What it does before that (copy,
canonize, register hooks, compile) is not timed.
"""

import copy
import functools
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import zennit.canonizers
import zennit.composites
import zennit.rules
import zennit.torchvision
import zennit.types
from captum.attr import LRP
from torch import Tensor, nn
from zennit.attribution import Gradient

import lrpfunc
from lrpfunc import composites
from tests.helpers import randomize
from tests.test_models import build

MLPS = {"tiny_mlp": (64, 64, 64, 20), "wide_mlp": (4096, 4096, 4096, 4096, 1000)}  # widths
STEPS = {  # recurrent networks, of which a size is a number of time steps: layer, width, how many layers
    "lstm": (nn.LSTM, 256, 2),
    "gru": (nn.GRU, 256, 2),
    "rnn": (nn.RNN, 256, 2),
    "tiny_lstm": (nn.LSTM, 8, 1),
}
PIXELS = (-2.2, 2.7)  # the range of images, normalized as ImageNet's are


def zennit_epsilon(canonizers):
    """The epsilon rule for all layers, which zennit has no composite for."""
    layers = [(zennit.types.Convolution, zennit.rules.Epsilon()), (nn.Linear, zennit.rules.Epsilon())]
    return zennit.composites.LayerMapComposite([*zennit.composites.layer_map_base(), *layers], canonizers)


COMPOSITES = {  # lrpfunc's and, where it has one, zennit's
    "epsilon": (composites.epsilon, zennit_epsilon),
    "epsilon_plus": (composites.epsilon_plus, zennit.composites.EpsilonPlus),
    "epsilon_plus_flat": (composites.epsilon_plus_flat, zennit.composites.EpsilonPlusFlat),
    "epsilon_alpha2_beta1": (composites.epsilon_alpha2_beta1, zennit.composites.EpsilonAlpha2Beta1),
    "epsilon_gamma_box": (
        partial(composites.epsilon_gamma_box, *PIXELS),
        partial(zennit.composites.EpsilonGammaBox, *PIXELS),
    ),
    "excitation_backprop": (composites.excitation_backprop, zennit.composites.ExcitationBackprop),
    "attn_lrp": (composites.attn_lrp, None),
    "cp_lrp": (composites.cp_lrp, None),
    "attn_lrp_gamma": (partial(composites.attn_lrp, gamma=0.25), None),
}


class Question(NamedTuple):
    """What is to be explained, and how. The network is in evaluation mode, its parameters need no gradients.

    `canonical`: the program and its parameters; what may follow does not matter. `x` and `classes`: what `attribute`
    takes, which for transformers is a dict and any target.
    """

    name: str
    model: nn.Module
    canonical: tuple
    composite: str
    x: Any
    classes: Any

    @property
    def arguments(self) -> tuple:
        """What `attribute`, `vjp` and `prepare` take."""
        fmodel, params, *_ = self.canonical
        return fmodel, params, COMPOSITES[self.composite][0]()


class NotEntered(Exception):
    """A contender that has no answer to a question; its cell stays empty, with this as the reason."""


Contender = Callable[[Question], Callable[[Any], Any]]


def ask(name: str, size: int, batch: int, composite: str, device: torch.device, classes: int | None = None) -> Question:
    """A question about random input. `size`: of images. `classes`: how many, if not one per sample."""
    model, canonical = network(name, size, device)
    x = torch.randn(batch, *shape(name, size), generator=torch.Generator().manual_seed(0)).to(device)
    return Question(name, model, canonical, composite, x, torch.arange(classes or batch, device=device) % 20)


@functools.lru_cache(maxsize=1)  # a VGG takes half a gigabyte, and so does each contender's copy of it
def network(name: str, size: int, device: torch.device) -> tuple[nn.Module, lrpfunc.Canonical]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = mlp if name in MLPS else Recurrent.of if name in STEPS else partial(build, size=size)
        model = own(name).to(device)
    example = torch.zeros(1, *shape(name, size), device=device)
    return model, lrpfunc.canonize(*lrpfunc.functionalize(model, example))


def shape(name: str, size: int) -> tuple[int, ...]:
    """Of a network's samples."""
    if name in MLPS:
        return MLPS[name][:1]
    return (size, STEPS[name][1]) if name in STEPS else (3, size, size)


def mlp(name: str) -> nn.Module:
    layers = [layer for pair in pairwise(MLPS[name]) for layer in (nn.Linear(*pair), nn.ReLU())]
    return randomize(nn.Sequential(*layers[:-1])).requires_grad_(False)


class Recurrent(nn.Module):
    """A recurrent network that says at the last step what the sequence is."""

    def __init__(self, layer: type[nn.RNNBase], width: int, layers: int):
        super().__init__()
        self.steps = layer(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.steps(x)[0][:, -1])

    @classmethod
    def of(cls, name: str) -> nn.Module:
        return cls(*STEPS[name]).eval().requires_grad_(False)  # random, but as torch draws it: else it explodes


# -- the gradient -----------------------------------------------------------------------------------------------------


def gradient(question: Question):
    """The gradient of the classes' logits with respect to the input."""
    return partial(input_gradient, question.model, question.x)


def channels_last(question: Question):
    """The gradient in the memory layout in which some convolutions are faster."""
    if question.x.ndim != 4:
        raise NotEntered("only images have channels")
    model = copy.deepcopy(question.model).to(memory_format=torch.channels_last)
    return partial(input_gradient, model, question.x.contiguous(memory_format=torch.channels_last))


def input_gradient(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(model(x).gather(1, classes[:, None]).sum(), x)[0]


# -- lrpfunc ----------------------------------------------------------------------------------------------------------


def attribute(question: Question, **options):
    fmodel, params, rules = question.arguments
    return lambda classes: lrpfunc.attribute(fmodel, params, question.x, rules, classes, **options)


def prepared(question: Question):
    return partial(lrpfunc.prepare(*question.arguments), question.x)


def compiled(question: Question):
    return partial(lrpfunc.prepare(*question.arguments, compile=True), question.x)


def all_at_once(question: Question, chunk_size: int | None = None):
    """Many classes of one sample share a forward pass; their backward passes are one batch, or one per chunk."""
    fmodel, params, rules = question.arguments
    return lambda classes: lrpfunc.attribute_each(fmodel, params, question.x, rules, classes, chunk_size=chunk_size)


# -- others -----------------------------------------------------------------------------------------------------------


def by_zennit(question: Question):
    """zennit with the canonizers that it has for a network, its hooks registered once."""
    composite = COMPOSITES[question.composite][1]
    if composite is None:
        raise NotEntered(f"zennit has no {question.composite}")
    model = copy.deepcopy(question.model)
    composite(canonizers=zennit_canonizers(question.name)).register(model)
    attributor = Gradient(model)
    return lambda classes: attributor(question.x, lambda y: y * F.one_hot(classes, y.shape[-1]))[1]


def zennit_canonizers(name: str) -> list:
    if name.startswith("densenet"):
        return []  # SequentialMergeBatchNorm merges layers there that do not belong together, and fails
    if name.startswith("vgg"):
        return [zennit.torchvision.VGGCanonizer()]
    return [zennit.torchvision.ResNetCanonizer() if "resnet" in name else zennit.canonizers.SequentialMergeBatchNorm()]


def by_captum(question: Question):
    """captum's default, the epsilon rule. It is timed wherever it runs, also where its relevance is wrong: with modules
    that are called twice, and sums."""
    if question.composite != "epsilon":
        raise NotEntered("epsilon only")
    explainer = LRP(copy.deepcopy(question.model))
    x = question.x.clone().requires_grad_()
    return lambda classes: explainer.attribute(x, target=classes)


def by_autolrp(question: Question):
    """autoLRP as it comes, whose rules are no composite of ours: beside epsilon, or attn_lrp for attention."""
    if question.composite not in ("epsilon", "attn_lrp"):
        raise NotEntered("its own rules only")
    try:
        import autolrp
    except ImportError:
        raise NotEntered("not installed: pip install autolrp") from None
    model = copy.deepcopy(question.model)

    def explain(classes: Tensor) -> Tensor:
        x = autolrp.tensor(question.x)
        model(x).gather(1, classes[:, None]).sum().lrp()
        return x.relevance

    return explain


def one_by_one(contender: Contender) -> Contender:
    """Many classes of one sample, each in a call of its own."""

    def together(question: Question):
        explain = contender(question)
        return lambda classes: torch.cat([explain(one) for one in classes.split(1)])

    return together


CONTENDERS: dict[str, Contender] = {
    "gradient": gradient,
    "channels_last": channels_last,
    "lrpfunc": attribute,
    "prepared": prepared,
    "zennit": by_zennit,
    "captum": by_captum,
    "autolrp": by_autolrp,
}
