"""The metrics of each class, from the cells of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recal.results.intervals import bounded_mean_interval, mean_interval
from recal.results.metrics import METRICS, per_image
from recal.results.saved import open_run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recal.results.runs import Columns
    from recal.results.saved import SavedRun, SavedTarget

# the calibration error is none of them: among the images of one class, how often the network is
# right is its recall, which its confidence does not claim to be
OF_A_CLASS = METRICS[:4]


def class_rows(folder: str | Path) -> list[dict[str, Any]]:
    """Compute the metrics of each class; nothing but the run's folder is needed.

    Args:
        folder: The run's.

    Returns:
        One row a target, part (`clean`, or `corrupted`: the mean over the suite's corrupted cells)
        and class: `target`, `part`, `class`, `n` (images) and accuracy, top-5 accuracy, NLL and
        Brier score with 95 % intervals, each as `<metric>`, `<metric>_low`, `<metric>_high`.

    Raises:
        InputError: The folder is no run.
    """
    run = open_run(Path(folder))
    return [row for target in run.targets for row in _rows_of(run, target)]


@dataclass
class _Means:
    """Each image's metrics, the mean over cells."""

    labels: NDArray[Any] = field(default_factory=lambda: np.empty(0, np.int64))
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((1, len(OF_A_CLASS))))
    cells: int = 0

    def add(self, columns: Columns) -> None:
        self.labels = columns["label"]
        self.sums = self.sums + per_image(columns)
        self.cells += 1


def _rows_of(run: SavedRun, target: SavedTarget) -> list[dict[str, Any]]:
    means = {"clean": _Means(), "corrupted": _Means()}
    for cell in run.cells:
        if cell.corruption is not None and cell not in run.standard:
            continue
        columns = run.columns(target, cell)
        if columns is not None:
            means["clean" if cell.corruption is None else "corrupted"].add(columns)
    rows = []
    for part, of in means.items():
        for label in np.unique(of.labels):
            values = of.sums[of.labels == label] / of.cells
            row = {"target": target.name, "part": part, "class": int(label), "n": len(values)}
            rows.append(row | _with_intervals(values))
    return rows


def _with_intervals(values: NDArray[np.float64]) -> dict[str, float]:
    found: dict[str, float] = {}
    for k, name in enumerate(OF_A_CLASS):
        share = name.endswith("accuracy")
        low, high = (bounded_mean_interval if share else mean_interval)(values[:, k])
        found |= {name: float(values[:, k].mean()), f"{name}_low": low, f"{name}_high": high}
    return found
