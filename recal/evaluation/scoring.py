"""Scoring the images of cells: read, normalised and predicted, batch after batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from recal.data.sampling import in_batches
from recal.errors import InputError, RecalError, reason
from recal.evaluation.attacked import CLEAN, Attacked, AttackedBatch
from recal.evaluation.backends import Predictors
from recal.evaluation.execution import Batch, Execution
from recal.evaluation.targets import Target
from recal.runs.metrics import score
from recal.runs.store import Columns
from recal.suites.images import SuiteImages
from recal.suites.suite import Cell, Suite, kept_logits

T = TypeVar("T")
# what a network can raise, which ends its cell alone
FAULTS = (RecalError, RuntimeError, MemoryError)


class _UnreadableError(Exception):
    """Images of a cell cannot be read; the message is for the user."""


def _fault(error: BaseException) -> str:
    return str(error) if isinstance(error, RecalError) else reason(error)


@dataclass(frozen=True)
class _CellImages:
    """Batches of a cell's images, which can be read several times."""

    batches: Sequence[NDArray[np.int64]]
    prepare: Callable[[NDArray[np.int64]], Batch]

    def __iter__(self) -> Iterator[Batch]:
        return map(self.prepare, self.batches)


@dataclass
class Share:
    """What one process has computed of a cell, which it sends to the leading process."""

    # by identity of the network and number of the batch
    columns: dict[tuple[str, int], Columns] = field(default_factory=dict)
    # why networks failed, by identity, and why images could not be read
    wrong: dict[str, str] = field(default_factory=dict)
    unreadable: str = ""


class Scorer:
    """Reads images of a suite's cells and scores them by several networks of different identity."""

    def __init__(
        self,
        suite: Suite,
        networks: Sequence[Target],
        images: SuiteImages,
        execution: Execution,
        attacked: Mapping[Cell, Attacked],
    ) -> None:
        self._suite, self._images, self._execution = suite, images, execution
        self._attacked = attacked
        self._predictors = Predictors(networks, execution)
        self._preparations = {target.spec.normalisation for target in networks}
        self._kept = kept_logits(suite)

    def batches(self, cell: Cell) -> list[NDArray[np.int64]]:
        """Return the indices of a cell's images, cut into batches."""
        chosen, execution = self._images.chosen(self._read_from(cell)), self._execution
        if execution.adaptation:
            return execution.adaptation.batches(chosen.indices, chosen.labels)
        return in_batches(chosen.indices, execution.batch_size)

    def score(
        self,
        cell: Cell,
        networks: Sequence[str],
        batches: Mapping[int, NDArray[np.int64]],
        progress: Callable[[int], None] = lambda _images: None,
        keep: Callable[[str, int, Columns], None] = lambda _network, _number, _columns: None,
    ) -> Share:
        """Score batches, by their number, of a cell; a network that fails is left out from then on.

        `progress` is called with the number of images that are done, those that statistics are
        estimated on included, `keep` with every network, number of a batch, and their columns.
        """
        share = Share()
        chosen = self._images.chosen(self._read_from(cell))
        try:
            done = self._begin(cell, networks, batches, share, progress)
            for number, batch, started in self._started(cell, networks, batches):
                for network, logits_of in started.items():
                    if network in share.wrong:
                        continue
                    try:
                        logits = self._checked(logits_of(), batch)
                    except FAULTS as error:
                        share.wrong[network] = _fault(error)
                        continue
                    share.columns[network, number] = {
                        "index": batch.astype(np.int32),
                        "label": chosen.labels[batch].astype(np.int32),
                        **score(logits, chosen.right(logits, batch)),
                    }
                    keep(network, number, share.columns[network, number])
                done += len(batch)
                progress(done)
        except _UnreadableError as error:
            share.unreadable = str(error)
        return share

    def _begin(
        self,
        cell: Cell,
        networks: Sequence[str],
        batches: Mapping[int, NDArray[np.int64]],
        share: Share,
        progress: Callable[[int], None],
    ) -> int:
        """Let adapted networks begin a cell, unless it continues the one before it.

        It returns the number of images that statistics were estimated on.
        """
        adaptation = self._execution.adaptation
        if adaptation is None or adaptation.continues(cell.name) or not batches:
            return 0
        images = np.concatenate([*batches.values()])[: adaptation.samples]
        read = _CellImages(
            [*in_batches(images, adaptation.batch)], lambda some: self._prepare(cell, some)
        )
        used = adaptation.estimated_on(sum(map(len, batches.values())))
        for number, network in enumerate(networks):

            def of_layers(done: int, layers: int, before: int = number) -> None:
                progress(int(used * (before + done / layers) / len(networks)))

            try:
                self._predictors.begin_cell(network, read, of_layers)
            except FAULTS as error:
                share.wrong[network] = _fault(error)
        return used

    def _read_from(self, cell: Cell) -> Cell:
        """Return the cell whose images are read: the clean one for attacks."""
        return CLEAN if cell in self._attacked else cell

    def _checked(
        self, logits: NDArray[np.float32], batch: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the logits of the classes that count."""
        shape = (len(batch), self._suite.classes)
        if logits.shape != shape:
            raise InputError(f"expected logits {shape}, got {logits.shape}.")
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            raise InputError(f"NaN or infinite logits, first for image {batch[~finite][0]}.")
        return logits if self._kept is None else logits[:, self._kept]

    def _started(
        self, cell: Cell, networks: Sequence[str], batches: Mapping[int, NDArray[np.int64]]
    ) -> Iterator[tuple[int, NDArray[np.int64], dict[str, Callable[[], NDArray[np.float32]]]]]:
        """Yield batches and, by network, what waits for logits.

        While one is in use, the next one is started, and the one after that is read.
        """
        attacked = self._attacked.get(cell)

        def begun(
            images: Batch, batch: NDArray[np.int64]
        ) -> dict[str, Callable[[], NDArray[np.float32]]]:
            if attacked is not None:
                labels = self._images.chosen(CLEAN).labels[batch]
                attack = partial(self._predictors.attack, attacked, labels, batch)
                images = AttackedBatch(images, attack, torch.device(self._execution.device))
            return {network: self._predictors.begin(network, images) for network in networks}

        with ThreadPoolExecutor(1) as pool:
            read = (
                (n, some, pool.submit(self._prepare, cell, some)) for n, some in batches.items()
            )
            yield from _one_late(
                (n, some, begun(of.result(), some)) for n, some, of in _one_late(read)
            )

    def _prepare(self, cell: Cell, batch: NDArray[np.int64]) -> Batch:
        try:
            images = Batch(self._images.read(self._read_from(cell), batch))
        except InputError as error:
            raise _UnreadableError(str(error)) from error
        if self._execution.device == "cpu":
            for normalisation in self._preparations:
                images.normalised(normalisation)
        return images


def _one_late(items: Iterator[T]) -> Iterator[T]:
    """Yield each item after the next one has been taken."""
    for first in items:
        held = first
        for following in items:
            yield held
            held = following
        yield held
