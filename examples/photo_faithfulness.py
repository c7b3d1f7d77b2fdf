"""How faithful are heatmaps of photos? Patch flipping of many methods, those of captum among them.

    python examples/photo_faithfulness.py

On the photos of `lrpfunc demo` (`pip install 'lrpfunc[photos]' captum`), with more steps and random orders than there.
A row is an order of patches: the mean area under the curve of what remains of the predicted class's probability, as
patches are blurred away; how far that is below random orders, with its standard error over photos; on how many photos
it is lower. Seven photos of one network are few; and integrated gradients from the blur ask with the blur that flips.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Occlusion, Saliency
from torch import Tensor

import lrpfunc
from lrpfunc.pictures.demo import photos as demo
from lrpfunc.pictures.demo.flipping import Flipping
from lrpfunc.pictures.demo.photographs import PHOTOS

COMPOSITES = (*demo.NAMES, "epsilon_alpha2_beta1_flat", "excitation_backprop", "deconvnet", "guided_backprop")
PATCH = (3, 16, 16)  # as the flipped ones
NOISE = 0.15  # of SmoothGrad, in units of the inputs' range


def main(arguments: Sequence[str] | None = None) -> list[Flipping]:
    """Print the table, the best order first, and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=len(PHOTOS))
    parser.add_argument("--steps", type=int, default=49, help="of patch flipping")
    parser.add_argument("--random-orders", type=int, default=10)
    parser.add_argument("--samples", type=int, default=32, help="gradients of SmoothGrad and of integrated gradients")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    ready, _ = demo.prepared(PHOTOS[: chosen.photos])
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(chosen.seed)  # for SmoothGrad's noise
        orders = ours(ready) | demo.gradients(ready) | captums(ready, chosen.samples)
    found = demo.compare_orders(ready, orders, chosen.seed, chosen.steps, chosen.random_orders)
    rows = sorted(found, key=lambda row: row.area)
    print(f"{'order':28}{'area':>7}{'below random':>18}{'better on':>11}")
    for row in rows:
        below = f"{row.random - row.area:.3f} ± {row.error:.3f}"
        print(f"{row.order:28}{row.area:7.3f}{below:>18}{f'{row.wins} of {chosen.photos}':>11}")
    print(f"{'random order':28}{rows[0].random:7.3f}")
    return rows


def ours(ready: demo.Ready) -> dict[str, Tensor]:
    """Relevance under each composite, of the network with its batch norms folded."""
    return {
        name: lrpfunc.attribute(ready.fmodel, ready.params, ready.x, demo.rules_named(name, ready.classifier))
        for name in COMPOSITES
    }


def captums(ready: demo.Ready, samples: int) -> dict[str, Tensor]:
    """Scores by captum's methods, of the module as it is."""
    model, target = ready.classifier.model, ready.target
    x = ready.x.clone().requires_grad_()  # captum warns of inputs that ask for none
    black, blurred = ready.classifier.input_range()[0].unique().item(), demo.blurred(ready.x)
    noise = NOISE * (ready.x.max() - ready.x.min()).item()
    smooth = NoiseTunnel(Saliency(model)).attribute(
        x, target=target, nt_type="smoothgrad", nt_samples=samples, nt_samples_batch_size=2, stdevs=noise
    )
    integrated = {
        f"integrated gradients, {what}": IntegratedGradients(model).attribute(
            x, baselines=baseline, target=target, n_steps=samples, internal_batch_size=4 * len(x)
        )
        for what, baseline in {"black": black, "blur": blurred}.items()
    }
    with torch.no_grad():
        occlusion = Occlusion(model).attribute(
            ready.x, PATCH, strides=PATCH, target=target, baselines=blurred, perturbations_per_eval=4
        )
    return {"SmoothGrad": smooth.detach(), "occlusion, blur": occlusion} | {
        name: scores.detach() for name, scores in integrated.items()
    }


if __name__ == "__main__":
    main()
