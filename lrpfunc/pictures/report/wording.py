"""What a page says in words: its headline, what a composite does, what was done; and names that disguise nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_DENSE = "Dense layers hand relevance on by what each input contributed, for and against;"
_TWICE = f"{_DENSE} convolutions give what spoke for their output twice the weight of what spoke against it"
_POSITIVE = f"{_DENSE} convolutions only to what spoke for their output"
_GRADIENT = "Sums need not be the {word}, as this is a kind of gradient."
IN_WORDS = {
    "epsilon": "Every layer hands relevance to its inputs by what each contributed, for and against.",
    "epsilon_plus": f"{_POSITIVE}, which makes calm maps.",
    "epsilon_plus_flat": f"{_POSITIVE}; the first layer spreads it evenly, so that maps show places, not pixels.",
    "epsilon_gamma_box": f"{_DENSE} convolutions favour what spoke for their output; the first layer takes into "
    "account which values pixels can have.",
    "epsilon_alpha2_beta1": f"{_TWICE}.",
    "epsilon_alpha2_beta1_flat": f"{_TWICE}; the first layer spreads it evenly.",
    "excitation_backprop": "Every layer hands relevance only to what spoke for its output: nothing speaks against.",
    "deconvnet": f"The gradient, of which every ReLU passes only what is positive on its way back. {_GRADIENT}",
    "guided_backprop": f"The gradient, of which active ReLUs alone pass what is positive on its way back. {_GRADIENT}",
    "beta_smooth": f"The gradient of the network with smoothed ReLUs. {_GRADIENT}",
}
# What a name may not hold: controls, what turns the direction of the text that follows, and letters that nobody sees.
_HIDDEN = [*range(0x20), *range(0x7F, 0xA0), 0x00AD, 0x061C, 0x180E, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F)]
_HIDDEN += [*range(0x2060, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)]
_VISIBLE = {code: chr(code).encode("unicode_escape").decode() for code in _HIDDEN}
DEPTH = 4  # of what is shown of details
LETTERS = 2000


def visible(text: object) -> str:
    """A name with its hidden letters shown by their numbers."""
    return str(text).translate(_VISIBLE)


def shown(value: Any, depth: int = DEPTH) -> Any:
    """Details as a page shows them: of harmless text, neither deep nor endless."""
    if isinstance(value, Mapping | list | tuple) and value:
        if depth == 0:
            return "…"
        if isinstance(value, Mapping):
            return {visible(name): shown(each, depth - 1) for name, each in value.items()}
        return [shown(each, depth - 1) for each in value]
    if not isinstance(value, str):
        return value
    text = visible(" ".join(value.split()))  # as a browser shows it
    return text if len(text) <= LETTERS else f"{text[:LETTERS]}…"


def in_words(composite: object, word: str) -> str:
    """What a composite does, and what it is measured by; nothing of one that is not known."""
    return IN_WORDS.get(str(composite), "").format(word=word)


def headline(details: Sequence[Mapping[str, Any]]) -> str:
    """What a page is about, by the details of its one or two runs."""
    composites = [_composite(each) for each in details]
    models = [_model(each) for each in details]
    if len(details) == 1:
        about = f"{composites[0]} on {models[0]}"
    elif models[0] != models[1]:
        about = f"{composites[0]} on {models[0]} beside {composites[1]} on {models[1]}"
    elif composites[0] != composites[1]:
        about = f"{composites[0]} beside {composites[1]} on {models[0]}"
    else:
        about = f"{composites[0]} on {models[0]}, twice"
        targets = [_targets(each) for each in details]
        if targets[0] != targets[1]:
            about = f"{composites[0]} on {models[0]}, {targets[0]} beside {targets[1]}"
    return visible(f"Which pixels decide? {about}")


def names(details: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells two runs apart in a few words; nothing for one."""
    if len(details) == 1:
        return [""]
    for said in (_composite, lambda each: str(each.get("weights") or ""), _model, _targets):
        found = [visible(said(each)) for each in details]
        if found[0] != found[1] and all(found):
            return found
    return ["first run", "second run"]


def _composite(details: Mapping[str, Any]) -> str:
    return str(shown(details.get("composite") or "LRP", 0))


def _model(details: Mapping[str, Any]) -> str:
    weights = details.get("weights")
    return f"{details.get('model') or 'a model'}" + (f" (weights {weights})" if weights else "")


def _targets(details: Mapping[str, Any]) -> str:
    targets = details.get("targets") or ["top"]
    return f"targets {', '.join(map(str, targets)) if isinstance(targets, list) else targets}"
