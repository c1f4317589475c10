"""What an evaluation will take, before it is done: cells, images, bytes, and time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recal.errors import RecalError
from recal.evaluation.cells import Scorer
from recal.progress import Progress, silent
from recal.runs.store import cell_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from recal.evaluation.cells import Work
    from recal.suites.suite import Cell


# number of batches that are timed, after one that is not
TIMED = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an evaluation will take.

    Attributes:
        targets: Number of targets.
        cells: Number of cells of each target.
        images: Number of images in all cells together, each read once for all targets.
        forwards: Number of forward passes: images times networks; targets with equal tensors and
            preprocessing are one network.
        bytes: Approximate number of bytes read from the disk; 0 if everything is made of clean
            images.
        kept: Number of cells of all targets that the folder of the run already has, if nothing has
            changed.
        rates: Images per second of one process, for `clean` and every corruption.
        faults: Why a corruption or all targets would fail, by what was timed.
        seconds: Time for all of it by `processes` processes like this one.
        processes: Number of processes that `seconds` assumes.
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


def make_plan(work: Work, *, processes: int = 1, progress: Progress = silent) -> Plan:
    """Count an evaluation's work, and time a few batches of each corruption on this machine.

    Nothing is written. Failures are collected, and their time is not counted.

    Args:
        work: The evaluation.
        processes: Number of processes that will share the work.
        progress: Called with the number of corruptions timed and in total.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in work.cells:
        groups.setdefault(cell.corruption or "clean", []).append(cell)
    scorer = Scorer(work)
    rates: dict[str, float] = {}
    faults: dict[str, str] = {}
    seconds = 0.0
    for number, (name, cells) in enumerate(groups.items()):
        try:
            rates[name] = _rate(scorer, cells[len(cells) // 2], [*work.networks])
            seconds += sum(_count(work, cell) for cell in cells) / rates[name]
        except RecalError as error:
            faults[name] = str(error)
        progress(number + 1, len(groups))
    images = sum(_count(work, cell) for cell in work.cells)
    kept = sum(
        cell_file(work.folder, target.sha256, cell).is_file()
        for target in work.targets
        for cell in work.cells
    )
    return Plan(
        targets=len(work.targets),
        cells=len(work.cells),
        images=images,
        forwards=images * len(work.networks),
        bytes=sum(work.images.size_in_bytes(cell) for cell in work.cells),
        kept=kept,
        rates=rates,
        faults=faults,
        seconds=seconds / processes,
        processes=processes,
    )


def _rate(scorer: Scorer, cell: Cell, networks: Sequence[str]) -> float:
    """Return the images per second at which a cell is read, corrupted and scored."""
    batches = scorer.batches(cell)[: 1 + TIMED]
    timed = batches[1:] or batches
    _score(scorer, cell, networks, batches[:1])
    started = time.perf_counter()
    _score(scorer, cell, networks, timed)
    return sum(map(len, timed)) / (time.perf_counter() - started)


def _score(
    scorer: Scorer, cell: Cell, networks: Sequence[str], batches: Sequence[NDArray[np.int64]]
) -> None:
    share = scorer.score(cell, networks, dict(enumerate(batches)))
    if share.unreadable or len(share.wrong) == len(networks):
        raise RecalError(share.fault)


def _count(work: Work, cell: Cell) -> int:
    return len(work.images.chosen(cell).indices)
