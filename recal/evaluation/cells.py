"""Finding the cells of a run, or computing and writing them: alone or by several processes."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from recal.data.sampling import in_batches
from recal.distributed import ALONE, WHOLE, Part, World
from recal.errors import InputError, RecalError, reason
from recal.evaluation.backends import Predictors
from recal.evaluation.execution import Batch, Execution
from recal.evaluation.targets import Target
from recal.progress import Progress, silent
from recal.runs.metrics import score
from recal.runs.store import (
    Columns,
    ImageDigests,
    RunRecord,
    RunTarget,
    cell_file,
    images_digest,
    read_cell,
    write_cell,
)
from recal.schema import to_json
from recal.suites.images import SuiteImages
from recal.suites.suite import Cell, Suite, class_count, kept_logits
from recal.version import __version__

# part of every cell's key: increase it when a change of this code changes a number
EVALUATION_VERSION = 2

T = TypeVar("T")
OnCell = Callable[[Cell, dict[str, Columns]], None]
"""Called with each cell that is done and its columns by target name, which are then dropped."""


def drop_cell(_cell: Cell, _columns: dict[str, Columns]) -> None:
    """Do nothing with a cell."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that an evaluation computes, by networks of one input size and number of classes."""

    suite: Suite
    cells: Sequence[Cell]
    targets: Sequence[Target]
    images: SuiteImages
    execution: Execution
    output: Path | None  # by default `runs/<suite>-<hash of the record>`

    @cached_property
    def record(self) -> RunRecord:
        """The content of the run's `run.json`."""
        adaptation = self.execution.adaptation
        clean, corrupted = (
            None if chosen is None else images_digest(chosen.indices, chosen.labels[chosen.indices])
            for chosen in (self.images.of_clean, self.images.of_corrupted)
        )
        return RunRecord(
            suite=self.suite.name,
            suite_sha256=hashlib.sha256(self.suite.text.encode()).hexdigest(),
            title=self.suite.title,
            provenance=self.images.provenance,
            reference=self.suite.reference,
            classes=class_count(self.suite),
            standard=tuple(cell.name for cell in self.suite.cells()),
            cells=tuple(cell.name for cell in self.cells),
            images=ImageDigests(clean=clean, corrupted=corrupted),
            seed=self.images.seed,
            execution=self.execution.identity,
            targets=tuple(
                RunTarget(
                    name=target.name,
                    label=target.label,
                    sha256=target.sha256,
                    adaptation=adaptation.text if adaptation else None,
                    model=target.spec,
                )
                for target in self.targets
            ),
            versions={"recal": __version__, "torch": str(torch.__version__)},
        )

    @cached_property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.output or Path("runs") / f"{self.suite.name}-{self.record.request[:12]}"

    @property
    def networks(self) -> dict[str, Target]:
        """One target for each identity: targets with equal ones are computed once."""
        first: dict[str, Target] = {}
        for target in self.targets:
            first.setdefault(target.sha256, target)
        return first

    def count(self, cell: Cell) -> int:
        """Return the number of images of a cell."""
        return len(self.images.chosen(cell).indices)


@dataclass
class Share:
    """What one process has computed of a cell, which it sends to the leading process."""

    # by identity of the network and number of the batch
    columns: dict[tuple[str, int], Columns] = field(default_factory=dict)
    # why networks failed, by identity, and why images could not be read
    wrong: dict[str, str] = field(default_factory=dict)
    unreadable: str = ""


@dataclass
class Outcome:
    """What a run holds, by target name, and what failed; complete only in the leading process."""

    held: dict[str, list[str]]
    failures: list[str] = field(default_factory=list)


class Scorer:
    """Reads images of cells and scores them by several networks."""

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
        batches: Mapping[int, NDArray[np.int64]],
        progress: Callable[[int], None] = lambda _images: None,
    ) -> Share:
        """Score batches, by their number, of a cell; a network that fails is left out from then on.

        `progress` is called with the number of images that are done.
        """
        share, done = Share(), 0
        self._predictors.begin_cell()
        chosen = self._work.images.chosen(cell)
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
                        "label": chosen.labels[batch].astype(np.int32),
                        **score(logits, chosen.right(logits, batch)),
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
        self, cell: Cell, networks: Sequence[str], batches: Mapping[int, NDArray[np.int64]]
    ) -> Iterator[tuple[int, NDArray[np.int64], dict[str, Callable[[], NDArray[np.float32]]]]]:
        """Yield batches and, by network, what waits for logits.

        While one is in use, the next one is started, and the one after that is read.
        """

        def begun(images: Batch) -> dict[str, Callable[[], NDArray[np.float32]]]:
            return {network: self._predictors.begin(network, images) for network in networks}

        with ThreadPoolExecutor(1) as pool:
            read = (
                (n, some, pool.submit(self._prepare, cell, some)) for n, some in batches.items()
            )
            yield from _one_late((n, some, begun(of.result())) for n, some, of in _one_late(read))

    def _prepare(self, cell: Cell, batch: NDArray[np.int64]) -> Batch:
        images = Batch(self._work.images.read(cell, batch))
        if self._work.execution.device == "cpu":
            for mean, std in self._preparations:
                images.normalised(mean, std)
        return images


def _one_late(items: Iterator[T]) -> Iterator[T]:
    """Yield each item after the next one has been taken."""
    for first in items:
        held = first
        for following in items:
            yield held
            held = following
        yield held


def compute_cells(
    work: Work,
    *,
    part: Part = WHOLE,
    progress: Progress = silent,
    on_cell: OnCell = drop_cell,
    world: World = ALONE,
) -> Outcome:
    """Find every cell of every target in the run's folder, or compute and write it there.

    With a part, only its share of the cells.

    Several processes share the batches of each cell, the n-th to process n modulo their number.
    The leading one joins and writes them, so that cells equal those of a single process. It calls
    `on_cell` with the columns of each cell, which are dropped before the next one. `progress` is
    called with images of cells done and in total, without cells that were found.

    Raises:
        RecalError: Every cell failed, the disk is full, or another process died.
    """
    cells = part.share(work.cells)
    run = _Run(work, sum(map(work.count, cells)), progress, on_cell, world)
    for cell in cells:
        run.do(cell)
    # no process leaves before the leading one has written everything
    world.wait()
    if world.leads and run.outcome.failures and not any(run.outcome.held.values()):
        raise RecalError("every cell failed. " + " ".join(run.outcome.failures[:3]))
    return run.outcome


class _Run:
    def __init__(
        self, work: Work, images: int, progress: Progress, on_cell: OnCell, world: World
    ) -> None:
        self.outcome = Outcome(held={target.name: [] for target in work.targets})
        self._work, self._progress, self._on_cell, self._world = work, progress, on_cell, world
        self._scorer = Scorer(work)
        self._done, self._total = 0, images

    def do(self, cell: Cell) -> None:
        """Find or compute a cell for all targets; its columns are not kept."""
        try:
            keys = _cell_keys(self._work, cell, self._world)
        except InputError as error:
            self.outcome.failures.append(f"{cell.name}: {error}")
            self._total -= self._work.count(cell)
            return
        columns = {}
        if self._world.leads:
            files = {sha256: cell_file(self._work.folder, sha256, cell) for sha256 in keys}
            read = {sha256: read_cell(path, keys[sha256]) for sha256, path in files.items()}
            columns = {sha256: found for sha256, found in read.items() if found is not None}
        missing = [sha256 for sha256 in self._work.networks if sha256 not in columns]
        missing = self._world.gather(missing)[0]
        if missing:
            shares = self._world.gather(self._computed(cell, missing))
            if self._world.leads:
                columns |= self._written(cell, keys, missing, shares)
            self._done += self._work.count(cell)
        else:
            self._total -= self._work.count(cell)
        self._progress(self._done, self._total)
        if self._world.leads:
            targets = [target for target in self._work.targets if target.sha256 in columns]
            for target in targets:
                self.outcome.held[target.name].append(cell.name)
            self._on_cell(cell, {target.name: columns[target.sha256] for target in targets})

    def _computed(self, cell: Cell, networks: Sequence[str]) -> Share:
        rank, size, total = self._world.rank, self._world.size, self._total
        mine = {n: b for n, b in enumerate(self._scorer.batches(cell)) if n % size == rank}

        def progress(images: int) -> None:
            self._progress(min(total, self._done + images * size), total)

        return self._scorer.score(cell, networks, mine, progress)

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
    order = np.argsort(np.concatenate([piece["index"] for piece in ordered]))
    return {name: np.concatenate([piece[name] for piece in ordered])[order] for name in ordered[0]}


def _cell_keys(work: Work, cell: Cell, world: World) -> dict[str, str]:
    """Return the hash of everything that a cell depends on, by identity of the network.

    Processes share the hashing of the images; an InputError of one of them is raised in all.
    """
    fault, mine = "", list[str]()
    try:
        mine = work.images.fingerprints(cell, slice(world.rank, None, world.size))
    except (InputError, OSError) as error:
        fault = str(error)
    faults, shares = zip(*world.gather((fault, mine)), strict=True)
    if any(faults):
        raise InputError(next(filter(None, faults)))
    rounds = zip_longest(*shares)
    hashes = [digest for of_round in rounds for digest in of_round if digest is not None]
    indices = work.images.chosen(cell).indices.astype("<i8").tobytes()
    common = {
        "version": EVALUATION_VERSION,
        "cell": cell.name,
        "data": work.images.fingerprint(cell, hashes),
        "images": hashlib.sha256(indices).hexdigest(),
        "logits": [work.suite.classes, *work.suite.kept],
        "execution": work.execution.identity,
    }
    return {
        sha256: hashlib.sha256(to_json({**common, "target": sha256}).encode()).hexdigest()
        for sha256 in work.networks
    }
