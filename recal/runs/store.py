"""The folder of a run: the only reader and writer of `run.json` and of the files of its cells."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Meta
from numpy.typing import NDArray

from recal.errors import InputError, UsageError, did_you_mean, shown
from recal.files import locked, whole_file, write_whole
from recal.networks.spec import ModelSpec
from recal.runs.parts import PartRecord, Sha256, digest_of, held_by, read_parts
from recal.schema import Record, read_json_file, to_json
from recal.suites.suite import Cell, Reference

KEY = b"recal.key"
# seconds that a part waits for others that write `run.json`
JOINED = 10.0
# the columns that metrics are computed from; a cell holds `prediction` besides
COLUMNS = ("index", "label", "rank", "confidence", "nll", "sum_p2")
Columns = dict[str, "NDArray[np.generic]"]


class RunTarget(Record, frozen=True, kw_only=True):
    """A target of a run.

    Attributes:
        sha256: Identity of the network and its preprocessing.
        adaptation: How it was adapted to the test images, in words; None if it never saw them.
    """

    name: str
    label: str
    sha256: Sha256
    adaptation: str | None
    model: ModelSpec


class AttackedCell(Record, frozen=True, kw_only=True):
    """What the images of a cell were made by.

    Attributes:
        cell: Name of the cell.
        attack: The attack, in words.
        target: Name of the target that was attacked; all targets predict the images.
    """

    cell: str
    attack: str
    target: str


class ImageDigests(Record, frozen=True, kw_only=True):
    """Hashes of the images of the clean cell and of every corrupted cell, or None."""

    clean: Sha256 | None
    corrupted: Sha256 | None


class RunRecord(Record, frozen=True, kw_only=True):
    """The content of a run's `run.json`: what was requested, and what metrics depend on.

    Attributes:
        suite_sha256: Hash of the suite's text.
        provenance: Origin of the corrupted images; None for a clean suite.
        reference: The errors that mCE is relative to, or None.
        classes: Number of classes that are told apart.
        standard: Names of the corrupted cells of the whole suite.
        cells: Names of the cells that were requested.
        seed: Seed of the sample of images and of corruptions made on the fly.
        attacks: How the images of cells were attacked.
        execution: How networks were run, as far as numbers depend on it.
        versions: Versions of the packages that numbers depend on.
        held: Names of the cells that hold, by target; None until the run is finished. Other files
            may be in the folder from another request.
    """

    suite: str
    suite_sha256: str
    title: str
    provenance: str | None
    reference: Reference | None
    classes: Annotated[int, Meta(ge=1)]
    standard: tuple[str, ...]
    cells: tuple[str, ...]
    images: ImageDigests
    seed: int
    attacks: tuple[AttackedCell, ...] = ()
    execution: str
    targets: Annotated[tuple[RunTarget, ...], Meta(min_length=1)]
    versions: dict[str, str]
    held: dict[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        for name in self.cells:
            Cell.parse(name)
        corruptions = {Cell.parse(name).corruption or "" for name in self.standard}
        if self.reference and not corruptions <= self.reference.errors.keys():
            missing = ", ".join(sorted(corruptions - self.reference.errors.keys()))
            raise ValueError(
                f"reference: errors: expected those of every corruption, got no {missing}."
            )

    @property
    def request(self) -> str:
        """The hash of what was requested."""
        # who says how networks are fed is of no account
        replace = msgspec.structs.replace
        targets = tuple(replace(t, model=t.model.computed) for t in self.targets)
        return digest_of(replace(self, held=None, targets=targets))


@dataclass(frozen=True)
class SavedRun:
    """A run in its folder; cells are read one at a time, on request.

    Attributes:
        parts: What its parts have done, as long as no summary of all of them was made.
    """

    folder: Path
    record: RunRecord
    parts: tuple[PartRecord, ...] = ()

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The cells that were requested."""
        return tuple(Cell.parse(name) for name in self.record.cells)

    @cached_property
    def standard(self) -> tuple[Cell, ...]:
        """The corrupted cells that a mean of the whole suite is over."""
        return tuple(Cell.parse(name) for name in self.record.standard)

    @property
    def targets(self) -> tuple[RunTarget, ...]:
        """The targets, in the order of the request."""
        return self.record.targets

    def columns(self, target: RunTarget, cell: Cell) -> Columns | None:
        """Read a cell; None where the run does not hold it for the images of the request.

        Raises:
            InputError: The file is damaged, or is not a cell.
        """
        held = self.record.held
        if held is not None and cell.name not in held.get(target.name, ()):
            return None
        path = cell_file(self.folder, target.sha256, cell)
        columns = read_cell(path)
        if columns is None:
            return None
        if missing := [name for name in COLUMNS if name not in columns]:
            raise InputError(
                f"{path}: expected a cell of a run, got no {', '.join(missing)} in it."
            )
        for name in COLUMNS:
            column = columns[name]
            if column.dtype.kind not in "iuf" or not np.isfinite(column.astype(np.float64)).all():
                raise InputError(
                    f"{path}: expected finite numbers as {name}, got others. Evaluate it again."
                )
        images = self.record.images
        wanted = images.clean if cell.corruption is None else images.corrupted
        return columns if images_digest(columns["index"], columns["label"]) == wanted else None

    def pick(self, names: Sequence[str]) -> tuple[RunTarget, ...]:
        """Return targets by name or label, in the order given; without names, all of them.

        Raises:
            UsageError: The run has no such target.
        """
        found = {t.label: t for t in self.targets} | {t.name: t for t in self.targets}
        for name in names:
            if name not in found:
                labels = ", ".join(target.label for target in self.targets)
                raise UsageError(
                    f"{self.folder}: expected one of {labels}, got {shown(name)}."
                    f"{did_you_mean(name, found)}"
                )
        return tuple(found[name] for name in names) or self.targets


def open_run(folder: Path) -> SavedRun:
    """Open the folder of a run; cells are not read yet.

    Raises:
        InputError: It is no folder of a run, or its `run.json` is damaged or of another version.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise InputError(
            f"{folder}: expected the folder of a run of `recal eval`, got no run.json in it."
        )
    try:
        record = read_json_file(path, RunRecord)
    except InputError as error:
        raise InputError(
            f"{error} Run the same `recal eval` again: it writes the file anew and keeps the cells."
        ) from error
    parts = read_parts(folder, record.request) if record.held is None else ()
    if parts:
        record = msgspec.structs.replace(record, held=held_by(parts, record.cells))
    return SavedRun(folder, record, parts)


def write_record(folder: Path, record: RunRecord) -> None:
    """Write a run's `run.json`, whole or not at all."""
    write_whole(folder / "run.json", to_json(record, indent=1) + "\n")


def join_run(folder: Path, record: RunRecord) -> None:
    """Write the `run.json` of a run of several parts, or find that of the same request.

    Raises:
        InputError: The folder is of another request, or its `run.json` is damaged.
        LockedError: Another process works on the whole run.
    """
    with locked(folder, wait=JOINED):
        if (folder / "run.json").is_file():
            there = open_run(folder).record
            if there.request != record.request:
                raise InputError(_other_request(folder, there, record))
        write_record(folder, record)


def _other_request(folder: Path, there: RunRecord, record: RunRecord) -> str:
    names = [name for name in RunRecord.__struct_fields__ if name != "held"]
    differing = [name for name in names if getattr(there, name) != getattr(record, name)]
    simple = {
        name: f" ({shown(getattr(record, name))} instead of {shown(getattr(there, name))})"
        for name in ("suite", "seed", "execution", "versions")
    }
    listing = ", ".join(name + simple.get(name, "") for name in differing)
    return (
        f"{folder}: expected the request that its other parts are of, got another one: {listing}. "
        "Give each request a folder of its own with -o; all parts need the same targets, options, "
        "kind of device and versions."
    )


def read_target_cell(folder: Path, target: str, cell_name: str) -> Columns:
    """Read a cell of a run by its target's name and its own.

    Raises:
        InputError: The folder is no run, or does not hold the cell.
        UsageError: The run has no such target.
    """
    run = open_run(folder)
    columns = run.columns(run.pick([target])[0], Cell.parse(cell_name))
    if columns is None:
        raise InputError(f"{folder}: expected the cell '{cell_name}' of '{target}', got no such.")
    return columns


def cell_file(folder: Path, target_sha256: str, cell: Cell) -> Path:
    """Return the path of a cell's file; targets of equal identity share it."""
    return folder / "cells" / target_sha256[:16] / f"{cell.name}.parquet"


def write_cell(path: Path, columns: Columns, key: str) -> None:
    """Write a cell's columns, whole or not at all; `key` is the hash of all that it depends on."""
    table = pa.table(columns).replace_schema_metadata({KEY: key.encode()})
    with whole_file(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_cell(path: Path, key: str | None = None) -> Columns | None:
    """Read a cell; None where there is no file, or one of another key.

    Raises:
        InputError: The file is damaged, and no key was given by which it could be made anew.
    """
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        if key is not None:
            return None  # it is computed again
        raise InputError(f"{path}: expected a cell of a run, got {error}.") from error
    if key is not None and (table.schema.metadata or {}).get(KEY) != key.encode():
        return None
    return {name: table[name].to_numpy() for name in table.column_names}


def write_batch(path: Path, number: int, columns: Columns, key: str) -> None:
    """Write the columns of one batch of the cell that will be written to a path."""
    write_cell(_batch_file(path, number), columns, key)


def read_batch(path: Path, number: int, key: str) -> Columns | None:
    """Read one batch of a cell that is not finished; None if there is none of this key."""
    return read_cell(_batch_file(path, number), key)


def remove_batches(path: Path) -> None:
    """Remove the batches of a cell that is finished."""
    for piece in path.parent.glob(f".{path.stem}.*.batch"):
        piece.unlink(missing_ok=True)


def _batch_file(path: Path, number: int) -> Path:
    return path.with_name(f".{path.stem}.{number}.batch")


def remove_partial_cells(folder: Path) -> None:
    """Remove the partly written cells of a killed process; the caller has locked the folder."""
    for path in (folder / "cells").rglob(".*.partial"):
        path.unlink(missing_ok=True)


def images_digest(indices: NDArray[np.generic], labels: NDArray[np.generic]) -> str:
    """Return the hash of the indices and labels of images."""
    return hashlib.sha256(np.stack([indices, labels]).astype("<i8").tobytes()).hexdigest()
