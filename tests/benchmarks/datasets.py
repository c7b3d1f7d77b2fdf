"""Runs over folders of images beside the loop that they consist of."""

import atexit
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lrpfunc.pictures import classifiers, explainers, images, runs
from tests.benchmarks.measure import Call, SetUp, synchronize

CLASSES, DISTINCT = 10, 100


def line_up(name: str, size: int, batch: int, count: int, device: torch.device) -> dict[str, SetUp]:
    """A run, and the bare loop: the same batches explained, all of them made of a few images in memory."""
    folder = Path(tempfile.mkdtemp(prefix="lrpfunc-benchmark-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    paths = photographs(folder / "images", count, size)
    classifier = classifiers.load(name, "random", size=size)
    x = torch.stack([classifier.preprocess(images.read(path)) for path in paths[:batch]])
    workers = max(1, (torch.get_num_threads() or 2) - 1)

    def bare() -> Call:
        ready = explainers.explainer(classifier, x[:1], device=str(device))
        wanted = explainers.wanted_classes(["top"], classifier.categories, ready.choices)

        def loop() -> float:
            clock = Clock(device)
            for done in range(batch, count + batch, batch):
                ready.attribute(x, wanted)
                clock(done, count, 0)
            return clock.passed()

        return loop

    def run() -> Call:
        def whole() -> float:
            clock = Clock(device)
            runs.run(
                folder / "images",
                folder / "run.h5",
                classifier,
                device=str(device),
                batch=batch,
                workers=workers,
                overwrite=True,
                progress=clock,
            )
            return clock.passed()

        return whole

    return {"bare loop": bare, "dataset": run}


class Clock:
    """Times what follows the first batch: tracing the model and starting processes is not what a sample costs."""

    def __init__(self, device: torch.device):
        self._device, self._start, self._first, self._total = device, 0.0, 0, 0

    def __call__(self, done: int, total: int, failures: int) -> None:
        if not self._start:
            synchronize(self._device)
            self._start, self._first, self._total = time.perf_counter(), done, total

    def passed(self) -> float:
        """Seconds until now, as if the first batch had taken as long as the others."""
        synchronize(self._device)
        return (time.perf_counter() - self._start) * self._total / (self._total - self._first)


def photographs(folder: Path, count: int, size: int) -> list[Path]:
    """JPEG files of smooth noise, somewhat larger than the model wants them, in folders by class."""
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (DISTINCT, 8, 8, 3), dtype=np.uint8)
    pictures = [Image.fromarray(each).resize((size * 5 // 4, size), Image.Resampling.BICUBIC) for each in coarse]
    paths = []
    for i in range(count):
        path = folder / str(i % CLASSES) / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[i % DISTINCT].save(path, quality=90)
        paths.append(path)
    return sorted(paths)
