"""Finding the cells of a run, or computing and writing them: alone or by several processes."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch

from recal.distributed import ALONE, WHOLE, Part, World
from recal.errors import InputError, RecalError
from recal.evaluation.attacked import CLEAN, Attacked
from recal.evaluation.execution import Execution
from recal.evaluation.scoring import Scorer, Share
from recal.evaluation.targets import Target
from recal.progress import Progress, silent
from recal.runs.store import (
    Columns,
    ImageDigests,
    RunRecord,
    RunTarget,
    cell_file,
    images_digest,
    read_batch,
    read_cell,
    remove_batches,
    write_batch,
    write_cell,
)
from recal.schema import to_json
from recal.suites.images import SuiteImages
from recal.suites.suite import Cell, Suite, class_count
from recal.version import __version__

# part of every cell's key: increase it when a change of this code changes a number
EVALUATION_VERSION = 3

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
    attacked: Mapping[Cell, Attacked] = field(default_factory=dict)
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
            # attacked images are the clean ones, changed
            images=ImageDigests(clean=clean, corrupted=clean if self.attacked else corrupted),
            seed=self.images.seed,
            attacks=tuple(attacked.record(cell) for cell, attacked in self.attacked.items()),
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

    def scorer(self) -> Scorer:
        """Return a scorer of the cells' images by these networks."""
        networks = [*self.networks.values()]
        return Scorer(self.suite, networks, self.images, self.execution, self.attacked)

    def count(self, cell: Cell) -> int:
        """Return the number of images of a cell."""
        return len(self.images.chosen(self.read_from(cell)).indices)

    def steps(self, cell: Cell) -> int:
        """Return the number of images that a cell reads, twice where statistics need them first."""
        adaptation, images = self.execution.adaptation, self.count(cell)
        return images + (adaptation.estimated_on(images) if adaptation else 0)

    def read_from(self, cell: Cell) -> Cell:
        """Return the cell whose images are read: the clean one for attacks."""
        return CLEAN if cell in self.attacked else cell


@dataclass
class Outcome:
    """What a run holds, by target name, and what failed; complete only in the leading process."""

    held: dict[str, list[str]]
    failures: list[str] = field(default_factory=list)


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
    called with images of cells done and in total, without cells that were found; images that
    statistics are estimated on first count twice.

    Raises:
        RecalError: Every cell failed, the disk is full, or another process died.
    """
    adaptation = work.execution.adaptation
    cells = part.share(work.cells)
    run = _Run(work, sum(map(work.steps, cells)), progress, on_cell, world)
    for cell in cells:
        run.do(cell)
        if run.outcome.failures and adaptation and cell.name in adaptation.continual:
            break  # the cells after it would start with other statistics
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
        self._scorer = work.scorer()
        self._done, self._total = 0, images
        # of a continual sequence: the cells so far, the key of the last one by identity of the
        # network, and the networks whose statistics are those after the last one
        self._sequence: list[Cell] = []
        self._last: dict[str, str] = {}
        self._moved: set[str] = set()

    def do(self, cell: Cell) -> None:
        """Find or compute a cell for all targets; its columns are not kept."""
        adaptation = self._work.execution.adaptation
        continual = adaptation is not None and cell.name in adaptation.continual
        try:
            keys = _cell_keys(self._work, cell, self._world, self._last if continual else {})
        except InputError as error:
            self.outcome.failures.append(f"{cell.name}: {error}")
            self._total -= self._work.steps(cell)
            return
        columns = {}
        if self._world.leads:
            files = {sha256: cell_file(self._work.folder, sha256, cell) for sha256 in keys}
            read = {sha256: read_cell(path, keys[sha256]) for sha256, path in files.items()}
            columns = {sha256: found for sha256, found in read.items() if found is not None}
        missing = [
            sha256
            for sha256 in self._work.networks
            if sha256 not in columns or (continual and sha256 in self._moved)
        ]
        missing = self._world.gather(missing)[0]
        if continual:
            self._catch_up(missing)
            self._sequence.append(cell)
            self._last = keys
        if missing:
            shares = self._world.gather(self._computed(cell, missing, keys))
            if self._world.leads:
                columns |= self._written(cell, keys, missing, shares)
            self._done += self._work.steps(cell)
        else:
            self._total -= self._work.steps(cell)
        self._progress(self._done, self._total)
        if self._world.leads:
            targets = [target for target in self._work.targets if target.sha256 in columns]
            for target in targets:
                self.outcome.held[target.name].append(cell.name)
            self._on_cell(cell, {target.name: columns[target.sha256] for target in targets})

    def _catch_up(self, networks: Sequence[str]) -> None:
        """Let networks see the cells of the sequence that they have skipped, as they were found."""
        behind = [sha256 for sha256 in networks if sha256 not in self._moved]
        for earlier in self._sequence if behind else []:
            self._scorer.score(earlier, behind, dict(enumerate(self._scorer.batches(earlier))))
        self._moved |= set(behind)

    def _computed(self, cell: Cell, networks: Sequence[str], keys: Mapping[str, str]) -> Share:
        rank, size, total = self._world.rank, self._world.size, self._total
        mine = {n: b for n, b in enumerate(self._scorer.batches(cell)) if n % size == rank}

        def progress(images: int) -> None:
            self._progress(min(total, self._done + images * size), total)

        # attacks take so long that their batches are kept; processes of other machines have no
        # folder to keep them in
        if cell not in self._work.attacked or not self._work.folder.is_dir():
            return self._scorer.score(cell, networks, mine, progress)
        files = {sha256: cell_file(self._work.folder, sha256, cell) for sha256 in networks}
        kept: dict[tuple[str, int], Columns] = {}
        for number in [*mine]:
            found = {n: read_batch(files[n], number, keys[n]) for n in networks}
            if None not in found.values():
                kept |= {(n, number): columns for n, columns in found.items() if columns}
                del mine[number]

        def keep(network: str, number: int, columns: Columns) -> None:
            write_batch(files[network], number, columns, keys[network])

        share = self._scorer.score(cell, networks, mine, progress, keep)
        share.columns |= kept
        return share

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
                remove_batches(path)
        return written


def _joined(shares: Sequence[Share], network: str) -> Columns:
    """Return the columns of a network in dataset order, which adapted networks do not follow."""
    pieces = {key: columns for share in shares for key, columns in share.columns.items()}
    ordered = [pieces[key] for key in sorted(pieces) if key[0] == network]
    order = np.argsort(np.concatenate([piece["index"] for piece in ordered]))
    return {name: np.concatenate([piece[name] for piece in ordered])[order] for name in ordered[0]}


def _cell_keys(work: Work, cell: Cell, world: World, last: Mapping[str, str]) -> dict[str, str]:
    """Return the hash of everything that a cell depends on, by identity of the network.

    `last` are the keys of the cell that this one continues. Processes share the hashing of the
    images; an InputError of one of them is raised in all.
    """
    fault, mine = "", list[str]()
    read_from, attacked = work.read_from(cell), work.attacked.get(cell)
    try:
        mine = work.images.fingerprints(read_from, slice(world.rank, None, world.size))
    except (InputError, OSError) as error:
        fault = str(error)
    faults, shares = zip(*world.gather((fault, mine)), strict=True)
    if any(faults):
        raise InputError(next(filter(None, faults)))
    rounds = zip_longest(*shares)
    hashes = [digest for of_round in rounds for digest in of_round if digest is not None]
    indices = work.images.chosen(read_from).indices.astype("<i8").tobytes()
    common = {
        "version": EVALUATION_VERSION,
        "cell": cell.name,
        "data": work.images.fingerprint(read_from, hashes),
        "attack": attacked and attacked.identity,
        "images": hashlib.sha256(indices).hexdigest(),
        "logits": [work.suite.classes, *work.suite.kept],
        "execution": work.execution.identity,
    }
    return {
        sha256: hashlib.sha256(
            to_json({**common, "target": sha256, "after": last.get(sha256)}).encode()
        ).hexdigest()
        for sha256 in work.networks
    }
