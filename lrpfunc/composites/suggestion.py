"""Which preset suits a model, by what it is made of."""

from collections import Counter
from typing import NamedTuple

from lrpfunc import rules
from lrpfunc.composites import presets
from lrpfunc.composites.combinators import Composite, first_layer
from lrpfunc.operations import (
    ATTENTION,
    BILINEAR,
    CONVOLUTION,
    DENSE,
    EMBEDDING,
    NORMALIZATION,
    PRODUCT,
    RECURRENT,
    SOFTMAX,
    Facts,
    active_equations,
    channel_axis,
    facts,
    is_convolution,
    positions,
)
from lrpfunc.program import Equation, Program


class Suggestion(NamedTuple):
    """A preset, the call that makes it, and why it was taken.

    >>> import lrpfunc, torch
    >>> fmodel, params = lrpfunc.functionalize(torch.nn.Linear(3, 4), torch.ones(2, 3))
    >>> lrpfunc.composites.suggest(fmodel).call
    'epsilon()'
    """

    composite: Composite
    call: str
    reason: str

    def __str__(self) -> str:
        return f"composites.{self.call}: {self.reason}."


def suggest(fmodel: Program) -> Suggestion:
    """The preset that suits a model: `relevance` and `explainer` take it, `explain` says which it is and why.

    `epsilon` for recurrent layers without attention, as their gates count as constants there, unless a fifth of the
    layers are convolutions; `attn_lrp` where tokens are looked up and where there is more attention than convolutions
    (a vision transformer has one, which cuts the picture into patches); `epsilon_plus_flat` where a fifth of the layers
    are convolutions, but `epsilon_plus` with `epsilon` for a first layer that reads a waveform, since a sound that
    pushes a filter up and down by turns cancels there, and neither under z+ nor flat; else `attn_lrp` where
    normalizations or products of two values are to be taken care of, and `epsilon` for dense layers.

    Args:
        fmodel: the program; the canonical one, if it is to be explained in that form.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 1, 3, 3))
    >>> print(lrpfunc.composites.suggest(fmodel))
    composites.epsilon_plus_flat(): 1 of 2 layers is a convolution.
    """
    known, equations = facts(fmodel), list(active_equations(fmodel))
    kinds = Counter(known.kind_of(equation) for equation in equations)
    attention = kinds[ATTENTION] + sum(_weighs(known, equation) for equation in equations)
    convolutions, layers = kinds[CONVOLUTION], kinds[CONVOLUTION] + kinds[DENSE]
    is_convolutional = convolutions > 0 and convolutions >= layers / 5
    if kinds[RECURRENT] and not attention and not is_convolutional:
        return Suggestion(presets.epsilon(), "epsilon()", "the gates of recurrent layers count as constants there")
    if kinds[EMBEDDING]:
        return Suggestion(presets.attn_lrp(), "attn_lrp()", "tokens are looked up in a table")
    if attention and attention >= convolutions:
        return Suggestion(presets.attn_lrp(), "attn_lrp()", f"attention is what decides ({attention} times)")
    if is_convolutional:
        verb = "is a convolution" if convolutions == 1 else "are convolutions"
        reason = f"{convolutions} of {layers} layer{'s' * (layers > 1)} {verb}"
        if heard := _reading_samples(fmodel):
            composite, named = presets.epsilon_plus(entries=heard), ", ".join(map(repr, heard))
            entries = ", ".join(f"{name!r}: rules.epsilon()" for name in heard)
            because = f"{reason}, and {named} reads a waveform, of which only what a filter answers to may count"
            return Suggestion(composite, f"epsilon_plus(entries={{{entries}}})", because)
        return Suggestion(presets.epsilon_plus_flat(), "epsilon_plus_flat()", reason)
    if kinds[NORMALIZATION] or kinds[PRODUCT] or kinds[BILINEAR]:
        return Suggestion(presets.attn_lrp(), "attn_lrp()", "it has normalizations or products of two values")
    return Suggestion(presets.epsilon(), "epsilon()", "its layers are dense ones, without attention")


def _reading_samples(fmodel: Program) -> dict[str, rules.Rule]:
    """A rule for each first layer, if all slide along one axis of what has one channel: samples of a waveform."""
    first = first_layer(rules.epsilon())(fmodel)
    slides = [_slides_along_one_axis(equation) for equation in fmodel.equations if equation.name in first]
    return dict(first) if all(slides) else {}


def _slides_along_one_axis(layer: Equation) -> bool:
    """Whether a convolution reads one channel by windows that are long in one axis alone, as (1, 64) in EEGNet."""
    if not is_convolution(layer):
        return False
    where = positions(layer)
    x, weight = (layer.arguments[place] for place in (where.input, where.weight))
    return x.shape[channel_axis(layer)] == 1 and sum(size != 1 for size in weight.shape[2:]) == 1


def _weighs(known: Facts, equation: Equation) -> bool:
    """Whether an equation is a softmax whose result weighs other values, as attention that is written out does."""
    if known.kind_of(equation) != SOFTMAX:
        return False
    readers = known.readers.get(equation.outputs[0].name, ())
    return any(known.kind_of(reader) in (BILINEAR, PRODUCT) for reader in readers)
