"""Comparing targets of a run on the same images: differences, intervals and tests."""

from collections.abc import Sequence
from itertools import combinations
from os import PathLike
from pathlib import Path

import numpy as np

from recal.errors import InputError, UsageError
from recal.runs.metrics import Measured, measure
from recal.runs.quantities import cell_groups, quantities_of
from recal.runs.statistics import ALPHA, holm, mcnemar, paired_mean
from recal.runs.store import SavedRun, open_run
from recal.schema import Record
from recal.suites.suite import Cell

# tests that are corrected together: whole targets, their corruptions, their cells
FAMILIES = ("headlines", "corruptions", "cells")


class Difference(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A difference between two targets, the second's value minus the first's.

    Attributes:
        low, high: Ends of its 95 % interval, by a bootstrap that is paired over images.
        p: p-value of no difference; None where it was not tested.
        p_holm: The p-value corrected for all tests of its family: clean and corrupted accuracy of
            every pair, or the corruptions of every pair.
        beyond_noise: Whether the corrected test finds a difference.
    """

    of_first: float
    of_second: float
    value: float
    low: float
    high: float
    p: float | None = None
    p_holm: float | None = None
    beyond_noise: bool | None = None


class CellTest(Record, frozen=True, kw_only=True):
    """McNemar's test of two targets in one cell.

    Attributes:
        corruption: The cell's corruption; None for clean images.
        only_first, only_second: Numbers of images on which only that target is right.
        difference: Difference of the accuracies, second minus first.
        p: Exact two-sided p-value.
        p_holm: The p-value corrected for all cells of all pairs.
        beyond_noise: Whether the corrected test finds a difference.
    """

    corruption: str | None
    severity: int | None
    only_first: int
    only_second: int
    difference: float
    p: float
    p_holm: float
    beyond_noise: bool


class Pair(Record, frozen=True, kw_only=True):
    """Two targets, over the cells that the run holds for both.

    Attributes:
        first: Name of the target that the other one is compared with.
        second: Name of the other target.
        beyond_noise: Whether any test finds a difference.
        differences: Differences by name of the quantity. The accuracies `clean`, `corrupted` and
            those of each corruption are tested.
    """

    first: str
    second: str
    first_label: str
    second_label: str
    images: int
    beyond_noise: bool
    differences: dict[str, Difference]
    cells: tuple[CellTest, ...]


class Comparison(Record, frozen=True, kw_only=True):
    """Pairs of targets of a run, in the order of the request, compared on the same images."""

    suite: str
    title: str
    provenance: str | None
    pairs: tuple[Pair, ...]


def compare(
    folder: str | PathLike[str],
    targets: Sequence[str] = (),
    *,
    every_pair: bool = False,
    seed: int = 0,
) -> Comparison:
    """Compare targets of a run, each with the first of them.

    Args:
        folder: The folder of a run, or the run that `evaluate` returned.
        targets: Names or labels of two or more targets; by default all of the run's.
        every_pair: Compare each target with each.
        seed: Seed of the bootstrap.

    Raises:
        InputError: The folder is no run, or two targets share no cell.
        UsageError: Fewer than two targets are given, or an unknown one.
    """
    run = open_run(Path(folder))
    chosen = run.pick(targets)
    if len(chosen) < 2:
        raise UsageError(
            f"{run.folder}: expected two targets or more to compare, got {len(chosen)}."
        )
    measured = [found for target in chosen if (found := measure(run, target, seed=seed))]
    if len(measured) < len(chosen):
        missing = {target.label for target in chosen} - {m.target.label for m in measured}
        raise InputError(
            f"{run.folder}: expected cells of every target, got none of "
            f"{', '.join(sorted(missing))}. Run `recal eval` for them again."
        )
    pairs = list(combinations(measured, 2)) if every_pair else [
        (measured[0], other) for other in measured[1:]
    ]  # fmt: skip
    return Comparison(
        suite=run.record.suite,
        title=run.record.title,
        provenance=run.record.provenance,
        pairs=compare_measured(run, pairs),
    )


def compare_measured(run: SavedRun, pairs: Sequence[tuple[Measured, Measured]]) -> tuple[Pair, ...]:
    """Compare pairs of targets by their metrics; tests are corrected for all of the pairs."""
    compared = [_Compared(run, *pair) for pair in pairs]
    for family in FAMILIES:
        tests = [(c, key) for c in compared for key in c.tests[family]]
        corrected = holm(np.array([c.tests[family][key] for c, key in tests], np.float64))
        for (c, key), p_holm in zip(tests, corrected.tolist(), strict=True):
            c.corrected[key] = p_holm
    return tuple(c.pair() for c in compared)


class _Compared:
    """Two targets, the p-values of their tests, and these after correction."""

    def __init__(self, run: SavedRun, first: Measured, second: Measured) -> None:
        cells = [cell for cell in first.cells if cell in second.cells]
        if not cells:
            raise InputError(
                f"{run.folder}: expected cells of both {first.target.label} and "
                f"{second.target.label}, got none. Run `recal eval` for both again."
            )
        self.run, self.first, self.second = run, first.over(cells), second.over(cells)
        both = zip(self.first.correct, self.second.correct, strict=True)
        gained = [after.astype(np.int8) - before for before, after in both]
        self.only_first = np.array([(change < 0).sum() for change in gained])
        self.only_second = np.array([(change > 0).sum() for change in gained])
        p_of_cells = mcnemar(self.only_first, self.only_second).tolist()
        self.corrected: dict[str | Cell, float] = {}
        self.tests: dict[str, dict[str | Cell, float]] = {name: {} for name in FAMILIES}
        self.tests["cells"] |= zip(cells, p_of_cells, strict=True)
        for group in cell_groups(run, cells):
            rows = [cells.index(cell) for cell in group.cells]
            p = p_of_cells[rows[0]]
            if len(rows) > 1:
                p = paired_mean(np.mean([gained[row] for row in rows], axis=0))
            if group.by in ("clean", "corrupted"):
                self.tests["headlines"][f"{group.name}_accuracy"] = p
            elif group.by == "corruption":
                self.tests["corruptions"][f"{group.name}_accuracy"] = p

    def pair(self) -> Pair:
        """Return the pair with its corrected tests."""
        differences, cells = self._differences(), self._cell_tests()
        return Pair(
            first=self.first.target.name,
            second=self.second.target.name,
            first_label=self.first.target.label,
            second_label=self.second.target.label,
            images=max(self.first.images),
            beyond_noise=any(found.beyond_noise for found in differences.values())
            or any(test.beyond_noise for test in cells),
            differences=differences,
            cells=cells,
        )

    def _differences(self) -> dict[str, Difference]:
        value = self.second.value - self.first.value
        resampled = self.second.resampled - self.first.resampled
        p_values = self.tests["headlines"] | self.tests["corruptions"]
        differences = {}
        for name, quantity in quantities_of(self.run, self.first.cells).items():
            found, (low, high) = quantity.difference(value, resampled)
            p_holm = self.corrected.get(name)
            differences[name] = Difference(
                of_first=float(quantity.of(self.first.value)[0]),
                of_second=float(quantity.of(self.second.value)[0]),
                value=found,
                low=low,
                high=high,
                p=p_values.get(name),
                p_holm=p_holm,
                beyond_noise=None if p_holm is None else p_holm < ALPHA,
            )
        return differences

    def _cell_tests(self) -> tuple[CellTest, ...]:
        counts = zip(self.only_first.tolist(), self.only_second.tolist(), strict=True)
        return tuple(
            CellTest(
                corruption=cell.corruption,
                severity=cell.severity,
                only_first=only_first,
                only_second=only_second,
                difference=(only_second - only_first) / images,
                p=self.tests["cells"][cell],
                p_holm=self.corrected[cell],
                beyond_noise=self.corrected[cell] < ALPHA,
            )
            for cell, images, (only_first, only_second) in zip(
                self.first.cells, self.first.images, counts, strict=True
            )
        )
