"""Blocks on a Ray cluster of two nodes of one core each, beside two processes that do a half of the data set each.

`python -m tests.benchmarks.clusters [samples] [rounds] [block size] [--kill]`: digits as files; wall time from when all
processes are ready, and the memory of processes along the way. `--kill` loses one of the two nodes in the middle.
"""

import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from lrpfunc import digits
from lrpfunc.extras import extra
from lrpfunc.pictures import classifiers, distributed, merging, runs
from lrpfunc.pictures.distributed import ray_engine
from lrpfunc.pictures.parts import Shard

BATCH = 16


def many(folder: Path, count: int) -> Path:
    """Files of digits, the same forty again and again under other names."""
    digits.write_images(folder / "forty")
    some = sorted((folder / "forty").rglob("*.png"))
    for number in range(count):
        image = some[number * len(some) // count]
        path = folder / "images" / image.parent.name / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, path)
    return folder / "images"


def half(source: Path, out: Path, number: int, start: object, times: object) -> None:
    """One of two processes; the clock begins when both have traced the model."""
    torch.set_num_threads(1)
    job = runs.prepared(source, classifiers.load("digits"), batch=BATCH)
    start.wait()
    began = time.perf_counter()
    runs.run_part(job, Shard(number, 2), out)
    times.put(time.perf_counter() - began)


def independent(source: Path, folder: Path) -> float:
    """Seconds of the slower of two processes that know nothing of each other."""
    processes = multiprocessing.get_context("spawn")
    start, times = processes.Barrier(2), processes.Queue()
    both = [
        processes.Process(target=half, args=(source, folder / f"{number}.h5", number, start, times))
        for number in (1, 2)
    ]
    for each in both:
        each.start()
    found = [times.get() for _ in both]
    for each in both:
        each.join()
    return max(found)


@contextlib.contextmanager
def cluster() -> Iterator[object]:
    # Ray is nice to others unless told, which on a busy machine would be measured.
    os.environ |= {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    made = extra("ray.cluster_utils", "ray", "a cluster on this machine").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        made.lost = made.add_node(num_cpus=1)
        yield made
    finally:
        made.shutdown()


class Watch:
    """Told of progress: when all began, how much memory processes have, and when to lose a node."""

    def __init__(self, made: object, kill: bool):
        self.made, self.kill = made, kill
        self.began, self.memory = 0.0, []

    def __call__(self, done: int, samples: int, failures: int) -> None:
        self.began = self.began or time.perf_counter()
        if done:
            self.memory.append((done, sum(memory() or [0]) / max(len(memory()), 1)))
        if self.kill and done > samples // 2:
            self.kill = False
            self.made.remove_node(self.made.lost, allow_graceful=False)


def memory() -> list[float]:
    """Resident MB of the cluster's processes that explain."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError, StopIteration):
            if status.with_name("cmdline").read_bytes().startswith(b"ray::Process"):
                line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
                found.append(int(line.split()[1]) / 1000)
    return found


def main(samples: int = 2000, rounds: int = 3, block: int = 256, kill: bool = False) -> None:
    folder = Path(tempfile.mkdtemp(prefix="lrpfunc-clusters-"))
    try:
        source = many(folder, samples)
        alone, together, starts = [], [], []
        with cluster() as made:
            for number in range(rounds):
                place = folder / str(number)
                place.mkdir()
                alone.append(independent(source, place))
                task = distributed.Task(source, place / "blocks", classifiers.load("digits"), batch=BATCH, block=block)
                watch, asked = Watch(made, kill), time.perf_counter()
                ray_engine.run(task, made.address, progress=watch)
                if kill:  # for the next round
                    made.lost = made.add_node(num_cpus=1)
                together.append(time.perf_counter() - watch.began)
                starts.append(watch.began - asked)
                print(f"two processes {alone[-1]:.1f} s, Ray {together[-1]:.1f} s, ready after {starts[-1]:.1f} s")
            steps = watch.memory[:: max(len(watch.memory) // 5, 1)]
            print("MB a process:", ", ".join(f"{mb:.0f} after {done:,}" for done, mb in steps))
        began = time.perf_counter()
        merging.merge([place / "blocks"], place / "all.h5")
        print(f"merged in {time.perf_counter() - began:.1f} s; of {samples:,} samples, least of {rounds} rounds:")
        print(f"two processes {min(alone):.1f} s, Ray {min(together):.1f} s, {min(together) / min(alone) - 1:+.0%}")
        runs.run(source, place / "whole.h5", classifiers.load("digits"), batch=BATCH)
        same = (place / "all.h5").read_bytes() == (place / "whole.h5").read_bytes()
        print("the merged file is", "that of one process, to the byte" if same else "another one")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:] if word.isdigit()), kill="--kill" in sys.argv)
