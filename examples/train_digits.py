"""Train the network of `lrpfunc demo` on scikit-learn's handwritten digits and write its checkpoint and sample digits.

    python examples/train_digits.py                    # about ten seconds on two cores; writes the package's own data
    python examples/train_digits.py --epochs 2 --out .

A third of the digits is held out (`lrpfunc.digits.split`); the samples are taken from there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from lrpfunc import digits

PER_CLASS = 4


def train(images: Tensor, labels: Tensor, epochs: int, seed: int) -> digits.DigitsNet:
    """A network trained by AdamW on a one-cycle schedule. The global random state is left as it was."""
    with torch.random.fork_rng(devices=[]), digits.single_thread():
        torch.manual_seed(seed)
        model = digits.DigitsNet()
        batches = -(-len(images) // 64)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=epochs * batches)
        for _ in range(epochs):
            for batch in torch.randperm(len(images)).tensor_split(batches):
                loss = F.cross_entropy(model(images[batch]), labels[batch], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def first_of_each_class(labels: Tensor, candidates: Tensor, per_class: int = PER_CLASS) -> Tensor:
    """Indices of the first candidates of each class, in runs of 0 to 9."""
    by_class = [candidates[labels[candidates] == digit][:per_class] for digit in range(10)]
    return torch.stack(by_class, dim=1).flatten()


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, print and return the held-out accuracy, write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(digits.__file__).parent / "data", help="folder to write to")
    options = parser.parse_args(arguments)

    data = load_digits()
    pixels, labels = torch.from_numpy(data.images), torch.from_numpy(data.target)
    images = digits.scaled(pixels)
    training, held_out = digits.split(len(labels))

    start = time.perf_counter()
    model = train(images[training], labels[training], options.epochs, options.seed)
    with torch.no_grad():
        right = model(images[held_out]).argmax(1) == labels[held_out]
    accuracy = right.float().mean().item()
    print(f"{accuracy:.2%} of {len(held_out)} held-out digits, after {time.perf_counter() - start:.0f} s of training")

    chosen = first_of_each_class(labels, held_out)
    samples = {"images": pixels[chosen].to(torch.uint8), "labels": labels[chosen], "indices": chosen}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / digits.CHECKPOINT).write_bytes(safetensors.torch.save(model.state_dict()))
    (options.out / digits.SAMPLES).write_bytes(safetensors.torch.save(samples))
    print(f"wrote {digits.CHECKPOINT} and {digits.SAMPLES} to {options.out}")
    return accuracy


if __name__ == "__main__":
    main()
