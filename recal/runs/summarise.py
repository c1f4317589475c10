"""Computing the results of a run from its cells, each of which is read once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recal.runs.bootstrap import Measured, measure_columns
from recal.runs.compare import Pair, compare_measured
from recal.runs.metrics import METRICS, per_image
from recal.runs.quantities import Quantity, cell_groups, cell_metric, quantities_of
from recal.runs.statistics import bounded_mean_interval, mean_interval
from recal.runs.store import Columns, RunTarget, SavedRun, open_run
from recal.runs.summary import (
    HEADLINES,
    CellRow,
    ClassRow,
    PartRow,
    Summary,
    TargetRow,
)
from recal.suites.suite import Cell

# the calibration error is not among the metrics of a class: how often a network is right on images
# of one class is its recall, which its confidence does not estimate
OF_A_CLASS = METRICS[:4]
SHARES = ("accuracy", "top5_accuracy")


def summarise_run(
    folder: str | PathLike[str], *, seed: int = 0
) -> tuple[Summary, tuple[ClassRow, ...]]:
    """Compute every metric of a run from its cells; only its folder is needed.

    Each cell is read once and not kept.

    Args:
        folder: The folder of a run.
        seed: Seed of the bootstrap.

    Returns:
        The summary, and one row for each target, part (`clean` or `corrupted`) and class.

    Raises:
        InputError: The folder is no run, or a cell is damaged.
    """
    run = open_run(Path(folder))
    measured: dict[str, Measured] = {}
    classes: list[ClassRow] = []
    for target in run.targets:
        means = {"clean": _ClassMeans(), "corrupted": _ClassMeans()}
        found = measure_columns(target, _read_cells(run, target, means), seed=seed)
        if found is not None:
            measured[target.name] = found
        for part, of in means.items():
            classes += of.rows(target.name, part)
    pairs = _pairs_with_the_first(run, measured)
    cells = [row for m in measured.values() for row in _cell_rows(m)]
    record = run.record
    summary = Summary(
        suite=record.suite,
        title=record.title,
        provenance=record.provenance,
        reference=None if record.reference is None else record.reference.source,
        images=max((max(m.images) for m in measured.values()), default=0),
        cells_done=len({(row.corruption, row.severity) for row in cells}),
        cells_of_suite=len(run.standard) + 1,
        cells=tuple(cells),
        parts=tuple(row for m in measured.values() for row in _part_rows(run, m)),
        targets=tuple(
            _target_row(run, target, measured.get(target.name), pairs.get(target.name))
            for target in run.targets
        ),
    )
    return summary, tuple(classes)


def _read_cells(
    run: SavedRun, target: RunTarget, means: Mapping[str, _ClassMeans]
) -> Iterator[tuple[Cell, Columns]]:
    """Yield the cells of a target one after the other; the means by class see them as they pass."""
    for cell in run.cells:
        columns = run.columns(target, cell)
        if columns is None:
            continue
        if cell.corruption is None:
            means["clean"].add(columns)
        elif cell in run.standard:
            means["corrupted"].add(columns)
        yield cell, columns


@dataclass
class _ClassMeans:
    """The metrics of each image, summed over cells."""

    labels: NDArray[Any] = field(default_factory=lambda: np.empty(0, np.int64))
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((1, len(OF_A_CLASS))))
    cells: int = 0

    def add(self, columns: Columns) -> None:
        self.labels = columns["label"]
        self.sums = self.sums + per_image(columns)
        self.cells += 1

    def rows(self, target: str, part: str) -> Iterator[ClassRow]:
        for label in np.unique(self.labels):
            values = self.sums[self.labels == label] / self.cells
            columns = dict(zip(OF_A_CLASS, values.T, strict=True))
            yield ClassRow(
                target=target,
                part=part,
                label=int(label),
                n=len(values),
                intervals={
                    name: bounded_mean_interval(x) if name in SHARES else mean_interval(x)
                    for name, x in columns.items()
                },
                **{name: float(x.mean()) for name, x in columns.items()},
            )


def _pairs_with_the_first(run: SavedRun, measured: Mapping[str, Measured]) -> dict[str, Pair]:
    """Compare every target with the run's first one, by the name of the other target."""
    first = measured.get(run.targets[0].name)
    if first is None:
        return {}
    others = [m for m in measured.values() if m is not first and set(m.cells) & set(first.cells)]
    pairs = compare_measured(run, [(first, other) for other in others])
    return {pair.second: pair for pair in pairs}


def _cell_rows(measured: Measured) -> Iterator[CellRow]:
    for cell, images in zip(measured.cells, measured.images, strict=True):
        quantities = {name: cell_metric(measured.cells, [cell], name) for name in METRICS}
        yield CellRow(
            target=measured.target.name,
            corruption=cell.corruption,
            severity=cell.severity,
            n=images,
            **_values(quantities, measured),
        )


def _part_rows(run: SavedRun, measured: Measured) -> Iterator[PartRow]:
    for group in cell_groups(run, measured.cells):
        if group.by in ("clean", "corrupted"):
            continue  # these are in the target's row
        quantities = {name: cell_metric(measured.cells, group.cells, name) for name in METRICS}
        yield PartRow(
            target=measured.target.name,
            by=group.by,
            part=group.name,
            **_values(quantities, measured),
        )


def _target_row(
    run: SavedRun, target: RunTarget, measured: Measured | None, pair: Pair | None
) -> TargetRow:
    known = {} if measured is None else quantities_of(run, measured.cells)
    quantities = {name: known[name] for name in HEADLINES if name in known}
    differences = {} if pair is None else pair.differences
    return TargetRow(
        target=target.name,
        label=target.label,
        adaptation=target.adaptation,
        clean_difference=differences.get("clean_accuracy"),
        corrupted_difference=differences.get("corrupted_accuracy"),
        **({} if measured is None else _values(quantities, measured)),
    )


def _values(quantities: Mapping[str, Quantity], measured: Measured) -> dict[str, Any]:
    """Return values by name, and their intervals as `intervals`."""
    return {name: float(q.of(measured.value)[0]) for name, q in quantities.items()} | {
        "intervals": {name: q.interval(measured) for name, q in quantities.items()}
    }
