"""A part of an evaluation, whose other parts are computed by other jobs in the same folder.

Each part takes a fixed share of the cells and holds a lock on itself while it works. When it is
done, it takes over the parts that have died, unless another part is still at work, which will.
"""

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import msgspec

from recal.distributed import ALONE, Part, World
from recal.errors import LockedError
from recal.evaluation.cells import OnCell, Work, compute_cells, drop_cell
from recal.files import locked
from recal.progress import Progress, silent
from recal.runs.parts import FOLDER, PartRecord, read_parts, write_part
from recal.runs.store import Columns, join_run
from recal.suites.suite import Cell


def compute_part(
    work: Work,
    part: Part,
    *,
    progress: Progress = silent,
    on_cell: OnCell = drop_cell,
    world: World = ALONE,
) -> None:
    """Compute the cells of a part, and then those of parts that have died.

    The record of each part in the run's folder tells what it holds and what failed. In a job of
    several processes, these share the batches of each cell.

    Raises:
        InputError: The folder is of another request.
        LockedError: Another process is at work on this part, or on the whole run.
        RecalError: The same faults as for `compute_cells`.
    """
    with ExitStack() as locks:

        def next_dead() -> Part | None:
            for record in read_parts(work.folder, work.record.request):
                if record.finished or not _lock(work.folder, record.part).exists():
                    continue
                try:
                    locks.enter_context(_locked(work.folder, record.part))
                except LockedError:
                    return None  # it is alive, and takes over what is dead when it is done
                return record.part
            return None

        if world.leads:
            join_run(work.folder, work.record)
            locks.enter_context(_locked(work.folder, part))
        todo: Part | None = part
        while todo is not None:
            _compute(work, todo, progress, on_cell, world)
            todo = world.ask_leader(next_dead)


def _compute(work: Work, part: Part, progress: Progress, on_cell: OnCell, world: World) -> None:
    record = PartRecord(
        request=work.record.request,
        number=part.number,
        count=part.count,
        execution=work.execution.describe(),
        warnings=work.images.warnings,
    )

    def keep(cell: Cell, columns: dict[str, Columns]) -> None:
        nonlocal record
        record = record.with_cell(cell.name, columns)
        write_part(work.folder, record)
        on_cell(cell, columns)

    if world.leads:
        write_part(work.folder, record)
    outcome = compute_cells(work, part=part, progress=progress, on_cell=keep, world=world)
    if world.leads:
        failures = tuple(outcome.failures)
        write_part(work.folder, msgspec.structs.replace(record, finished=True, failures=failures))


def refuse_parts_at_work(folder: Path) -> None:
    """Raise a LockedError if a living process is at work on a part of a run."""
    for path in sorted((folder / FOLDER).glob(".*.lock")):
        with _locked(folder, Part.parse(path.stem.removeprefix(".").replace("-of-", "/"))):
            pass


def _lock(folder: Path, part: Part) -> Path:
    return folder / FOLDER / f".{part.name}.lock"


def _locked(folder: Path, part: Part) -> AbstractContextManager[None]:
    path = _lock(folder, part)
    return locked(path.parent, path.name, what=f"part {part}")
