"""A target's metrics in every cell of a run, over all images and in bootstrap resamples of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from recal.evaluation.intervals import bootstrap_counts, deal
from recal.evaluation.metrics import ECE_BINS, confidence_bins, confidence_gaps, per_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from recal.evaluation.runs import Columns
    from recal.evaluation.saved import SavedRun, SavedTarget
    from recal.evaluation.suites import Cell


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """A target's metrics, in the order of METRICS, in its C cells.

    Attributes:
        target: The target.
        cells: The cells that the run holds for it.
        correct: Whether it is right, bool (C, N).
        value: The metrics over the N images, float64 (1, C, 5).
        resampled: The metrics in each bootstrap resample, float64 (R, C, 5); the same resamples for
            every target of a run, so that differences are paired.
    """

    target: SavedTarget
    cells: tuple[Cell, ...]
    correct: NDArray[np.bool_]
    value: NDArray[np.float64]
    resampled: NDArray[np.float64]

    @property
    def images(self) -> int:
        """Number of images, the same in every cell."""
        return int(self.correct.shape[1])

    def over(self, cells: Sequence[Cell]) -> Measured:
        """Return the same for a part of the cells."""
        if tuple(cells) == self.cells:
            return self
        rows = [self.cells.index(cell) for cell in cells]
        return replace(
            self, cells=tuple(cells), correct=self.correct[rows],
            value=self.value[:, rows], resampled=self.resampled[:, rows],
        )  # fmt: skip


def measure(
    run: SavedRun, target: SavedTarget, *, seed: int = 0, rows: NDArray[np.int64] | None = None
) -> Measured | None:
    """Read a target's cells, one after the other, and compute its metrics.

    Args:
        run: The run.
        target: One of its targets.
        seed: Of the resampling.
        rows: Which rows of a cell are taken; all of them by default.

    Returns:
        The metrics in the cells that the run holds; None where it holds none.
    """
    read = ((cell, columns) for cell in run.cells if (columns := run.columns(target, cell)))
    return measure_columns(target, read, seed=seed, rows=rows)


def measure_columns(
    target: SavedTarget,
    columns_of_cells: Iterable[tuple[Cell, Columns]],
    *,
    seed: int = 0,
    rows: NDArray[np.int64] | None = None,
) -> Measured | None:
    """Compute a target's metrics from cells as they come; None where none comes."""
    cells: list[Cell] = []
    correct: list[NDArray[np.bool_]] = []
    summed: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    group, sizes = np.empty(0, np.int64), np.empty(0)
    for cell, whole in columns_of_cells:
        columns = whole if rows is None else {name: whole[name][rows] for name in whole}
        if not cells:
            group = deal(len(columns["rank"]), seed=seed)
            sizes = np.bincount(group).astype(np.float64)
        cells.append(cell)
        correct.append(columns["rank"] == 0)
        summed.append(_sums(columns, group, len(sizes)))
    if not cells:
        return None
    sums = _Sums(sizes, *(np.stack(parts, axis=1) for parts in zip(*summed, strict=True)))
    return Measured(
        target=target, cells=tuple(cells), correct=np.stack(correct),
        value=sums.metrics(np.ones((1, len(sizes)))),
        resampled=sums.metrics(bootstrap_counts(len(sizes), seed=seed)),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over G groups of images: their sizes (G,), scores (G, C, 4) and gaps (G, C, 15)."""

    sizes: NDArray[np.float64]
    scores: NDArray[np.float64]
    gaps: NDArray[np.float64]

    def metrics(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (R, C, 5) for weights (R, G) on the groups."""
        groups, cells = self.scores.shape[:2]
        images = (weights @ self.sizes)[:, None, None]
        means = (weights @ self.scores.reshape(groups, -1)).reshape(-1, cells, 4) / images
        gaps = (weights @ self.gaps.reshape(groups, -1)).reshape(-1, cells, ECE_BINS)
        ece = np.abs(gaps).sum(axis=2, keepdims=True) / images
        return np.concatenate([means, ece], axis=2)


def _sums(
    columns: Columns, group: NDArray[np.int64], groups: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = per_image(columns)
    scores = [np.bincount(group, weights=values[:, k], minlength=groups) for k in range(4)]
    place = group * ECE_BINS + confidence_bins(columns)
    gaps = np.bincount(place, weights=confidence_gaps(columns), minlength=groups * ECE_BINS)
    return np.stack(scores, axis=1), gaps.reshape(groups, ECE_BINS).astype(np.float64)
