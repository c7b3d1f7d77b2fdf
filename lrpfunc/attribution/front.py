"""From a module to an explanation in one call, for whoever does not need the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lrpfunc.attribution.explanations import Prepared, attribute, prepare
from lrpfunc.attribution.targets import Target
from lrpfunc.canonizers import Canonical, canonize
from lrpfunc.composites import Entries, suggest
from lrpfunc.tracing import functionalize


def relevance(model: nn.Module, x, rules: Entries = None, target: Target = None):
    """The relevance of the inputs of a module, in the structure of `x` and in units of the explained output.

    `canonical = canonize(*functionalize(model, x))`, then `attribute(canonical.fmodel, canonical.params, x, rules,
    target)`. Tracing takes longer than explaining: for several calls see `explainer`.

    Args:
        model: a module in evaluation mode.
        x: one tensor, a tuple of inputs, or a dict of keyword inputs.
        rules: a composite, a mapping {name pattern: rule} or one rule. By default the preset that suits what the model
            is made of; `print(lrpfunc.explain(fmodel))` says which and why.
        target: None (arg-max), an int, an index tensor, a tuple, a list per sample, or a function output -> relevance.

    Errors: `TraceError`, `CanonizeError`, and those of `attribute`.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU())
    >>> _ = model[0].weight.data.copy_(torch.tensor([[2.0, 0.0], [1.0, -1.0]]))
    >>> lrpfunc.relevance(model, torch.tensor([[1.0, 3.0]]), lrpfunc.rules.epsilon(0))
    tensor([[2., 0.]])
    """
    canonical = _canonical(model, x)
    return attribute(canonical.fmodel, canonical.params, _given(x), _chosen(canonical, rules), target)


def explainer(model: nn.Module, x, rules: Entries = None) -> Prepared:
    """What explains a module again and again: `explain(x, target)`, and all else that `prepare` returns.

    `canonical = canonize(*functionalize(model, x))`, then `prepare(canonical.fmodel, canonical.params, rules)`. Make it
    anew when the module's parameters have changed in place: of some it has copies, and explains neither the old model
    nor the new one.

    Args:
        model: a module in evaluation mode.
        x: example inputs, as `relevance` takes them. Batches may have any size later.
        rules: as `relevance` takes them.

    Errors: `TraceError`, `CanonizeError`, `RuleError`.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 4))
    >>> explain = lrpfunc.explainer(model, torch.ones(1, 2))
    >>> explain(torch.randn(8, 2), target=3).shape
    torch.Size([8, 2])
    >>> print(lrpfunc.explain(explain.fmodel))
    composites.epsilon(): its layers are dense ones, without attention.
      name  kind        operation  input       output      rule
      0     dense       linear     (batch, 2)  (batch, 3)  epsilon(1e-06)
      1     activation  relu       (batch, 3)  (batch, 3)  pass_through()
      2     dense       linear     (batch, 3)  (batch, 4)  epsilon(1e-06)
    """
    canonical = _canonical(model, x)
    return prepare(canonical.fmodel, canonical.params, _chosen(canonical, rules))


def _canonical(model: nn.Module, x) -> Canonical:
    given = _given(x)
    if isinstance(given, dict):
        return canonize(*functionalize(model, **given))
    return canonize(*functionalize(model, *(given if type(given) is tuple else (given,))))


def _given(x) -> Any:
    """The inputs; what a tokenizer returns is a mapping, but no dict."""
    return dict(x) if isinstance(x, Mapping) else x


def _chosen(canonical: Canonical, rules: Entries) -> Entries:
    return suggest(canonical.fmodel).composite if rules is None else rules
