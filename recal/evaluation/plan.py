"""What an evaluation will take, before it is done: cells, images, bytes, and time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recal.errors import RecalError
from recal.evaluation.backends import Predictors
from recal.evaluation.cells import cell_batches, score_batches
from recal.progress import Progress, silent
from recal.runs.store import cell_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from recal.evaluation.cells import Work
    from recal.suites.suite import Cell


# batches that are timed, after one that is not
TIMED = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an evaluation will take.

    Attributes:
        targets: Number of networks.
        cells: Of each network.
        images: In all cells together, each read once for all networks.
        forwards: Images times networks.
        bytes: Read of the disk, about; 0 where everything is made of clean images.
        kept: Cells of all networks that the run's folder holds already, if nothing has changed.
        rates: Images a second of one process, by what was timed: `clean`, and every corruption.
        faults: Why a corruption or all targets would fail, by what was timed.
        seconds: For all of it, by this many processes like this one.
        processes: See there.
    """

    targets: int
    cells: int
    images: int
    forwards: int
    bytes: int
    kept: int
    rates: dict[str, float]
    faults: dict[str, str]
    seconds: float
    processes: int


def make_plan(
    work: Work,
    *,
    processes: int = 1,
    progress: Progress = silent,
) -> Plan:
    """Count an evaluation's work, and time a few batches of each corruption on this machine.

    Nothing is written. What would fail is noted, and takes no time.

    Args:
        work: The evaluation.
        processes: That will share the work.
        progress: Called with corruptions timed and to be timed.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in work.cells:
        groups.setdefault(cell.corruption or "clean", []).append(cell)
    predictors = Predictors(work.targets, work.execution)
    rates: dict[str, float] = {}
    faults: dict[str, str] = {}
    seconds = 0.0
    for number, (name, cells) in enumerate(groups.items()):
        try:
            rates[name] = _rate(work, cells[len(cells) // 2], predictors)
            seconds += sum(_count(work, cell) for cell in cells) / rates[name]
        except RecalError as error:
            faults[name] = str(error)
        progress(number + 1, len(groups))
    images = sum(_count(work, cell) for cell in work.cells)
    kept = sum(
        cell_file(work.folder, target.sha256, cell.name).is_file()
        for target in work.targets
        for cell in work.cells
    )
    return Plan(
        targets=len(work.targets),
        cells=len(work.cells),
        images=images,
        forwards=images * len(work.targets),
        bytes=sum(work.images.size_in_bytes(cell) for cell in work.cells),
        kept=kept,
        rates=rates,
        faults=faults,
        seconds=seconds / processes,
        processes=processes,
    )


def _rate(work: Work, cell: Cell, predictors: Predictors) -> float:
    """Return the images a second at which a cell is read, corrupted and scored by all targets."""
    names = [target.name for target in work.targets]
    batches = cell_batches(work, cell)[: 1 + TIMED]
    timed = batches[1:] or batches
    _score(work, cell, names, predictors, batches[:1])
    begun = time.perf_counter()
    _score(work, cell, names, predictors, timed)
    return sum(map(len, timed)) / (time.perf_counter() - begun)


def _score(
    work: Work,
    cell: Cell,
    names: Sequence[str],
    predictors: Predictors,
    batches: Sequence[NDArray[np.int64]],
) -> None:
    part = score_batches(work, cell, names, predictors, dict(enumerate(batches)))
    if part.unreadable or len(part.wrong) == len(names):
        raise RecalError(part.unreadable or next(iter(part.wrong.values())))


def _count(work: Work, cell: Cell) -> int:
    return len(work.images.chosen(cell).indices)
