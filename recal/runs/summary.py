"""From a run's folder to the document that people and programs read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recal.runs.bootstrap import measure
from recal.runs.compare import compare_measured, difference_document
from recal.runs.metrics import METRICS, per_image
from recal.runs.quantities import parts_of, quantities_of
from recal.runs.statistics import (
    bounded_mean_interval,
    mean_interval,
    normal_interval,
    percentile_interval,
    wilson_interval,
)
from recal.runs.store import open_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from recal.runs.bootstrap import Measured
    from recal.runs.compare import Pair
    from recal.runs.quantities import Quantity
    from recal.runs.statistics import Interval
    from recal.runs.store import Columns, SavedRun, SavedTarget


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


# of a target, in the summary; those that a run does not allow are null there
HEADLINES = (
    *(f"{part}_{metric}" for part in ("clean", "corrupted") for metric in METRICS),
    "mean_corruption_error",
    "mce",
    "relative_mce",
)


def summarise_run(folder: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """Compute every metric of a run from its cells; nothing but its folder is needed.

    Args:
        folder: The run's.
        seed: Of the bootstrap.

    Returns:
        The document of `summary.json` and `recal eval --json`: `cells`, one row a target and cell;
        `parts`, one row a target and corruption, group of corruptions or severity; `summary`, one
        row a target, with the differences from the first over the cells that both have. Values are
        fractions (nll in nats, brier 0 to 2); `intervals` holds their 95 % intervals by name.

    Raises:
        InputError: The folder is no run.
    """
    run = open_run(Path(folder))
    measured = {t.name: found for t in run.targets if (found := measure(run, t, seed=seed))}
    first = measured.get(run.targets[0].name)
    others = [m for m in list(measured.values()) if first is not None and m is not first]
    pairs: dict[str, Pair] = {}
    if first is not None:
        comparable = [m for m in others if set(m.cells) & set(first.cells)]
        found_pairs = compare_measured(run, [(first, m) for m in comparable])
        pairs = {pair.second.name: pair for pair in found_pairs}
    rows = [row for m in measured.values() for row in _cell_rows(m)]
    return {
        "suite": run.suite,
        "title": run.title,
        "provenance": run.provenance,
        "reference": None if run.reference is None else run.reference.source,
        "images": max((max(m.images) for m in measured.values()), default=0),
        "cells_done": len({(row["corruption"], row["severity"]) for row in rows}),
        "cells_of_suite": len(run.standard) + 1,
        "cells": rows,
        "parts": [row for m in measured.values() for row in _part_rows(run, m)],
        "summary": [_summary_row(run, t, measured.get(t.name), pairs) for t in run.targets],
    }


def flat(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows for a table of numbers: intervals and differences become columns of their own."""
    flattened = []
    for row in rows:
        plain: dict[str, Any] = {}
        intervals = row.get("intervals", {})
        for name, value in row.items():
            if name == "intervals":
                continue
            if name.endswith("_difference"):
                found = value or {}
                plain |= {name: found.get("value")}
                plain |= {f"{name}_{end}": found.get(end) for end in ("low", "high", "p_holm")}
                continue
            plain[name] = value
            if name in METRICS or name in HEADLINES:
                low, high = intervals.get(name, (None, None))
                plain |= {f"{name}_low": low, f"{name}_high": high}
        flattened.append(plain)
    return flattened


def _cell_rows(measured: Measured) -> list[dict[str, Any]]:
    rows = []
    for i, cell in enumerate(measured.cells):
        values = measured.value[0, i].tolist()
        rows.append(
            {
                "target": measured.target.name,
                "corruption": cell.corruption,
                "severity": cell.severity,
                "n": measured.images[i],
                **dict(zip(METRICS, values, strict=True)),
                "intervals": {
                    name: list(
                        _interval(name, value, measured.resampled[:, i, k], measured.images[i])
                    )
                    for k, (name, value) in enumerate(zip(METRICS, values, strict=True))
                },
            }
        )
    return rows


def _interval(name: str, value: float, resampled: Any, images: int) -> Interval:
    if name.endswith("accuracy"):
        return wilson_interval(value, images)
    if name == "ece":
        low, high = normal_interval(value, resampled)
        return max(low, 0.0), high
    return percentile_interval(resampled)


def _part_rows(run: SavedRun, measured: Measured) -> list[dict[str, Any]]:
    quantities = quantities_of(run, measured.cells)
    rows = []
    for part in parts_of(run, measured.cells):
        if part.by in ("clean", "corrupted"):
            continue  # they are in the summary
        found = {metric: quantities[f"{part.name}_{metric}"] for metric in METRICS}
        rows.append(
            {
                "target": measured.target.name,
                "by": part.by,
                "part": part.name,
                **_values(found, measured),
            }
        )
    return rows


def _values(quantities: Mapping[str, Quantity], measured: Measured) -> dict[str, Any]:
    values = {name: float(q.of(measured.value)[0]) for name, q in quantities.items()}
    intervals = {
        name: list(q.interval(measured.value, measured.resampled, measured.images))
        for name, q in quantities.items()
    }
    return {**values, "intervals": intervals}


def _summary_row(
    run: SavedRun, target: SavedTarget, measured: Measured | None, pairs: Mapping[str, Pair]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "target": target.name,
        "label": target.label,
        "adaptation": target.adaptation,
        **dict.fromkeys(HEADLINES),
        "intervals": {},
    }
    if measured is not None:
        quantities = quantities_of(run, measured.cells)
        row |= _values({n: quantities[n] for n in HEADLINES if n in quantities}, measured)
    differences = pairs[target.name].differences if target.name in pairs else {}
    for part in ("clean", "corrupted"):
        difference = differences.get(f"{part}_accuracy")
        row[f"{part}_difference"] = difference and difference_document(difference)
    return row
