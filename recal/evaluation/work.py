"""Finding the cells of a run, or computing and writing them: alone or by several processes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from recal.distributed import ALONE
from recal.errors import InputError, RecalError
from recal.evaluation.backends import Predictors
from recal.evaluation.scoring import Part, cell_batches, score_batches
from recal.results.runs import cell_file, json_digest, read_cell, write_cell

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from recal.distributed import World
    from recal.evaluation.scoring import Work
    from recal.results.runs import Columns
    from recal.suites.suite import Cell

# goes into every cell's key: raise it when a change of this code changes a number
EVALUATION_VERSION = 2


@dataclass(frozen=True)
class Progress:
    """Whom to tell how far the work is.

    Attributes:
        images: Called with cell images done and in total; cells that were there do not count.
        cell: Called with each cell that is done, and the columns of each target's name that has it.
    """

    images: Callable[[int, int], None] = lambda _done, _total: None
    cell: Callable[[Cell, dict[str, Columns]], None] = lambda _cell, _columns: None


@dataclass
class Results:
    """What has been found and computed so far; complete in the leading process alone.

    Attributes:
        columns: By target name and cell.
        failures: A line for each cell or target that failed.
        computed: Number of (target, cell) pairs that were not there before.
    """

    columns: dict[tuple[str, Cell], Columns] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    computed: int = 0


def compute_cells(work: Work, progress: Progress, world: World = ALONE) -> Results:
    """Find every (target, cell) in the run's folder, or compute and write it there.

    Several processes share the batches of each cell, the n-th to process n modulo their number;
    the leading one puts the parts together and writes them. So the cells are those of a single
    process.

    Raises:
        RecalError: Every cell failed, the disk is full, or another process died.
    """
    results = Results()
    predictors = Predictors(work.targets, work.execution)
    total = sum(len(work.images.chosen(cell).indices) for cell in work.cells)
    done = 0
    for cell in work.cells:
        count = len(work.images.chosen(cell).indices)
        try:
            keys = _cell_keys(work, cell, world)
        except InputError as error:
            results.failures.append(f"{cell.name}: {error}")
            total -= count
            continue
        missing = _find_cells(work, cell, keys, results, world)
        if missing:
            told = partial(_tell, progress, done, total)
            parts = world.gather(_compute_part(work, cell, missing, predictors, world, told))
            if world.leads:
                _finish_cell(work, cell, missing, keys, parts, results)
            done += count
        else:
            total -= count
        progress.images(done, total)
        names = [target.name for target in work.targets if (target.name, cell) in results.columns]
        progress.cell(cell, {name: results.columns[name, cell] for name in names})
    # nobody leaves before the leader has written what is to be written
    world.wait()
    if world.leads and results.failures and not results.columns:
        raise RecalError("every cell failed. " + " ".join(results.failures[:3]))
    return results


def _tell(progress: Progress, before: int, total: int, images: int) -> None:
    progress.images(min(total, before + images), total)


def _compute_part(
    work: Work,
    cell: Cell,
    names: Sequence[str],
    predictors: Predictors,
    world: World,
    progress: Callable[[int], None],
) -> Part:
    batches = dict(enumerate(cell_batches(work, cell)))
    mine = {n: batch for n, batch in batches.items() if n % world.size == world.rank}
    return score_batches(
        work, cell, names, predictors, mine, lambda images: progress(images * world.size)
    )


def _finish_cell(
    work: Work,
    cell: Cell,
    names: Sequence[str],
    keys: dict[str, str],
    parts: Sequence[Part],
    results: Results,
) -> None:
    """Write what is whole, and note what failed."""
    unreadable = [part.unreadable for part in parts if part.unreadable]
    if unreadable:
        results.failures.append(f"{cell.name}: {unreadable[0]}")
        return
    wrong = {name: text for part in reversed(parts) for name, text in part.wrong.items()}
    pieces = {key: columns for part in parts for key, columns in part.columns.items()}
    for target in work.targets:
        if target.name in wrong:
            results.failures.append(f"{target.label}, {cell.name}: {wrong[target.name]}")
        elif target.name in names:
            mine = [pieces[key] for key in sorted(pieces) if key[0] == target.name]
            columns = {name: np.concatenate([piece[name] for piece in mine]) for name in mine[0]}
            order = np.argsort(columns["index"])  # adapted networks see images in another one
            columns = {name: column[order] for name, column in columns.items()}
            path = cell_file(work.folder, target.sha256, cell.name)
            write_cell(path, columns, keys[target.name])
            results.columns[target.name, cell] = columns
            results.computed += 1


def _find_cells(
    work: Work, cell: Cell, keys: dict[str, str], results: Results, world: World
) -> list[str]:
    """Read the cells that the leader finds in the run; return the names of the other targets."""
    missing = []
    for target in work.targets if world.leads else ():
        key = keys[target.name]
        found = read_cell(cell_file(work.folder, target.sha256, cell.name), key)
        if found is None:
            missing.append(target.name)
        else:
            results.columns[target.name, cell] = found
    return world.gather(missing)[0]


def _cell_keys(work: Work, cell: Cell, world: World) -> dict[str, str]:
    """Return the hash of all that a cell depends on, for each target; processes share the work.

    Raises:
        InputError: An image cannot be read, by whichever process.
    """
    fault, mine = "", list[str]()
    try:
        mine = work.images.fingerprints(cell, slice(world.rank, None, world.size))
    except (InputError, OSError) as error:
        fault = str(error)
    shares = world.gather((fault, mine))
    for fault, _ in shares:
        if fault:
            raise InputError(fault)
    hashes: list[str] = []
    for place in range(max(len(share) for _, share in shares)):
        hashes += [share[place] for _, share in shares if place < len(share)]
    data = work.images.fingerprint(cell, hashes)
    indices = work.images.chosen(cell).indices.astype("<i8").tobytes()
    common = {
        "version": EVALUATION_VERSION,
        "cell": cell.name,
        "data": data,
        "images": hashlib.sha256(indices).hexdigest(),
        "logits": [work.suite.classes, work.suite.subset],
        "execution": work.execution.identity,
    }
    return {
        target.name: json_digest({**common, "target": target.sha256}) for target in work.targets
    }
