"""Scoring the batches of a cell by several targets: each batch is read once for all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from recal.data.draws import in_batches
from recal.errors import InputError, RecalError
from recal.evaluation.execution import Batch
from recal.results.metrics import score
from recal.suites.class_order import kept_logits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recal.evaluation.backends import Predictors
    from recal.evaluation.execution import Execution
    from recal.evaluation.targets import Target
    from recal.results.runs import Columns
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
                    reason = str(error).strip() or type(error).__name__
                    part.wrong[name] = reason.splitlines()[0]
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
