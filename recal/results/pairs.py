"""Pairs of targets and what was found of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recal.results.significance import ALPHA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recal.results.saved import SavedRun, SavedTarget
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
