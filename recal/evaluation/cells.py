"""Finding the cells of a run, or computing and writing them: alone or by several processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from recal.data.sampling import in_batches
from recal.distributed import ALONE
from recal.errors import InputError, RecalError, reason
from recal.evaluation.backends import Predictors
from recal.evaluation.execution import Batch
from recal.progress import Progress, silent
from recal.runs.metrics import score
from recal.runs.store import Columns, cell_file, read_cell, write_cell
from recal.schema import to_json
from recal.suites.suite import Cell, Suite, kept_logits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recal.distributed import World
    from recal.evaluation.execution import Execution
    from recal.evaluation.targets import Target
    from recal.runs.store import RunRecord
    from recal.suites.images import SuiteImages


# part of every cell's key: increase it when a change of this code changes a number
EVALUATION_VERSION = 2

OnCell = Callable[[Cell, dict[str, Columns]], None]
"""Called with each cell that is done and its columns by target name, which are then dropped."""


def drop_cell(_cell: Cell, _columns: dict[str, Columns]) -> None:
    """Do nothing with a cell."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Everything that an evaluation computes.

    Attributes:
        suite: The benchmark.
        cells: The cells, in the order of the work.
        targets: The targets, with equal input sizes and numbers of classes.
        images: The images of the cells.
        execution: How networks are run.
        folder: The folder of the run.
        record: The content of its `run.json`.
    """

    suite: Suite
    cells: Sequence[Cell]
    targets: Sequence[Target]
    images: SuiteImages
    execution: Execution
    folder: Path
    record: RunRecord

    @property
    def networks(self) -> dict[str, Target]:
        """One target for each identity: targets with equal ones are computed once."""
        networks: dict[str, Target] = {}
        for target in self.targets:
            networks.setdefault(target.sha256, target)
        return networks


@dataclass
class Share:
    """The batches of a cell that one process has computed; it is sent to the leading process.

    Attributes:
        columns: Columns by identity of the network and number of the batch.
        wrong: Why a network failed, by its identity.
        unreadable: Why images could not be read, or empty.
    """

    columns: dict[tuple[str, int], Columns] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    unreadable: str = ""

    @property
    def fault(self) -> str:
        """The first reason for a failure, or empty."""
        return self.unreadable or next(iter(self.wrong.values()), "")


@dataclass
class Outcome:
    """The state of a run after its cells were computed; complete only in the leading process.

    Attributes:
        held: Names of the cells that the run holds, by target name.
        failures: A line for each cell or target that failed.
    """

    held: dict[str, list[str]]
    failures: list[str] = field(default_factory=list)


class Scorer:
    """Reads images of cells and scores them by several networks.

    Args:
        work: The evaluation.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._predictors = Predictors([*work.networks.values()], work.execution)
        self._preparations = {(target.spec.mean, target.spec.std) for target in work.targets}
        self._kept = kept_logits(work.suite)

    def batches(self, cell: Cell) -> list[NDArray[np.int64]]:
        """Return the indices of a cell's images, cut into batches."""
        indices, execution = self._work.images.chosen(cell).indices, self._work.execution
        if execution.adaptation:
            return execution.adaptation.batches(indices)
        return in_batches(indices, execution.batch_size)

    def score(
        self,
        cell: Cell,
        networks: Sequence[str],
        batches: dict[int, NDArray[np.int64]],
        progress: Callable[[int], None] = lambda _images: None,
    ) -> Share:
        """Score batches of a cell; a network that fails is left out from then on.

        Args:
            cell: The cell.
            networks: Identities of the networks.
            batches: Indices of images, by the number of their batch.
            progress: Called with the number of images that are done.
        """
        share, done = Share(), 0
        self._predictors.begin_cell()
        labels = self._work.images.chosen(cell).labels
        try:
            for number, batch, started in self._started(cell, networks, batches):
                for network, logits_of in started.items():
                    if network in share.wrong:
                        continue
                    try:
                        logits = self._checked(logits_of(), batch)
                    except (RecalError, RuntimeError, MemoryError) as error:
                        known = isinstance(error, RecalError)
                        share.wrong[network] = str(error) if known else reason(error)
                        continue
                    share.columns[network, number] = {
                        "index": batch.astype(np.int32),
                        "label": labels[batch].astype(np.int32),
                        **score(logits, labels[batch]),
                    }
                done += len(batch)
                progress(done)
        except InputError as error:
            share.unreadable = str(error)
        return share

    def _checked(
        self, logits: NDArray[np.float32], batch: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the logits of the classes that count."""
        shape = (len(batch), self._work.suite.classes)
        if logits.shape != shape:
            raise InputError(f"expected logits {shape}, got {logits.shape}.")
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            raise InputError(f"NaN or infinite logits, first for image {batch[~finite][0]}.")
        return logits if self._kept is None else logits[:, self._kept]

    def _started(
        self, cell: Cell, networks: Sequence[str], batches: dict[int, NDArray[np.int64]]
    ) -> Iterator[tuple[int, NDArray[np.int64], dict[str, Callable[[], NDArray[np.float32]]]]]:
        """Yield batches and, by network, what waits for logits; one more batch is started."""
        previous = None
        for number, batch, images in self._read_ahead(cell, batches):
            begun = {network: self._predictors.begin(network, images) for network in networks}
            if previous is not None:
                yield previous
            previous = number, batch, begun
        if previous is not None:
            yield previous

    def _read_ahead(
        self, cell: Cell, batches: dict[int, NDArray[np.int64]]
    ) -> Iterator[tuple[int, NDArray[np.int64], Batch]]:
        """Yield batches; the next one is read, corrupted and normalised while one is in use."""
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            previous: tuple[int, NDArray[np.int64]] | None = None
            for number, batch in batches.items():
                following = pool.submit(self._prepare, cell, batch)
                if ahead is not None and previous is not None:
                    yield *previous, ahead.result()
                ahead, previous = following, (number, batch)
            if ahead is not None and previous is not None:
                yield *previous, ahead.result()

    def _prepare(self, cell: Cell, batch: NDArray[np.int64]) -> Batch:
        images = Batch(self._work.images.read(cell, batch))
        if self._work.execution.device == "cpu":
            for mean, std in self._preparations:
                images.normalised(mean, std)
        return images


def compute_cells(
    work: Work,
    *,
    progress: Progress = silent,
    on_cell: OnCell = drop_cell,
    world: World = ALONE,
) -> Outcome:
    """Find every cell of every target in the run's folder, or compute and write it there.

    Several processes share the batches of each cell, the n-th to process n modulo their number.
    The leading one joins and writes them, so that cells equal those of a single process. Columns
    are dropped before the next cell.

    Args:
        work: The evaluation.
        progress: Called with images of cells done and in total, without cells that were found.
        on_cell: Called in the leading process with each cell.
        world: The processes.

    Raises:
        RecalError: Every cell failed, the disk is full, or another process died.
    """
    run = _Run(work, progress, on_cell, world)
    for cell in work.cells:
        run.do(cell)
    # no process leaves before the leading one has written everything
    world.wait()
    if world.leads and run.outcome.failures and not any(run.outcome.held.values()):
        raise RecalError("every cell failed. " + " ".join(run.outcome.failures[:3]))
    return run.outcome


class _Run:
    def __init__(self, work: Work, progress: Progress, on_cell: OnCell, world: World) -> None:
        self.outcome = Outcome(held={target.name: [] for target in work.targets})
        self._work, self._progress, self._on_cell, self._world = work, progress, on_cell, world
        self._scorer = Scorer(work)
        self._done, self._total = 0, sum(self._count(cell) for cell in work.cells)

    def do(self, cell: Cell) -> None:
        """Find or compute a cell for all targets; its columns are not kept."""
        try:
            keys = _cell_keys(self._work, cell, self._world)
        except InputError as error:
            self.outcome.failures.append(f"{cell.name}: {error}")
            self._total -= self._count(cell)
            return
        columns = self._found(cell, keys) if self._world.leads else {}
        missing = [sha256 for sha256 in self._work.networks if sha256 not in columns]
        missing = self._world.gather(missing)[0]
        if missing:
            shares = self._world.gather(self._computed(cell, missing))
            if self._world.leads:
                columns |= self._written(cell, keys, missing, shares)
            self._done += self._count(cell)
        else:
            self._total -= self._count(cell)
        self._progress(self._done, self._total)
        if self._world.leads:
            targets = [target for target in self._work.targets if target.sha256 in columns]
            for target in targets:
                self.outcome.held[target.name].append(cell.name)
            self._on_cell(cell, {target.name: columns[target.sha256] for target in targets})

    def _count(self, cell: Cell) -> int:
        return len(self._work.images.chosen(cell).indices)

    def _found(self, cell: Cell, keys: dict[str, str]) -> dict[str, Columns]:
        files = {sha256: cell_file(self._work.folder, sha256, cell) for sha256 in keys}
        read = {sha256: read_cell(path, keys[sha256]) for sha256, path in files.items()}
        return {sha256: columns for sha256, columns in read.items() if columns is not None}

    def _computed(self, cell: Cell, networks: Sequence[str]) -> Share:
        world, batches = self._world, enumerate(self._scorer.batches(cell))
        mine = {n: batch for n, batch in batches if n % world.size == world.rank}
        return self._scorer.score(
            cell,
            networks,
            mine,
            lambda images: self._progress(
                min(self._total, self._done + images * world.size), self._total
            ),
        )

    def _written(
        self, cell: Cell, keys: dict[str, str], networks: Sequence[str], shares: Sequence[Share]
    ) -> dict[str, Columns]:
        """Join and write the shares of all processes; note what failed."""
        unreadable = [share.unreadable for share in shares if share.unreadable]
        if unreadable:
            self.outcome.failures.append(f"{cell.name}: {unreadable[0]}")
            return {}
        wrong = {sha256: text for share in reversed(shares) for sha256, text in share.wrong.items()}
        self.outcome.failures += [
            f"{target.label}, {cell.name}: {wrong[target.sha256]}"
            for target in self._work.targets
            if target.sha256 in wrong
        ]
        written = {}
        for sha256 in networks:
            if sha256 not in wrong:
                written[sha256] = _joined(shares, sha256)
                path = cell_file(self._work.folder, sha256, cell)
                write_cell(path, written[sha256], keys[sha256])
        return written


def _joined(shares: Sequence[Share], network: str) -> Columns:
    """Return the columns of a network in dataset order, which adapted networks do not follow."""
    pieces = {key: columns for share in shares for key, columns in share.columns.items()}
    ordered = [pieces[key] for key in sorted(pieces) if key[0] == network]
    columns = {name: np.concatenate([piece[name] for piece in ordered]) for name in ordered[0]}
    order = np.argsort(columns["index"])
    return {name: column[order] for name, column in columns.items()}


def _cell_keys(work: Work, cell: Cell, world: World) -> dict[str, str]:
    """Return the hash of everything that a cell depends on, by identity of the network.

    Processes share the hashing of the images.

    Raises:
        InputError: An image cannot be read by one of the processes.
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
        sha256: hashlib.sha256(to_json({**common, "target": sha256}).encode()).hexdigest()
        for sha256 in work.networks
    }
