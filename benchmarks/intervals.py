"""Measure the coverage of the intervals and the level of the tests.

Simulates the networks of tests/simulated_networks.py in more runs than the tests do.

    python benchmarks/intervals.py [--trials 1000] [--images 1000]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scipy import special

from recal.runs.statistics import bounded_mean_interval, wilson_interval
from tests.simulated_networks import coverage, levels


def closed_forms(trials, seed):
    """Return the coverage of Wilson's interval, for shares and for means over five cells."""
    rng = np.random.default_rng(seed)
    found = {}
    for n in (10, 50, 100, 1000, 10_000):
        for share in (0.5, 0.9, 0.99):
            counts = rng.binomial(n, share, trials)
            hits = [low <= share <= high for low, high in
                    (wilson_interval(c / n, n) for c in counts)]  # fmt: skip
            found[f"share {share}, {n} images"] = float(np.mean(hits))
    for n in (10, 50, 1000):
        logits = rng.normal(1.0, 1.5, (trials, n, 1))
        right = rng.random((trials, n, 5)) < special.expit(logits)
        truth = float(special.expit(rng.normal(1.0, 1.5, 4_000_000)).mean())
        hits = [low <= truth <= high for low, high in
                (bounded_mean_interval(row.mean(axis=1)) for row in right)]  # fmt: skip
        found[f"mean over 5 cells, {n} images of a class"] = float(np.mean(hits))
    return found


def main() -> None:
    """Run the simulations and print their results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--cells", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    error = 1.96 * np.sqrt(0.95 * 0.05 / asked.trials)
    print(
        f"{asked.trials} simulated runs, for tests 4 times as many; a share of 0.95 is known "
        f"to within {error:.3f}\n"
    )
    sections = {
        "Wilson's interval covers": lambda: closed_forms(asked.trials, asked.seed),
        f"intervals cover ({asked.images} images, {asked.cells} corrupted cells)": lambda: coverage(
            asked.trials, asked.images, asked.cells, asked.seed
        ),
        "equal networks are found to differ (at most 0.05)": lambda: levels(
            4 * asked.trials, asked.images, asked.cells, asked.seed
        ),
    }
    for title, compute in sections.items():
        began = time.monotonic()
        print(title)
        for name, share in compute().items():
            print(f"  {name:45} {share:.3f}")
        print(f"  ({time.monotonic() - began:.0f} s)\n")


if __name__ == "__main__":
    main()
