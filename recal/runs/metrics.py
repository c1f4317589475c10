"""The metrics of cells: of each image, over all images, and in bootstrap resamples of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recal.errors import InputError
from recal.runs.statistics import bootstrap_counts, deal
from recal.runs.store import Columns, RunTarget, SavedRun, images_digest
from recal.schema import Record
from recal.suites.suite import Cell

ECE_BINS = 15


class Metrics(Record, frozen=True, kw_only=True):
    """Metrics over a set of images.

    Attributes:
        accuracy: Share of images whose label is the prediction.
        top5_accuracy: Share of images whose label is among the five largest logits.
        nll: Mean negative log-likelihood of the labels, in nats.
        brier: Mean Brier score, summed over classes, 0 to 2.
        ece: Expected calibration error, in [0, 1].
    """

    accuracy: float
    top5_accuracy: float
    nll: float
    brier: float
    ece: float


METRICS = Metrics.__struct_fields__


def score(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
    """Reduce finite logits (N, K) and labels (N,) to columns that give every metric.

    Returns:
        Columns of length N: `prediction` (the first of the largest logits), `rank` (rank of the
        label; 0 is top-1), `confidence` (softmax of the prediction), `nll` (negative log-likelihood
        of the label, in nats), `sum_p2` (sum of the squared probabilities).
    """
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    log_p = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    prediction = values.argmax(axis=1)
    of_label = values[rows, labels][:, None]
    # ties go to the lower class, as in argmax
    before = (values == of_label) & (np.arange(values.shape[1]) < labels[:, None])
    return {
        "prediction": prediction.astype(np.int32),
        "rank": ((values > of_label) | before).sum(axis=1).astype(np.int32),
        "confidence": np.exp(log_p[rows, prediction]).astype(np.float32),
        "nll": -log_p[rows, labels].astype(np.float32),
        "sum_p2": np.exp(2 * log_p).sum(axis=1).astype(np.float32),
    }


def metrics_of(columns: Mapping[str, NDArray[np.generic]]) -> Metrics:
    """Compute the metrics of columns as `score` returns them."""
    accuracy, top5_accuracy, nll, brier = per_image(columns).mean(axis=0).tolist()
    ece = float(np.abs(np.bincount(*confidence_gaps(columns))).sum() / len(columns["rank"]))
    return Metrics(accuracy=accuracy, top5_accuracy=top5_accuracy, nll=nll, brier=brier, ece=ece)


def per_image(columns: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
    """Return the values whose means are the first four of METRICS, float64 (N, 4)."""
    rank, nll = columns["rank"].astype(np.int64), columns["nll"].astype(np.float64)
    brier = columns["sum_p2"].astype(np.float64) - 2 * np.exp(-nll) + 1
    return np.stack([rank == 0, rank < 5, nll, brier], axis=1)


def confidence_gaps(
    columns: Mapping[str, NDArray[np.generic]],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each image's bin of confidence, and its confidence, less 1 where it is right.

    There are 15 bins of equal width, (lo, hi]. The expected calibration error is the sum over bins
    of the absolute sum of the gaps, divided by N.

    Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 2.
    """
    confidence = columns["confidence"].astype(np.float64)
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    return bins, confidence - (columns["rank"] == 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """A target's metrics, in the order of METRICS, in its C cells.

    Attributes:
        cells: The cells that the run holds for it.
        correct: For each cell, whether the prediction is right for each image, bool (N,).
        value: The metrics over all images, float64 (1, C, 5).
        resampled: The metrics in each bootstrap resample, float64 (R, C, 5). Cells of the same
            images share their resamples, and so do all targets of a run: differences are paired.
    """

    target: RunTarget
    cells: tuple[Cell, ...]
    correct: tuple[NDArray[np.bool_], ...]
    value: NDArray[np.float64]
    resampled: NDArray[np.float64]

    @property
    def images(self) -> list[int]:
        """Number of images of each cell."""
        return [len(right) for right in self.correct]

    def over(self, cells: Sequence[Cell]) -> Measured:
        """Return the metrics in some of the cells only."""
        if tuple(cells) == self.cells:
            return self
        rows = [self.cells.index(cell) for cell in cells]
        return replace(
            self, cells=tuple(cells), correct=tuple(self.correct[row] for row in rows),
            value=self.value[:, rows], resampled=self.resampled[:, rows],
        )  # fmt: skip


def measure(
    run: SavedRun, target: RunTarget, *, seed: int = 0, half: int | None = None
) -> Measured | None:
    """Return `measure_columns` of the cells that a run holds of a target, read one by one."""
    read = ((cell, columns) for cell in run.cells if (columns := run.columns(target, cell)))
    return measure_columns(target, read, seed=seed, half=half)


def measure_columns(
    target: RunTarget,
    columns_of_cells: Iterable[tuple[Cell, Columns]],
    *,
    seed: int = 0,
    half: int | None = None,
) -> Measured | None:
    """Return a target's metrics from an iterator of cells, which are not kept; None without any.

    `half` is 0 or 1 for one half of the images, even over the classes, or None for all of them.
    `seed` is that of the resampling and of the halves.
    """
    cells: list[Cell] = []
    correct: list[NDArray[np.bool_]] = []
    # clean and corrupted cells may be of different images: each set has resamples of its own
    sets: dict[str, _Sums] = {}
    for number, (cell, whole) in enumerate(columns_of_cells):
        rows = slice(None) if half is None else halves(whole["label"], seed)[half]
        columns = {name: column[rows] for name, column in whole.items()}
        images = images_digest(columns["index"], columns["label"])
        if images not in sets:
            sets[images] = _Sums(deal(len(columns["rank"]), seed=seed))
        sets[images].add(number, columns)
        cells.append(cell)
        correct.append(columns["rank"] == 0)
    if not cells:
        return None
    order = np.argsort([number for sums in sets.values() for number in sums.cells])
    value, resampled = [], []
    for images, sums in sets.items():
        value.append(sums.metrics(np.ones((1, len(sums.sizes)))))
        resampled.append(
            sums.metrics(bootstrap_counts(len(sums.sizes), seed=[seed, int(images[:8], 16)]))
        )
    return Measured(
        target=target, cells=tuple(cells), correct=tuple(correct),
        value=np.concatenate(value, axis=1)[:, order],
        resampled=np.concatenate(resampled, axis=1)[:, order],
    )  # fmt: skip


def halves(labels: NDArray[Any], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of each half of the images, drawn at random, even over the classes."""
    if len(labels) < 2:
        raise InputError("expected two images or more to split into halves, got one.")
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return np.sort(order[::2]), np.sort(order[1::2])


class _Sums:
    """Sums over groups of images, (N,), in cells of the same images."""

    def __init__(self, group: NDArray[np.int64]) -> None:
        self.sizes = np.bincount(group).astype(np.float64)
        self.cells: list[int] = []
        self._group = group
        self._scores: list[NDArray[Any]] = []
        self._gaps: list[NDArray[Any]] = []

    def add(self, number: int, columns: Columns) -> None:
        """Add a cell's images to the sums."""
        groups, (bins, gaps) = len(self.sizes), confidence_gaps(columns)
        self._scores += [
            np.bincount(self._group, of, minlength=groups) for of in per_image(columns).T
        ]
        summed = np.bincount(self._group * ECE_BINS + bins, gaps, minlength=groups * ECE_BINS)
        self._gaps.append(summed.reshape(groups, ECE_BINS))
        self.cells.append(number)

    def metrics(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the metrics of the cells, (R, C, 5), for weights (R, G) on the groups."""
        cells = len(self.cells)
        images = (weights @ self.sizes)[:, None, None]
        means = (weights @ np.stack(self._scores, axis=1)).reshape(-1, cells, 4) / images
        gaps = (weights @ np.concatenate(self._gaps, axis=1)).reshape(-1, cells, ECE_BINS)
        return np.concatenate([means, np.abs(gaps).sum(axis=2, keepdims=True) / images], axis=2)
