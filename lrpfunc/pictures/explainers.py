"""A classifier under a composite: inputs and wanted classes in, predictions and relevance out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import lrpfunc
from lrpfunc import composites
from lrpfunc.attribution import Prepared
from lrpfunc.canonizers import Report
from lrpfunc.composites import Composite
from lrpfunc.errors import ModelError, TargetError, TraceError, near_misses
from lrpfunc.pictures import DEFAULT_COMPOSITE
from lrpfunc.pictures.classifiers import Classifier, named_object
from lrpfunc.pictures.hdf5 import UNKNOWN
from lrpfunc.pictures.methods import METHODS, Explained
from lrpfunc.pictures.outputs import BINARY, NOT, Meaning, rows, settle
from lrpfunc.pictures.traces import traced
from lrpfunc.program import Program

COMPOSITES: Mapping[str, Callable[[Classifier], Composite]] = {
    "epsilon": lambda classifier: composites.epsilon(),
    "epsilon_plus": lambda classifier: composites.epsilon_plus(),
    "epsilon_plus_flat": lambda classifier: composites.epsilon_plus_flat(),
    "epsilon_gamma_box": lambda classifier: composites.epsilon_gamma_box(*classifier.input_range()),
    "epsilon_alpha2_beta1": lambda classifier: composites.epsilon_alpha2_beta1(),
    "epsilon_alpha2_beta1_flat": lambda classifier: composites.epsilon_alpha2_beta1_flat(),
    "excitation_backprop": lambda classifier: composites.excitation_backprop(),
    "deconvnet": lambda classifier: composites.deconvnet(),
    "guided_backprop": lambda classifier: composites.guided_backprop(),
    "beta_smooth": lambda classifier: composites.beta_smooth(),
}
GRADIENTS = ("deconvnet", "guided_backprop", "beta_smooth")
TOP, LABEL, CLASS = "top", "label", "class"


class Wanted(NamedTuple):
    """A class to explain: the one at a rank of the prediction (from 0), the sample's label, or always the same one."""

    kind: str
    number: int = 0

    def of(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The choices (N,) for their scores (N, K) and labels (N,)."""
        if self.kind == TOP:
            return scores.argsort(dim=1, descending=True, stable=True)[:, self.number]
        if self.kind == LABEL:
            return labels
        return torch.full_like(labels, self.number)


class Attributions(NamedTuple):
    """Outputs (N, O), explained choices (N, T) and their relevance (N, T, C, H, W)."""

    prediction: Tensor
    target: Tensor
    relevance: Tensor


@dataclass(frozen=True)
class Explainer:
    """A classifier, traced, canonized and prepared under a composite; `explainer` makes it.

    `meaning`: of its outputs. `outputs`: how many there are. `names`: of what can be explained, or none. `notes`: what
    people should know of how the model was understood.
    `is_gradient`: the composite is a kind of gradient, so that what enters at the output is one and not the logit, for
    which negative logits would turn the picture into that of the opposite. `method`: what explains instead of LRP.
    """

    classifier: Classifier
    program: Program
    params: Mapping[str, Tensor]
    report: Report | None
    rules: Composite
    prepared: Prepared
    meaning: Meaning
    outputs: int
    names: tuple[str, ...]
    device: torch.device
    is_gradient: bool = False
    notes: tuple[str, ...] = ()
    method: str | None = None

    @property
    def choices(self) -> int:
        """How many things can be explained."""
        return self.meaning.choices(self.outputs)

    def name(self, choice: int) -> str:
        """What a choice is called."""
        return self.meaning.name(choice, self.names)

    def targets(self, texts: Sequence[str]) -> list[str]:
        """What is explained unless told: the highest; of one logit, the class that it is of, whether likely or not."""
        return list(texts) or (["1"] if self.meaning.kind == BINARY else [TOP])

    def wanted(self, texts: Sequence[str], with_labels: bool = False) -> list[Wanted]:
        """What to explain, see `targets` and `wanted_classes`, which has the errors."""
        names = self.names or ((NOT, "1") if self.meaning.kind == BINARY else ())
        return wanted_classes(self.targets(texts), names, self.choices, with_labels)

    def attribute(self, x: Tensor, wanted: Sequence[Wanted], labels: Tensor | None = None) -> Attributions:
        """The relevance of inputs (N, C, H, W) by one forward pass, on the CPU. `labels`: (N,), -1: unknown."""
        x = x.to(self.device)
        if self.method is not None:
            return self._by_method(x, wanted, labels)
        known = torch.full((len(x),), UNKNOWN, device=self.device) if labels is None else labels.to(self.device)
        trail = self.prepared.record(x, once=len(wanted) == 1)
        outputs = rows(trail.output, self.classifier.name)
        scores = self.meaning.scores(outputs)
        targets = [one.of(scores, known) for one in wanted]
        seeds = [self.meaning.seed(outputs, target, self.is_gradient) for target in targets]
        relevance = torch.stack([trail.pull(seed.reshape(trail.output.shape))[0] for seed in seeds], dim=1)
        return Attributions(outputs.cpu(), torch.stack(targets, dim=1).cpu(), relevance.cpu())

    def _by_method(self, x: Tensor, wanted: Sequence[Wanted], labels: Tensor | None) -> Attributions:
        known = torch.full((len(x),), UNKNOWN, device=self.device) if labels is None else labels.to(self.device)
        outputs = rows(self.program(self.params, x), self.classifier.name)
        scores = self.meaning.scores(outputs)
        targets = [one.of(scores, known) for one in wanted]
        maps = [METHODS[str(self.method)](self._explained(outputs, target), x) for target in targets]
        return Attributions(outputs.cpu(), torch.stack(targets, dim=1).cpu(), torch.stack(maps, dim=1).cpu())

    def _explained(self, outputs: Tensor, target: Tensor) -> Explained:
        """The score of a choice as a function of the input, and its gradient."""
        cotangent = self.meaning.seed(outputs, target, is_gradient=True)

        def score(x: Tensor) -> Tensor:
            return (rows(self.program(self.params, x), self.classifier.name) * cotangent).sum(1)

        return Explained(torch.func.grad(lambda x: score(x).sum()), score)


def explainer(
    classifier: Classifier,
    example: Tensor,
    composite: str = DEFAULT_COMPOSITE,
    canonize: bool = True,
    device: str = "cpu",
) -> Explainer:
    """A classifier made ready to explain inputs like `example` (1, C, H, W).

    `composite`: the name of one, one of the user's own, or a method of METHODS.
    Errors: `ModelError` for an unknown composite or device, if the model cannot be traced, as with an input of a wrong
    size, if it does not give a row of numbers for each input, and as `outputs.settle`.
    """
    where = device_named(device)
    method = composite if composite in METHODS else None
    rules = composites.epsilon() if method else composite_named(composite, classifier)
    _check_channels(classifier, example)
    try:
        program, params = traced(classifier, example)
    except TraceError as error:
        shape = "x".join(map(str, example.shape[1:]))
        raise ModelError(f"{classifier.name} cannot be traced with an input of {shape}: {error}") from error
    outputs = rows(program(params, example), classifier.name)
    program, meaning, notes = settle(program, classifier.meaning, outputs, classifier.name)
    notes = (*classifier.notes, *notes)
    names = _names(classifier, meaning, outputs.shape[1])
    report = None
    if canonize:
        program, params, _, report = lrpfunc.canonize(program, params)
    params = {name: tensor.to(where) for name, tensor in params.items()}
    prepared = lrpfunc.prepare(program, params, rules)
    is_gradient = composite in GRADIENTS
    return Explainer(
        classifier,
        program,
        params,
        report,
        rules,
        prepared,
        meaning,
        outputs.shape[1],
        names,
        where,
        is_gradient,
        notes,
        method,
    )


def _check_channels(classifier: Classifier, example: Tensor) -> None:
    if len(classifier.mean) not in (1, example.shape[1]):
        raise ModelError(
            f"{classifier.name} takes inputs for pixels of {len(classifier.mean)} channels, (pixel - mean) / std, but "
            f"they have {example.shape[1]}. Give --mean and --std; 0 and 1 if inputs are pixels from 0 to 1."
        )


def _names(classifier: Classifier, meaning: Meaning, outputs: int) -> tuple[str, ...]:
    names = meaning.names(classifier.categories)
    if names and len(names) != meaning.choices(outputs):
        raise ModelError(
            f"{classifier.name} has {meaning.choices(outputs)} classes, but {len(classifier.categories)} names for "
            "them."
        )
    return names


def composite_named(name: str, classifier: Classifier) -> Composite:
    """A composite for images by its name, or one of the user's own. Errors: `ModelError`."""
    known = {each: partial(make, classifier) for each, make in COMPOSITES.items()}
    return composite_among(known, name, f"{OWN}, and methods beside LRP: {', '.join(METHODS)}")


OWN = "your own as module.path:composite"


def composite_among(known: Mapping[str, Callable[[], Composite]], name: str, others: str, kind: str = "") -> Composite:
    """A composite by its name, or one of the user's own as `module.path:composite`. `others`: what else there is;
    `kind`: which composites these are. Errors: `ModelError`."""
    if ":" in name:
        return composites.as_composite(named_object(name, "a composite of your own"))
    if name not in known:
        raise ModelError(
            f"no composite{kind} is called '{name}'.{near_misses(name, known)} There are {', '.join(known)}, {others}."
        )
    return known[name]()


def device_named(name: str) -> torch.device:
    """A device that tensors can be on. Errors: `ModelError`."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # "meta" has nothing to copy
    # torch answers with RuntimeError, AssertionError (not compiled with CUDA) or NotImplementedError
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"the device '{name}' cannot be used here ({first}).") from error
    return device


def wanted_classes(texts: Sequence[str], names: Sequence[str], choices: int, with_labels: bool = False) -> list[Wanted]:
    """What to explain: each text is `top`, `top5` (the five highest), `label`, a class's name, or its number.

    Errors: `TargetError` for a number out of range, a name that no class or several have, and labels without labels.
    """
    wanted = [one for text in texts for one in _wanted(text, names, choices, with_labels)]
    return list(dict.fromkeys(wanted))


def _wanted(text: str, names: Sequence[str], choices: int, with_labels: bool) -> list[Wanted]:
    if match := re.fullmatch(r"top(\d*)", text):
        count = int(match[1] or 1)
        if not 1 <= count <= choices:
            raise TargetError(f"'{text}' asks for {count} classes, but the model has {choices}.")
        return [Wanted(TOP, rank) for rank in range(count)]
    if text == LABEL:
        if not with_labels:
            raise TargetError("the target 'label' needs a data set whose classes are known.")
        return [Wanted(LABEL)]
    found = [i for i, name in enumerate(names) if name.casefold() == text.casefold()]
    if len(found) > 1:
        raise TargetError(f"'{text}' is the name of the classes {_and(found)}: give the number of the one you mean.")
    if not found and re.fullmatch(r"-?\d+", text):
        if not 0 <= int(text) < choices:
            raise TargetError(f"there is no class {text}: the model has {choices}, 0 to {choices - 1}.")
        return [Wanted(CLASS, int(text))]
    if not found:
        hint = near_misses(text, dict.fromkeys(names)) if names else " The model's classes have no names."
        raise TargetError(f"no class is called '{text}'.{hint} Give top, a name or a number from 0 to {choices - 1}.")
    return [Wanted(CLASS, found[0])]


def _and(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))
