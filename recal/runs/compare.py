"""Comparing targets of a run on the same images: differences, intervals and tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from os import PathLike
from pathlib import Path

import numpy as np

from recal.errors import InputError, UsageError
from recal.runs.bootstrap import Measured, measure
from recal.runs.quantities import cell_groups, quantities_of
from recal.runs.statistics import ALPHA, holm, mcnemar, paired_mean
from recal.runs.store import SavedRun, open_run
from recal.schema import Record
from recal.suites.suite import Cell


class Difference(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A difference between two targets, the second's value minus the first's.

    Attributes:
        of_first: The first target's value.
        of_second: The second target's value.
        value: The difference.
        low: Lower end of its 95 % interval, by a bootstrap that is paired over images.
        high: Upper end of that interval.
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
        severity: Its severity; None for clean images.
        only_first: Number of images on which only the first target is right.
        only_second: Number of images on which only the second target is right.
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
        first_label: Label of the first target.
        second_label: Label of the second target.
        images: Number of images.
        beyond_noise: Whether any test finds a difference.
        differences: Differences by name of the quantity. The accuracies `clean`, `corrupted` and
            those of each corruption are tested.
        cells: One test for each cell.
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
    """Pairs of targets of a run, compared on the same images.

    Attributes:
        suite: Name of the suite.
        title: Title of the suite.
        provenance: Origin of the corrupted images; None for a clean suite.
        pairs: The pairs, in the order of the request.
    """

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
    record = run.record
    return Comparison(
        suite=record.suite,
        title=record.title,
        provenance=record.provenance,
        pairs=compare_measured(run, pairs),
    )


def compare_measured(run: SavedRun, pairs: Sequence[tuple[Measured, Measured]]) -> tuple[Pair, ...]:
    """Compare pairs of targets by their metrics; tests are corrected for all of the pairs.

    Raises:
        InputError: Two targets share no cell.
    """
    compared = [_Compared(run, *pair) for pair in pairs]
    # three families of tests: whole targets, their corruptions, their cells
    headlines, corruptions, cells = (
        iter(holm(np.concatenate([[], *families])).tolist())
        for families in (
            [list(c.headlines.values()) for c in compared],
            [list(c.corruptions.values()) for c in compared],
            [c.p for c in compared],
        )
    )
    return tuple(
        c.pair(
            {name: (p, next(headlines)) for name, p in c.headlines.items()}
            | {name: (p, next(corruptions)) for name, p in c.corruptions.items()},
            cells,
        )
        for c in compared
    )


class _Compared:
    """Two targets before their tests are corrected."""

    def __init__(self, run: SavedRun, first: Measured, second: Measured) -> None:
        shared = [cell for cell in first.cells if cell in second.cells]
        if not shared:
            raise InputError(
                f"{run.folder}: expected cells of both {first.target.label} and "
                f"{second.target.label}, got none. Run `recal eval` for both again."
            )
        self.run, self.first, self.second = run, first.over(shared), second.over(shared)
        both = zip(self.first.correct, self.second.correct, strict=True)
        gained = [after.astype(np.int8) - before for before, after in both]
        self.only_first = np.array([(change < 0).sum() for change in gained])
        self.only_second = np.array([(change > 0).sum() for change in gained])
        self.p = mcnemar(self.only_first, self.only_second)

        def p_of(cells: Sequence[Cell]) -> float:
            rows = [shared.index(cell) for cell in cells]
            if len(rows) == 1:
                return float(self.p[rows[0]])
            return paired_mean(np.mean([gained[row] for row in rows], axis=0))

        groups = cell_groups(run, shared)
        self.headlines = {
            f"{group.name}_accuracy": p_of(group.cells)
            for group in groups
            if group.by in ("clean", "corrupted")
        }
        self.corruptions = {
            f"{group.name}_accuracy": p_of(group.cells)
            for group in groups
            if group.by == "corruption"
        }

    def pair(self, tests: Mapping[str, tuple[float, float]], corrected: Iterator[float]) -> Pair:
        """Return the pair with its corrected tests.

        Args:
            tests: p-values of accuracies, before and after correction.
            corrected: Corrected p-values of cells; as many are taken as there are cells.
        """
        differences, cells = self._differences(tests), self._cell_tests(corrected)
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

    def _differences(self, tests: Mapping[str, tuple[float, float]]) -> dict[str, Difference]:
        value = self.second.value - self.first.value
        resampled = self.second.resampled - self.first.resampled
        differences = {}
        for name, quantity in quantities_of(self.run, self.first.cells).items():
            found, (low, high) = quantity.difference(value, resampled)
            p, p_holm = tests.get(name, (None, None))
            differences[name] = Difference(
                of_first=float(quantity.of(self.first.value)[0]),
                of_second=float(quantity.of(self.second.value)[0]),
                value=found,
                low=low,
                high=high,
                p=p,
                p_holm=p_holm,
                beyond_noise=None if p_holm is None else p_holm < ALPHA,
            )
        return differences

    def _cell_tests(self, corrected: Iterator[float]) -> tuple[CellTest, ...]:
        tests = []
        for i, (cell, p_holm) in enumerate(zip(self.first.cells, corrected, strict=False)):
            gained = float(self.only_second[i] - self.only_first[i])
            tests.append(
                CellTest(
                    corruption=cell.corruption,
                    severity=cell.severity,
                    only_first=int(self.only_first[i]),
                    only_second=int(self.only_second[i]),
                    difference=gained / self.first.images[i],
                    p=float(self.p[i]),
                    p_holm=p_holm,
                    beyond_noise=p_holm < ALPHA,
                )
            )
        return tuple(tests)
