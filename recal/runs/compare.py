"""Whether targets of a run differ beyond noise, on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recal.errors import InputError, UsageError
from recal.runs.bootstrap import measure
from recal.runs.quantities import parts_of, quantities_of
from recal.runs.statistics import ALPHA, holm, mcnemar, paired_mean
from recal.runs.store import open_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from recal.runs.bootstrap import Measured
    from recal.runs.store import SavedRun, SavedTarget
    from recal.suites.suite import Cell


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference, the second target's value minus the first's, with its 95 % interval.

    Attributes:
        of_first: The first target's value.
        of_second: The second's.
        value: What was found.
        low: Lower end of the interval of a paired bootstrap over images.
        high: Its upper end.
        p: Of no difference; None where it was not tested.
        p_holm: The same, corrected for all the tests of its family: clean and corrupted accuracy of
            every pair, or the corruptions of every pair.
    """

    of_first: float
    of_second: float
    value: float
    low: float
    high: float
    p: float | None = None
    p_holm: float | None = None

    @property
    def beyond_noise(self) -> bool:
        """Whether the corrected test finds a difference."""
        return self.p_holm is not None and self.p_holm < ALPHA


@dataclass(frozen=True, kw_only=True)
class CellTest:
    """McNemar's test of two targets in one cell.

    Attributes:
        cell: The cell.
        only_first: Images on which the first target alone is right.
        only_second: Images on which the second alone is.
        difference: Of the accuracies, second minus first.
        p: Exact, two-sided.
        p_holm: Corrected for all cells of all pairs.
    """

    cell: Cell
    only_first: int
    only_second: int
    difference: float
    p: float
    p_holm: float

    @property
    def beyond_noise(self) -> bool:
        """Whether the corrected test finds a difference."""
        return self.p_holm < ALPHA


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two targets, over the cells that the run holds for both.

    Attributes:
        first: The target that the other is compared with.
        second: The other.
        images: How many there are.
        differences: By name of the quantity. The accuracies `clean`, `corrupted` and those of each
            corruption are tested.
        cells: One test a cell.
    """

    first: SavedTarget
    second: SavedTarget
    images: int
    differences: Mapping[str, Difference]
    cells: tuple[CellTest, ...]

    @property
    def beyond_noise(self) -> bool:
        """Whether anything tested differs."""
        return any(d.beyond_noise for d in self.differences.values()) or any(
            test.beyond_noise for test in self.cells
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Pairs of targets of a run.

    Attributes:
        run: The run.
        pairs: In the order in which they were asked for.
    """

    run: SavedRun
    pairs: tuple[Pair, ...]

    def document(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "suite": self.run.suite,
            "title": self.run.title,
            "provenance": self.run.provenance,
            "pairs": [_pair_document(pair) for pair in self.pairs],
        }


def _pair_document(pair: Pair) -> dict[str, Any]:
    return {
        "first": pair.first.name,
        "second": pair.second.name,
        "first_label": pair.first.label,
        "second_label": pair.second.label,
        "images": pair.images,
        "beyond_noise": pair.beyond_noise,
        "differences": {
            name: {
                "of_first": difference.of_first,
                "of_second": difference.of_second,
                **difference_document(difference),
            }
            for name, difference in pair.differences.items()
        },
        "cells": [
            {
                "corruption": test.cell.corruption,
                "severity": test.cell.severity,
                "only_first": test.only_first,
                "only_second": test.only_second,
                "difference": test.difference,
                "p": test.p,
                "p_holm": test.p_holm,
                "beyond_noise": test.beyond_noise,
            }
            for test in pair.cells
        ],
    }


def difference_document(difference: Difference) -> dict[str, Any]:
    """Return a difference for programs; p-values only where it was tested."""
    found: dict[str, Any] = {
        "value": difference.value, "low": difference.low, "high": difference.high,
    }  # fmt: skip
    if difference.p is not None:
        found |= {
            "p": difference.p,
            "p_holm": difference.p_holm,
            "beyond_noise": difference.beyond_noise,
        }
    return found


def compare(
    folder: str | PathLike[str],
    targets: Sequence[str] = (),
    *,
    every_pair: bool = False,
    seed: int = 0,
) -> Comparison:
    """Compare targets of a run, each with the first of them.

    Args:
        folder: The run's, or the run that `evaluate` returned.
        targets: Names or labels, two or more; all of the run's by default.
        every_pair: Compare each with each.
        seed: Of the bootstrap.

    Raises:
        InputError: The folder is no run, or the run holds no cell that two targets share.
        UsageError: Fewer than two targets, or an unknown one.
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
            f"{', '.join(sorted(missing))}. Say its `recal eval` again."
        )
    pairs = list(combinations(measured, 2)) if every_pair else [
        (measured[0], other) for other in measured[1:]
    ]  # fmt: skip
    return Comparison(run=run, pairs=compare_measured(run, pairs))


def compare_measured(run: SavedRun, pairs: Sequence[tuple[Measured, Measured]]) -> tuple[Pair, ...]:
    """Compare targets whose metrics are known; tests are corrected for all of the pairs.

    Raises:
        InputError: Two targets share no cell.
    """
    compared = [_Compared(run, *pair) for pair in pairs]
    # three families of tests: what is said of a target, of its corruptions, and of its cells
    headlines, corruptions, cells = (
        iter(holm(np.concatenate([[], *families])).tolist())
        for families in (
            [list(c.headlines.values()) for c in compared],
            [list(c.corruptions.values()) for c in compared],
            [c.p for c in compared],
        )
    )
    return tuple(
        Pair(
            first=c.first.target,
            second=c.second.target,
            images=max(c.first.images),
            differences=c.tested(
                {name: (p, next(headlines)) for name, p in c.headlines.items()}
                | {name: (p, next(corruptions)) for name, p in c.corruptions.items()}
            ),
            cells=c.cell_tests(cells),
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
                f"{second.target.label}, got none. Say their `recal eval` again."
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

        parts = parts_of(run, shared)
        self.headlines = {
            f"{part.name}_accuracy": p_of(part.cells)
            for part in parts
            if part.by in ("clean", "corrupted")
        }
        self.corruptions = {
            f"{part.name}_accuracy": p_of(part.cells) for part in parts if part.by == "corruption"
        }

    def tested(self, p_values: Mapping[str, tuple[float, float]]) -> dict[str, Difference]:
        """Return every difference, with the p-values of those that were tested."""
        value = self.second.value - self.first.value
        resampled = self.second.resampled - self.first.resampled
        differences = {}
        for name, quantity in quantities_of(self.run, self.first.cells).items():
            found, (low, high) = quantity.difference(value, resampled)
            p, p_holm = p_values.get(name, (None, None))
            differences[name] = Difference(
                of_first=float(quantity.of(self.first.value)[0]),
                of_second=float(quantity.of(self.second.value)[0]),
                value=found, low=low, high=high, p=p, p_holm=p_holm,
            )  # fmt: skip
        return differences

    def cell_tests(self, corrected: Iterator[float]) -> tuple[CellTest, ...]:
        """Return the cells' tests; takes as many corrected p-values as there are cells."""
        return tuple(
            CellTest(
                cell=cell,
                only_first=int(self.only_first[i]),
                only_second=int(self.only_second[i]),
                difference=float(self.only_second[i] - self.only_first[i]) / self.first.images[i],
                p=float(self.p[i]),
                p_holm=next(corrected),
            )
            for i, cell in enumerate(self.first.cells)
        )
