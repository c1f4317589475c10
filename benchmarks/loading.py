"""Whether loading and augmentation keep up with the network that is calibrated.

    python benchmarks/loading.py FOLDER [--family cifar] [--policies clean,weak,strong]

Prints for each policy, as ratios to the network's training-mode forward on images already in
memory: how fast the loader alone is with 0, 1 and 2 workers (above 1 it is not what waits), and how
fast loading and forward are together on this machine's cores. Then what it saves to take one
decoded image through all policies. Everything is measured in turn, several times; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from recal.architectures import create_network
from recal.data.layouts import TRAIN, open_images
from recal.data.loading import Batches, normalise
from recal.data.policies import load_family, load_policy
from recal.data.prepared import PreparedTogether
from recal.data.sources import ArraySource

if TYPE_CHECKING:
    from collections.abc import Callable

    from recal.data.sources import ImageSource

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
    seconds = measure(work, arguments.rounds)
    base = seconds["forward"]
    print(
        f"{count} images of {source.where}; {NETWORKS[arguments.family][0]}, training-mode forward"
    )
    print(f"{count / base:.0f} images/s on {torch.get_num_threads()} threads. Ratios to that:\n")
    print(f"{'policy':16} {'loader alone, workers 0/1/2':>30} {'with forward, 0/1/2':>24}")
    for name in names:
        alone = "".join(f"{base / seconds[f'{name} {w}']:8.2f}" for w in WORKERS)
        both = "".join(f"{base / seconds[f'{name} {w} and forward']:8.2f}" for w in WORKERS)
        print(f"{name:16} {alone:>30} {both:>24}")
    print(f"\none decoded image for all: {seconds['each'] / seconds['together']:.2f} times as fast")


class Bench:
    """Images, and a network to feed."""

    def __init__(self, source: ImageSource, order: np.ndarray, family: str) -> None:
        self.source, self.family = source, load_family(family)
        name, size = NETWORKS[family]
        self.network = create_network(name, 10).train().to(memory_format=torch.channels_last)
        self.batches = [order[start : start + size] for start in range(0, len(order), size)]
        self.ready = [self.normalised(batch) for (batch,) in self.load(["clean"], 0)]

    def load(self, policies: list[str], workers: int) -> Batches:
        """Return batches under policies."""
        chosen = [load_policy(self.family.name, name) for name in policies]
        images = PreparedTogether(self.source, chosen, 0, self.family.size)
        return Batches(images, self.batches, workers=workers)

    def normalised(self, batch: torch.Tensor) -> torch.Tensor:
        """Return a batch as the network takes it."""
        return normalise(batch, self.family.mean, self.family.std, torch.device("cpu"))

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


def measure(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, after a round that warms up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, run in work.items():
            began = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
