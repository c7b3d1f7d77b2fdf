"""Blocks on clusters that are not here: a simulation of 1 to 1,000 processes, out of what is measured on two.

`python -m tests.benchmarks.plan [samples]`. Processes take blocks from one driver and write to one store; they die by
chance, as machines do, and are started anew. Nothing is known of networks but the store's bandwidth.
"""

import heapq
import random
import sys
from typing import NamedTuple

WORKERS, SIZES = (1, 2, 10, 30, 100, 300, 1000), (64, 256, 1024, 4096)


class Costs(NamedTuple):
    """What things take, in seconds unless it is said; of a ResNet-50 on an H100 where it is not measured here.

    `sample`: to explain one. `block`: what a block takes besides. `start`: until a process has read the list of samples
    and traced the model. `answer`: of the driver, for each block. `lives`: hours until a machine dies, on average.
    `replacing`: until there is another one. `row`: MB that are written for a sample. `store`: MB/s that all share.
    `hour`: the price of one process.
    """

    sample: float = 1 / 400
    block: float = 0.05
    start: float = 30.0
    answer: float = 0.002
    lives: float = 500.0
    replacing: float = 300.0
    row: float = 0.756
    store: float = 20_000.0
    hour: float = 3.0


class Found(NamedTuple):
    """Of one simulated run: seconds, samples per second, the price, deaths, and what takes longest beside the work."""

    seconds: float
    rate: float
    price: float
    deaths: int
    limit: str


def simulate(samples: int, workers: int, size: int, costs: Costs, seed: int = 0) -> Found:
    """One run, event by event: who is free first asks the driver, which answers one after another."""
    chance = random.Random(seed)
    lives = [chance.expovariate(1) * costs.lives * 3600 for _ in range(workers)]
    free = [(costs.start, number) for number in range(workers)]
    heapq.heapify(free)
    each = max(costs.sample, workers * costs.row / costs.store)
    left, driver, end, deaths = samples, 0.0, 0.0, 0
    while left > 0:
        now, worker = heapq.heappop(free)
        driver = max(driver, now) + costs.answer
        count = min(size, left)
        done = driver + costs.block + count * each
        if done > lives[worker]:  # what is written is gone on with: a batch is lost, which is next to nothing
            deaths += 1
            back = lives[worker] + costs.replacing + costs.start
            begun = max(lives[worker] - driver - costs.block, 0) / each
            done = back + costs.block + (count - min(begun, count)) * each
            lives[worker] = back + chance.expovariate(1) * costs.lives * 3600
        left -= count
        end = max(end, done)
        heapq.heappush(free, (done, worker))
    return Found(
        end, samples / end, workers * costs.hour * end / 3600, deaths, _limit(samples, workers, size, costs, end)
    )


def _limit(samples: int, workers: int, size: int, costs: Costs, seconds: float) -> str:
    """What takes longest beside the work itself, in per cent of the run."""
    blocks = -(-samples // size)
    others = {
        "start": costs.start,
        "driver": blocks * costs.answer,
        "store": samples * costs.row / costs.store,
        "blocks": blocks * costs.block / workers,
        "last block": costs.block + size * costs.sample,
    }
    name = max(others, key=lambda other: others[other])
    return f"{name} {others[name] / seconds:.0%}"


def main(samples: int = 1_000_000, costs: Costs = Costs()) -> None:  # noqa: B008 (a constant)
    print(f"{samples:,} samples; {costs}")
    print("workers  block  images/s   hours   price  of ideal  deaths  besides")
    for workers in WORKERS:
        found = {size: simulate(samples, workers, size, costs) for size in SIZES}
        best = min(found, key=lambda size: found[size].seconds)
        for size, one in found.items():
            ideal = samples * costs.sample / workers
            print(
                f"{workers:7} {size:6}{'*' if size == best else ' '} {one.rate:8,.0f} {one.seconds / 3600:7.2f} "
                f"{one.price:7.2f} {ideal / one.seconds:9.0%} {one.deaths:7}  {one.limit}"
            )


if __name__ == "__main__":
    main(*(int(word.replace(",", "")) for word in sys.argv[1:]))
