"""Averages of an explanation: over noise, and over the way from a baseline."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from lrpfunc.attribution import is_int
from lrpfunc.attributors.gradients import check_input
from lrpfunc.errors import InputError

Explain = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]


def smooth_grad(
    explain: Explain,
    x: Tensor,
    samples: int = 20,
    level: float = 0.1,
    noise: Tensor | None = None,
    seed: int = 0,
    chunk_size: int = 1,
    progress: Progress | None = None,
) -> Tensor:
    """The mean of an explanation over inputs with noise: mean_k explain(x + e_k), where the last e_k is zero.

    Args:
        explain: input -> attribution of its shape; of a fixed class, as noise may change the arg-max.
        x: the input (batch, ...).
        samples: how many.
        level: the noise's standard deviation, in units of each sample's range, its largest value less its smallest.
        noise: the e_k themselves, (samples, *x.shape), in place of random ones.
        seed: of the random ones, which are the same for all samples of a batch but for their size.
        chunk_size: how many to explain at once, by `vmap`; 1 calls `explain` with one at a time.
        progress: called as `progress(done, of)`.

    Errors: `InputError` for numbers below one, a negative level, and noise of another shape.
    Source: Smilkov et al. 2017, arXiv:1706.03825; the last sample without noise is zennit's, so that one is `explain`.

    >>> import lrpfunc, torch
    >>> lrpfunc.attributors.smooth_grad(torch.sign, torch.tensor([[-2.0, 3.0]]), samples=8)
    tensor([[-1.,  1.]])
    """
    check_input(x)
    check_count("samples", samples)
    noise = _drawn(x, samples, level, seed) if noise is None else noise
    if not isinstance(noise, Tensor) or noise.shape[1:] != x.shape or not len(noise):
        got = f"has {tuple(noise.shape)}" if isinstance(noise, Tensor) else f"is {type(noise).__name__}"
        raise InputError(f"noise must be a tensor (samples, {', '.join(map(str, x.shape))}), but {got}.")
    shares = [1 / len(noise)] * len(noise)
    return _mean(explain, x, lambda k: x + noise[k], shares, chunk_size, progress)


def _drawn(x: Tensor, samples: int, level: float, seed: int) -> Tensor:
    """(samples, *x.shape), zero at last."""
    if isinstance(level, bool) or not isinstance(level, Real) or not level >= 0:
        raise InputError(f"the level of noise must be a number >= 0, but is {level!r}.")
    if x.dim() < 2:
        raise InputError(
            f"noise is drawn in units of a sample's range, so an input must be (batch, ...), but is {tuple(x.shape)}: "
            "give it a batch of one by x[None], or the noise itself."
        )
    axes = tuple(range(1, x.dim()))
    size = level * (x.amax(axes, keepdim=True) - x.amin(axes, keepdim=True))
    generator = np.random.default_rng(seed)  # torch's own may not draw under vmap
    drawn = torch.from_numpy(generator.standard_normal((samples - 1, 1, *x.shape[1:]))).to(x.device, x.dtype)
    return torch.cat([drawn * size, torch.zeros_like(x)[None]])  # so that a batch is its samples


def integrated_gradients(
    explain: Explain,
    x: Tensor,
    baseline: float | Tensor = 0.0,
    steps: int = 50,
    rule: str = "middle",
    chunk_size: int = 1,
    progress: Progress | None = None,
) -> Tensor:
    """(x - b) * the integral of the gradient on the way from b to x, which sums to f(x) - f(b).

    Args:
        explain: input -> gradient of its shape, of a fixed class.
        x: the input (batch, ...).
        baseline: b, a number or a tensor that broadcasts to x.
        steps: at how many points.
        rule: how the integral is taken: "left", "middle", "right" (zennit's), "trapezoid", or "gauss" (captum's).
        chunk_size: how many points at once, by `vmap`; 1 calls `explain` with one at a time.
        progress: called as `progress(done, of)`.

    Errors: `InputError` for another rule, fewer than one step (two for the trapezoid), a baseline that does not fit.
    Source: Sundararajan et al. 2017, arXiv:1703.01365.

    >>> import lrpfunc, torch
    >>> lrpfunc.attributors.integrated_gradients(lambda x: 2 * x, torch.tensor([[1.0, 3.0]]))  # of the sum of squares
    tensor([[1.0000, 9.0000]])
    """
    check_input(x)
    check_count("steps", steps)
    places, shares = _points(rule, steps)
    try:
        start = torch.as_tensor(baseline, dtype=x.dtype, device=x.device).expand_as(x)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"the baseline must be a number or broadcast to {tuple(x.shape)}, but is {baseline!r}."
        ) from error
    way = x - start
    return way * _mean(explain, x, lambda k: start + places[k] * way, shares, chunk_size, progress)


RULES = ("left", "middle", "right", "trapezoid", "gauss")


def _points(rule: str, steps: int) -> tuple[list[float], list[float]]:
    """Where on the way from 0 to 1, and with what share."""
    if rule not in RULES:
        raise InputError(f"the rule of the integral must be one of {', '.join(RULES)}, but is {rule!r}.")
    if rule == "gauss":
        places, shares = np.polynomial.legendre.leggauss(steps)
        return ((places + 1) / 2).tolist(), (shares / 2).tolist()
    if rule == "trapezoid":
        if steps < 2:
            raise InputError("the trapezoid rule needs two steps at least.")
        ends = [0.5 / (steps - 1)]
        return np.linspace(0, 1, steps).tolist(), [*ends, *[1 / (steps - 1)] * (steps - 2), *ends]
    offset = {"left": 0.0, "middle": 0.5, "right": 1.0}[rule]
    return [(k + offset) / steps for k in range(steps)], [1 / steps] * steps


def _mean(
    explain: Explain,
    x: Tensor,
    at: Callable[[int], Tensor],
    shares: list[float],
    chunk_size: int,
    progress: Progress | None,
) -> Tensor:
    """The sum of shares of explanations at points, a few at a time."""
    check_count("chunk_size", chunk_size)
    total = torch.zeros_like(x)
    for first in range(0, len(shares), chunk_size):
        chunk = range(first, min(first + chunk_size, len(shares)))
        if len(chunk) == 1:
            total = total + shares[first] * _checked(explain(at(first)), x)
        else:
            found = torch.func.vmap(explain, randomness="different")(torch.stack([at(k) for k in chunk]))
            weights = torch.tensor([shares[k] for k in chunk], dtype=x.dtype, device=x.device)
            total = total + torch.tensordot(weights, _checked(found, x, len(chunk)), 1)
        if progress is not None:
            progress(chunk.stop, len(shares))
    return total


def _checked(found: Tensor, x: Tensor, *first: int) -> Tensor:
    if not isinstance(found, Tensor) or found.shape != (*first, *x.shape):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"what explains must give a tensor like its input, {tuple(x.shape)}, but gave {got}.")
    return found


def check_count(name: str, value: int) -> None:
    """Errors: `InputError` for what is no number >= 1."""
    if not is_int(value) or value < 1:
        raise InputError(f"{name} must be a number >= 1, but is {value!r}.")
