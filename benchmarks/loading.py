"""Compare the speed of loading and augmentation with that of the network.

    python benchmarks/loading.py FOLDER [--family cifar] [--policies clean,weak,strong]

Prints for each policy, with 0, 1 and 2 workers: the processor time of loading relative to that of
the network's training-mode forward pass, the speed of the loader alone, and the speed of loading
and forward pass together. Speeds are relative to the forward pass alone on images in memory: a
loader above 1 is not the bottleneck. If the forward pass uses all cores, the speed of both
together is below 1 by the time that loading takes. Then prints what is saved by passing one
decoded image through all policies. Everything is measured in turn, and each number is the best of
several rounds.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from recal.data.batches import Batches
from recal.data.folders import open_images
from recal.data.images import ArraySource
from recal.data.normalise import normalise
from recal.data.splits import TRAIN
from recal.networks.names import create_network
from recal.policies.families import load_family
from recal.policies.policy import load_policy
from recal.policies.prepared import PreparedTogether

if TYPE_CHECKING:
    from collections.abc import Callable

    from recal.data.images import ImageSource

NETWORKS = {"cifar": ("wrn16_1", 128), "imagenet": ("timm:resnet18", 16)}
WORKERS = (0, 1, 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", default="cifar", choices=NETWORKS)
    parser.add_argument("--policies", default="clean,weak,strong,augmix")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="decode all images beforehand")
    arguments = parser.parse_args()
    source = open_images(arguments.folder, TRAIN)
    count = min(arguments.images, len(source))
    order = np.random.default_rng(0).permutation(len(source))[:count]
    if arguments.memory:
        pixels = np.stack([source[int(index)] for index in order])
        source, order = ArraySource(source.where, pixels, None), np.arange(count)
    bench = Bench(source, order, arguments.family)
    names = arguments.policies.split(",")
    work = {"forward": bench.forward_alone}
    for name in names:
        for workers in WORKERS:
            work[f"{name} {workers}"] = bench.loading([name], workers)
            work[f"{name} {workers} and forward"] = bench.both(name, workers)
    work["each"] = lambda: [bench.loading([name], 0)() for name in names]
    work["together"] = bench.loading(names, 0)
    cost = measure(work, arguments.rounds)
    base = cost["forward"]
    print(
        f"{count} images of {source.where}; {NETWORKS[arguments.family][0]}, training-mode forward"
    )
    print(
        f"{count / base.wall:.0f} images/s on {torch.get_num_threads()} threads, "
        f"{1000 * base.processor / count:.2f} ms of processor time an image.\n"
    )
    print(f"{'workers 0/1/2':16}{'processor time':>24}{'loader alone':>24}{'with forward':>24}")
    for name in names:
        alone = [cost[f"{name} {workers}"] for workers in WORKERS]
        both = [cost[f"{name} {workers} and forward"] for workers in WORKERS]
        columns = (
            [found.processor / base.processor for found in alone],
            [base.wall / found.wall for found in alone],
            [base.wall / found.wall for found in both],
        )
        cells = ["".join(f"{value:8.2f}" for value in values) for values in columns]
        print(f"{name:16}" + "".join(cells))
    saved = 1 - cost["together"].processor / cost["each"].processor
    print(f"\nOne decoded image for all policies: {saved:.0%} less processor time than each alone.")


class Cost(NamedTuple):
    """Wall time and processor time in seconds."""

    wall: float
    processor: float


class Bench:
    """Images, and a network that runs on them."""

    def __init__(self, source: ImageSource, order: np.ndarray, family: str) -> None:
        self.source, self.family = source, load_family(family)
        name, size = NETWORKS[family]
        self.network = create_network(name, 10).train().to(memory_format=torch.channels_last)
        self.batches = [order[start : start + size] for start in range(0, len(order), size)]
        self.ready = [self.normalised(batch) for (batch,) in self.load(["clean"], 0)]

    def load(self, policies: list[str], workers: int) -> Batches:
        """Return batches under policies."""
        chosen = [load_policy(self.family.name, name) for name in policies]
        images = PreparedTogether(self.source, chosen, 0, self.family.preparation)
        return Batches(images, self.batches, workers=workers)

    def normalised(self, batch: torch.Tensor) -> torch.Tensor:
        """Return a normalised batch."""
        return normalise(batch, self.family.normalisation, torch.device("cpu"))

    def forward_alone(self) -> None:
        """Run the network on images in memory."""
        with torch.no_grad():
            for batch in self.ready:
                self.network(batch)

    def loading(self, policies: list[str], workers: int) -> Callable[[], None]:
        """Return work that reads every batch."""
        batches = self.load(policies, workers)

        def run() -> None:
            for _ in batches:
                pass

        return run

    def both(self, policy: str, workers: int) -> Callable[[], None]:
        """Return work that reads every batch and runs the network on it."""
        batches = self.load([policy], workers)

        def run() -> None:
            with torch.no_grad():
                for (batch,) in batches:
                    self.network(self.normalised(batch))

        return run


def measure(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, Cost]:
    """Return the smallest cost of each function, without the first round, which warms up."""
    costs: dict[str, list[Cost]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, run in work.items():
            wall, processor = time.perf_counter(), sum(os.times()[:4])
            run()
            if number:
                found = Cost(time.perf_counter() - wall, sum(os.times()[:4]) - processor)
                costs[name].append(found)
    return {name: Cost(*map(min, zip(*found, strict=True))) for name, found in costs.items()}


if __name__ == "__main__":
    main()
