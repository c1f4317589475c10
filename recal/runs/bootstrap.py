"""A target's metrics in every cell of a run, over all images and in bootstrap resamples of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recal.errors import InputError
from recal.runs.metrics import ECE_BINS, confidence_bins, confidence_gaps, per_image
from recal.runs.statistics import bootstrap_counts, deal
from recal.runs.store import Columns, RunTarget, SavedRun, images_digest
from recal.suites.suite import Cell


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """A target's metrics, in the order of METRICS, in its C cells.

    Attributes:
        target: The target.
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
    """Read a target's cells, one after the other, and compute its metrics.

    Args:
        run: The run.
        target: One of its targets.
        seed: Seed of the resampling and of the halves.
        half: 0 or 1 for one half of the images, even over the classes; None for all of them.

    Returns:
        The metrics in the cells that the run holds; None where it holds none.
    """
    read = ((cell, columns) for cell in run.cells if (columns := run.columns(target, cell)))
    return measure_columns(target, read, seed=seed, half=half)


def measure_columns(
    target: RunTarget,
    columns_of_cells: Iterable[tuple[Cell, Columns]],
    *,
    seed: int = 0,
    half: int | None = None,
) -> Measured | None:
    """Compute a target's metrics from an iterator of cells, which are not kept.

    Args:
        target: The target.
        columns_of_cells: The cells and their columns.
        seed: Seed of the resampling and of the halves.
        half: 0 or 1 for one half of the images, even over the classes; None for all of them.

    Returns:
        The metrics; None without any cell.
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
    """Return the rows of each half of the images, drawn at random, even over the classes.

    Raises:
        InputError: There is only one image.
    """
    if len(labels) < 2:
        raise InputError("expected two images or more to split into halves, got one.")
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return np.sort(order[::2]), np.sort(order[1::2])


class _Sums:
    """Sums over groups of images, in cells of the same images.

    Args:
        group: The number of each image's group, (N,).
    """

    def __init__(self, group: NDArray[np.int64]) -> None:
        self.sizes = np.bincount(group).astype(np.float64)
        self.cells: list[int] = []
        self._group = group
        self._scores: list[NDArray[Any]] = []
        self._gaps: list[NDArray[Any]] = []

    def add(self, number: int, columns: Columns) -> None:
        """Add a cell's images to the sums."""
        groups, values = len(self.sizes), per_image(columns)
        place = self._group * ECE_BINS + confidence_bins(columns)
        gaps = np.bincount(place, confidence_gaps(columns), minlength=groups * ECE_BINS)
        self._scores += [np.bincount(self._group, values[:, k], minlength=groups) for k in range(4)]
        self._gaps.append(gaps.reshape(groups, ECE_BINS))
        self.cells.append(number)

    def metrics(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the metrics of the cells, (R, C, 5), for weights (R, G) on the groups."""
        cells = len(self.cells)
        images = (weights @ self.sizes)[:, None, None]
        means = (weights @ np.stack(self._scores, axis=1)).reshape(-1, cells, 4) / images
        gaps = (weights @ np.concatenate(self._gaps, axis=1)).reshape(-1, cells, ECE_BINS)
        ece = np.abs(gaps).sum(axis=2, keepdims=True) / images
        return np.concatenate([means, ece], axis=2)
