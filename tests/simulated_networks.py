"""Simulated networks: do intervals cover what they should, and do tests hold their level?

An image has a difficulty, which all of its cells share, and each target answers every cell of it by
its own probability. What is true of the targets is known, or computed from far more images than a
run has; intervals and tests see runs of a usual size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special, stats

from recal.networks.spec import ModelSpec
from recal.runs.metrics import METRICS, Measured, measure_columns
from recal.runs.quantities import quantities_of
from recal.runs.statistics import ALPHA, holm, mcnemar, paired_mean
from recal.runs.store import ImageDigests, RunRecord, RunTarget, SavedRun
from recal.suites.suite import Cell

MANY = 400_000  # images that stand for all there are


@dataclass(frozen=True)
class Network:
    """A simulated target.

    Attributes:
        skill: Added to the log-odds of being right.
        overconfidence: Factor on the log-odds that it states.
    """

    skill: float = 0.0
    overconfidence: float = 1.3


def simulated_run(cells: int, names: int = 2) -> SavedRun:
    """Return a run of a clean cell and so many corrupted ones, without a folder."""
    corrupted = tuple(Cell(f"corruption{i // 5}", i % 5 + 1) for i in range(cells))
    model = ModelSpec(
        arch="simulated", classes=10, family="cifar", mean=(0.5,) * 3, std=(0.5,) * 3, size=32
    )
    record = RunRecord(
        suite="simulated", suite_sha256="", title="Simulated", provenance=None, reference=None,
        standard=tuple(cell.name for cell in corrupted),
        cells=("clean", *(cell.name for cell in corrupted)),
        images=ImageDigests(clean=None, corrupted=None), seed=0, classes=10,
        execution="", versions={},
        targets=tuple(
            RunTarget(name=f"t{i}", label=f"t{i}", sha256="", adaptation=None, model=model)
            for i in range(names)
        ),
    )  # fmt: skip
    return SavedRun(Path(), record)


def draw(networks, cells, images, rng):
    """Return the columns of every network and cell for images drawn anew."""
    difficulty = rng.normal(1.5, 1.5, images)
    drawn = []
    for network in networks:
        columns = []
        for number, cell in enumerate(cells):
            harder = 0.0 if cell.corruption is None else 0.5 + 0.1 * (number % 5)
            logit = difficulty + network.skill - harder + rng.normal(0, 0.7, images)
            right = rng.random(images) < special.expit(logit)
            stated = special.expit(network.overconfidence * logit) * 0.9 + 0.1
            columns.append(
                {
                    "index": np.arange(images),
                    "label": np.zeros(images, int),
                    "rank": np.where(right, 0, rng.integers(1, 10, images)),
                    "confidence": stated,
                    "nll": -np.log(np.where(right, stated, (1 - stated) / 9 + 1e-3)),
                    "sum_p2": stated**2 + (1 - stated) ** 2 / 9,
                }
            )
        drawn.append(columns)
    return drawn


def measured(run, target, columns, seed) -> Measured:
    """Measure a target of a simulated run."""
    return measure_columns(target, zip(run.cells, columns, strict=True), seed=seed)


def coverage(trials, images, cells, seed):
    """Return how often each interval covers the truth, by name."""
    rng = np.random.default_rng(seed)
    run = simulated_run(cells)
    networks = [Network(), Network(skill=0.15, overconfidence=1.1)]
    quantities = quantities_of(run, run.cells)
    names = [f"{part}_{metric}" for part in ("clean", "corrupted") for metric in METRICS]
    truth = _truth(run, networks, names, rng)
    found = []
    for trial in range(trials):
        first, second = (
            measured(run, target, columns, trial)
            for target, columns in zip(
                run.targets, draw(networks, run.cells, images, rng), strict=True
            )
        )
        change = second.value - first.value, second.resampled - first.resampled
        for name in names:
            quantity = quantities[name]
            value = float(quantity.of(first.value)[0])
            interval = quantity.interval(first)
            found.append((name, value, interval, truth[0][name]))
            value, interval = quantity.difference(*change)
            found.append(
                (f"difference of {name}", value, interval, truth[1][name] - truth[0][name])
            )
    return _shares(found)


def _shares(found):
    """Return how often intervals cover what runs give on average.

    That is the truth of means, better known so than from any one large run. Calibration errors
    are biased: theirs of all images is another.
    """
    shares = {}
    for name in dict.fromkeys(name for name, *_ in found):
        rows = [(value, low, high, truth) for n, value, (low, high), truth in found if n == name]
        shares[name] = _share(rows, float(np.mean([value for value, *_ in rows])))
        if name.endswith("ece"):
            shares[f"{name}, of all images"] = _share(rows, rows[0][3])
    return shares


def _share(rows, truth):
    return float(np.mean([low <= truth <= high for _, low, high, _ in rows]))


def _truth(run, networks, names, rng):
    quantities = quantities_of(run, run.cells)
    drawn = draw(networks, run.cells, MANY, rng)
    values = [
        measured(run, target, columns, 0).value
        for target, columns in zip(run.targets, drawn, strict=True)
    ]
    return [{name: float(quantities[name].of(v)[0]) for name in names} for v in values]


def levels(trials, images, cells, seed):
    """Return how often tests of equal networks find a difference, and what correction leaves."""
    rng = np.random.default_rng(seed)
    run = simulated_run(cells, names=3)
    found = dict.fromkeys(
        ["McNemar, one cell", "mid-p, one cell", "paired mean over cells",
         "any cell of two pairs (Holm)", "any headline of two pairs (Holm)",
         "any cell of two pairs (no correction)"], 0.0,
    )  # fmt: skip
    for _ in range(trials):
        drawn = draw([Network()] * 3, run.cells, images, rng)
        right = [np.stack([c["rank"] == 0 for c in columns]).astype(int) for columns in drawn]
        changes = [other - right[0] for other in right[1:]]
        worse = np.concatenate([(change < 0).sum(axis=1) for change in changes])
        better = np.concatenate([(change > 0).sum(axis=1) for change in changes])
        p = mcnemar(worse, better)
        # of each pair, the clean cell and the mean over the corrupted ones
        means = [paired_mean(change[1:].mean(axis=0)) for change in changes]
        headlines = np.array([p[0], p[cells + 1], *means])
        found["McNemar, one cell"] += np.mean(p < ALPHA)
        found["mid-p, one cell"] += np.mean(_mid_p(p, worse, better) < ALPHA)
        found["paired mean over cells"] += np.mean(np.array(means) < ALPHA)
        found["any cell of two pairs (Holm)"] += (holm(p) < ALPHA).any()
        found["any headline of two pairs (Holm)"] += (holm(headlines) < ALPHA).any()
        found["any cell of two pairs (no correction)"] += (p < ALPHA).any()
    return {name: float(count / trials) for name, count in found.items()}


def _mid_p(p, worse, better):
    """Return McNemar's mid-p: half of what is observed counts."""
    both = worse + better
    return np.where(both > 0, p - stats.binom.pmf(np.minimum(worse, better), both, 0.5), 1.0)
