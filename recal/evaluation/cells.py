"""Finding the cells of a run, or computing and writing them: alone or by several processes."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from recal.data.sampling import in_batches
from recal.distributed import ALONE
from recal.errors import InputError, RecalError, reason
from recal.evaluation.backends import Predictors
from recal.evaluation.execution import Batch
from recal.runs.metrics import score
from recal.runs.store import cell_file, json_digest, read_cell, write_cell
from recal.suites.classes import kept_logits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recal.distributed import World
    from recal.evaluation.execution import Execution
    from recal.evaluation.targets import Target
    from recal.runs.store import Columns
    from recal.suites.images import SuiteImages
    from recal.suites.suite import Cell, Suite


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that an evaluation computes.

    Attributes:
        suite: The benchmark.
        cells: In the order of the work.
        targets: All of the same input size and number of classes.
        images: Where the cells' images come from, and which are used.
        execution: How networks are run.
        folder: The run's.
    """

    suite: Suite
    cells: Sequence[Cell]
    targets: Sequence[Target]
    images: SuiteImages
    execution: Execution
    folder: Path


@dataclass
class Part:
    """What one process has computed of a cell; it travels to the leader.

    Attributes:
        columns: By target name and number of the batch.
        wrong: What is wrong with a target, by its name.
        unreadable: What is wrong with the images, or empty.
    """

    columns: dict[tuple[str, int], Columns] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    unreadable: str = ""


def cell_batches(work: Work, cell: Cell) -> list[NDArray[np.int64]]:
    """Return the indices of a cell's images, cut into batches; adaptation has its own."""
    indices, execution = work.images.chosen(cell).indices, work.execution
    if execution.adaptation:
        return execution.adaptation.batches(indices)
    return in_batches(indices, execution.batch_size)


def score_batches(
    work: Work,
    cell: Cell,
    names: Sequence[str],
    predictors: Predictors,
    batches: dict[int, NDArray[np.int64]],
    progress: Callable[[int], None] = lambda _images: None,
) -> Part:
    """Score batches of a cell by several targets.

    A target that fails is left out from then on; the others go on.

    Args:
        work: The evaluation.
        cell: The cell.
        names: Of the targets.
        predictors: Of all targets.
        batches: Indices of images, by the number of their batch.
        progress: Called with the number of images done.
    """
    part, done = Part(), 0
    predictors.begin_cell()
    labels, kept = work.images.chosen(cell).labels, kept_logits(work.suite)
    try:
        for number, batch, started in _started(work, cell, names, predictors, batches):
            for name, logits_of in started.items():
                if name in part.wrong:
                    continue
                try:
                    logits = _checked_logits(logits_of(), batch, work.suite)
                except (RecalError, RuntimeError, MemoryError) as error:
                    known = isinstance(error, RecalError)
                    part.wrong[name] = str(error) if known else reason(error)
                    continue
                if kept is not None:
                    logits = logits[:, kept]
                identity = {"index": batch.astype(np.int32), "label": labels[batch].astype("i4")}
                part.columns[name, number] = {**identity, **score(logits, labels[batch])}
            done += len(batch)
            progress(done)
    except InputError as error:
        part.unreadable = str(error)
    return part


def _checked_logits(
    logits: NDArray[np.float32], batch: NDArray[np.int64], suite: Suite
) -> NDArray[np.float32]:
    if logits.shape != (len(batch), suite.classes):
        raise InputError(f"expected logits {(len(batch), suite.classes)}, got {logits.shape}.")
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise InputError(f"NaN or infinite logits, first for image {batch[~finite][0]}.")
    return logits


def _started(
    work: Work,
    cell: Cell,
    names: Sequence[str],
    predictors: Predictors,
    batches: dict[int, NDArray[np.int64]],
) -> Iterator[tuple[int, NDArray[np.int64], dict[str, Callable[[], NDArray[np.float32]]]]]:
    """Yield batches and, by target, what waits for their logits; the next one is begun before."""
    previous = None
    for number, batch, images in _read_ahead(work, cell, batches):
        begun = {name: predictors.begin(name, images) for name in names}
        if previous is not None:
            yield previous
        previous = number, batch, begun
    if previous is not None:
        yield previous


def _read_ahead(
    work: Work, cell: Cell, batches: dict[int, NDArray[np.int64]]
) -> Iterator[tuple[int, NDArray[np.int64], Batch]]:
    """Yield batches; the next one is read, corrupted and normalised while one is in use."""
    preparations = {(target.spec.mean, target.spec.std) for target in work.targets}

    def prepare(batch: NDArray[np.int64]) -> Batch:
        images = Batch(work.images.read(cell, batch))
        if work.execution.device == "cpu":
            for mean, std in preparations:
                images.normalised(mean, std)
        return images

    with ThreadPoolExecutor(1) as pool:
        ahead = None
        previous: tuple[int, NDArray[np.int64]] | None = None
        for number, batch in batches.items():
            following = pool.submit(prepare, batch)
            if ahead is not None and previous is not None:
                yield *previous, ahead.result()
            ahead, previous = following, (number, batch)
        if ahead is not None and previous is not None:
            yield *previous, ahead.result()


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
