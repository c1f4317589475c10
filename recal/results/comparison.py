"""Whether targets of a run differ beyond noise, on the same images."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recal.errors import InputError, UsageError
from recal.results.measured import measure
from recal.results.pairs import CellTest, Comparison, Difference, Pair
from recal.results.quantities import parts_of, quantities_of
from recal.results.saved import open_run
from recal.results.significance import holm, mcnemar, paired_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from recal.results.measured import Measured
    from recal.results.saved import SavedRun
    from recal.suites.suite import Cell


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
