"""The relevance Jacobian between residual streams, and the lens that it makes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lrpfunc.attribution import is_int, record
from lrpfunc.attribution.places import output_named, outputs_named
from lrpfunc.composites import Entries, assign_everywhere, variables_seen
from lrpfunc.errors import FileError, InputError
from lrpfunc.program import Program
from lrpfunc.rules import Flow

KEYS = ("J", "n_prompts", "source_layers", "d_model")


@dataclass(frozen=True)
class Lens:
    """Mean Jacobians J_l of the final residual stream in that of layer l, at one position: h_final ~ J_l h_l.

    Args:
        J: (layers, d_model, d_model).
        n_prompts: over how many prompts it is the mean.
        source_layers: the names of the layers.

    >>> import torch
    >>> from lrpfunc import circuits
    >>> lens = circuits.Lens(2 * torch.eye(3)[None], 1, ("layers.0",))
    >>> lens("layers.0", torch.tensor([1.0, 2.0, 3.0]))
    tensor([2., 4., 6.])
    """

    J: Tensor
    n_prompts: int
    source_layers: tuple[str, ...]

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return self.J.shape[-1]

    def __call__(self, layer: str, residual: Tensor) -> Tensor:
        """J_l h for residuals (..., d_model) of a layer. Errors: `InputError` for another layer or width."""
        if layer not in self.source_layers:
            raise InputError(f"the lens has no layer '{layer}', but {', '.join(self.source_layers)}.")
        if residual.shape[-1] != self.d_model:
            raise InputError(f"the lens takes residuals (..., {self.d_model}), but got {tuple(residual.shape)}.")
        return residual @ self.J[self.source_layers.index(layer)].to(residual).T

    def save(self, path: str | Path) -> None:
        """Write {J, n_prompts, source_layers, d_model} by `torch.save`: no code in it. Errors: `OSError`."""
        content = (self.J, self.n_prompts, list(self.source_layers), self.d_model)
        torch.save(dict(zip(KEYS, content, strict=True)), path)


def load_lens(path: str | Path) -> Lens:
    """A lens that `Lens.save` wrote, read without running anything that is in the file.

    Args:
        path: of the file.

    Errors: `FileError` for a file that is missing, broken or holds something else.

    >>> import tempfile, torch
    >>> from lrpfunc import circuits
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     circuits.Lens(torch.eye(3)[None], 7, ("layers.0",)).save(f"{folder}/lens.pt")
    ...     circuits.load_lens(f"{folder}/lens.pt").n_prompts
    7
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        jacobian, prompts, layers, width = (found[key] for key in KEYS)
        fits = jacobian.shape == (len(layers), width, width) and isinstance(prompts, int) and prompts > 0
    except Exception as error:  # torch, zip and pickle have errors of their own for files that are broken
        raise FileError(f"{path} is no lens that can be read: {type(error).__name__}.") from error
    if not fits or not all(isinstance(name, str) for name in layers):
        raise FileError(f"{path} is no lens: it must hold {', '.join(KEYS)}, J of shape (layers, d_model, d_model).")
    return Lens(jacobian, prompts, tuple(layers))


def lens(
    fmodel: Program,
    params,
    prompts: Iterable,
    rules: Entries,
    at: str | Sequence[str],
    final: str | None = None,
    position: int = -1,
    chunk_size: int | None = 64,
) -> Lens:
    """The mean over prompts of d(final residual) / d(residual of layer l) at one position, under a composite.

    Row i of J is the coefficient at layer l of coordinate i of the final residual: d_model pullbacks in batches after
    one forward pass. With the gradient everywhere, `by_kind({"*": rules.gradient()})`, it is the plain Jacobian.

    Args:
        fmodel: a program whose residual streams are (batch, length, d_model).
        params: its parameters.
        prompts: batches of inputs, each as `attribute` takes it; batches count by their samples.
        rules: a composite, a mapping or a rule, which is for layers: what is no layer keeps its usual rule.
        at: names of layers, as `record` takes them, such as ["layers.0", "layers.1"] or "layers.*:residual".
        final: the name of the final residual; the last of `at`, which is then no source, unless given.
        position: of the token, counted from the end if it is negative.
        chunk_size: how many coordinates at once, to save memory.

    Errors: those of `record`; `InputError` for no prompts, streams of another shape, a position outside, and sources
    that the final one does not depend on.

    >>> import lrpfunc, torch
    >>> from lrpfunc import circuits, rules
    >>> f = lambda p, x: (x + x @ p["a"]).relu() @ p["b"]
    >>> params, x = {"a": torch.eye(2), "b": torch.ones(2, 2)}, torch.ones(1, 3, 2)
    >>> fmodel, params = lrpfunc.trace(f, params, x)
    >>> circuits.lens(fmodel, params, [x], rules.gradient(), at=["add", "b"]).J
    tensor([[[1., 1.],
             [1., 1.]]])
    """
    sources, final = _ends(fmodel, rules, at, final)
    total, count = None, 0
    for x in prompts if sources else ():
        trail = record(fmodel, params, x, rules, at=[*sources, final])
        found = _jacobians(trail, sources, final, position, chunk_size)
        total = found.sum(1) if total is None else total + found.sum(1)
        count += found.shape[1]
    if total is None:
        raise InputError("a lens needs one prompt and one source layer at least, beside the final one.")
    return Lens(total / count, count, tuple(sources))


def _ends(fmodel: Program, rules: Entries, at: str | Sequence[str], final: str | None) -> tuple[list[str], str]:
    """The names of the sources and of the final stream. Errors: `RuleError`; `InputError` for sources above it."""
    places = outputs_named(fmodel, at)
    if final is None:
        final = next(reversed(places), "")
        end = places.get(final)
    else:
        final, end = output_named(fmodel, final)
    sources = [name for name, place in places.items() if place != end]
    seen = variables_seen(fmodel, assign_everywhere(fmodel, rules), {end} if end else ())
    if unseen := [name for name in sources if places[name] not in seen]:
        raise InputError(
            f"the final stream, '{final}', does not depend on {', '.join(map(repr, unseen))}, or only through what "
            "counts as a constant: name sources below it."
        )
    return sources, final


def _jacobians(trail, sources: Sequence[str], final: str, position: int, chunk_size: int | None) -> Tensor:
    """(sources, batch, d_model, d_model)."""
    values = trail.values
    value = values[final]
    for name in (*sources, final):
        shape = values[name].shape
        if len(shape) != 3 or shape[-1] != value.shape[-1]:
            raise InputError(
                f"residual streams must be (batch, length, {value.shape[-1]}), but '{name}' is {tuple(shape)}."
            )
        if not is_int(position) or not -shape[1] <= position < shape[1]:
            raise InputError(
                f"the position must be a number from {-shape[1]} to {shape[1] - 1} at '{name}', but is {position!r}."
            )
    starts = []
    for i in range(value.shape[-1]):
        start = torch.zeros_like(value)
        start[:, position, i] = 1
        starts.append({final: Flow(coefficient=start)})
    _, inner = trail.pull_each(starts, form="coefficient", chunk_size=chunk_size, inputs=False)
    return torch.stack([inner[name][:, :, position].movedim(0, 1) for name in sources])
