"""A run read back from its folder: nothing but the folder is needed to compute every metric."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recal.errors import InputError, UsageError
from recal.files import whole_file, write_whole
from recal.suites.suite import Cell, Reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recal.suites.images import SuiteImages
    from recal.suites.suite import Suite


KEY = b"recal.key"
Columns = dict[str, "NDArray[np.generic]"]


def cell_file(folder: Path, target_sha256: str, cell_name: str) -> Path:
    """Return where a run keeps a cell."""
    return folder / "cells" / target_sha256[:16] / f"{cell_name}.parquet"


def write_cell(path: Path, columns: Columns, key: str) -> None:
    """Write a cell's columns, whole or not at all.

    Args:
        path: The file.
        columns: Equally long arrays, by name.
        key: Hash of all that the cell depends on.
    """
    table = pa.table(columns).replace_schema_metadata({KEY: key.encode()})
    with whole_file(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def sweep(folder: Path) -> None:
    """Remove what a killed process left of a cell that it was writing; the folder is locked."""
    for path in (folder / "cells").rglob(".*.partial"):
        path.unlink(missing_ok=True)


def read_cell(path: Path, key: str | None = None) -> Columns | None:
    """Read a cell, or return None where there is none, or one of another key.

    Raises:
        InputError: The file is damaged, and no key was given to tell whether it is needed.
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


def read_target_cell(folder: Path, target: str, cell_name: str) -> Columns:
    """Read a cell of a run by its target's name.

    Raises:
        InputError: The folder is no run, or has no such target or cell.
    """
    try:
        request = json.loads((folder / "run.json").read_text())
        sha256 = next(t["sha256"] for t in request["targets"] if t["name"] == target)
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise InputError(f"{folder}: expected a run with the target '{target}'.") from error
    columns = read_cell(cell_file(folder, sha256, cell_name))
    if columns is None:
        raise InputError(f"{folder}: expected the cell '{cell_name}' of '{target}', got none.")
    return columns


def json_digest(content: Any) -> str:
    """Return the hash of JSON content, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people and programs, whole or not at all."""
    write_whole(path, json.dumps(content, indent=1) + "\n")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows that share their keys as CSV."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class SavedTarget:
    """A target of a run.

    Attributes:
        name: As the user gave it.
        label: Short, for tables.
        sha256: Identity of the network and its preprocessing.
        adaptation: How it was adapted to the test images, in words; None if it never saw them.
    """

    name: str
    label: str
    sha256: str
    adaptation: str | None


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What a run's folder says.

    Attributes:
        folder: The folder.
        suite: Name of the suite.
        title: One line for people.
        provenance: What the corrupted images are; None for a clean suite.
        cells: The cells that were asked for.
        standard: The corrupted cells that a mean of the whole suite is over.
        reference: The errors that mCE is relative to, or None.
        images: Hash of the numbers and labels of the images that are used, of the clean cell and of
            the corrupted ones.
        targets: In the order of the command.
        held: Names of the cells that hold, by target; None for a run that was not finished. Others
            may lie in the folder from another request.
    """

    folder: Path
    suite: str
    title: str
    provenance: str | None
    cells: tuple[Cell, ...]
    standard: tuple[Cell, ...]
    reference: Reference | None
    images: Mapping[str, str | None]
    targets: tuple[SavedTarget, ...]
    held: Mapping[str, Sequence[str]] | None = None

    def columns(self, target: SavedTarget, cell: Cell) -> Columns | None:
        """Read a cell; None where the run does not hold it for the images that it was asked for.

        Raises:
            InputError: The file is damaged, or holds other things than a cell.
        """
        if self.held is not None and cell.name not in self.held.get(target.name, ()):
            return None
        path = cell_file(self.folder, target.sha256, cell.name)
        columns = read_cell(path)
        if columns is None:
            return None
        _check_columns(columns, path)
        kind = "clean" if cell.corruption is None else "corrupted"
        found = images_digest(columns["index"], columns["label"])
        return columns if found == self.images[kind] else None

    def pick(self, names: Sequence[str]) -> tuple[SavedTarget, ...]:
        """Return targets by name or label, in the order given; all of them for no names.

        Raises:
            UsageError: There is no such target.
        """
        found = {t.label: t for t in self.targets} | {t.name: t for t in self.targets}
        for name in names:
            if name not in found:
                labels = ", ".join(target.label for target in self.targets)
                raise UsageError(f"{self.folder}: expected one of {labels}, got '{name}'.")
        return tuple(found[name] for name in names) or self.targets


def open_run(folder: Path) -> SavedRun:
    """Read what a run's folder says of it.

    Raises:
        InputError: It is no folder of a run, or another version's.
    """
    path = folder / "run.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: expected the folder of a run of `recal eval`, got no readable "
                         "run.json in it.") from error  # fmt: skip
    try:
        declared = content["declared"]
        standard = tuple(_cell(name) for name in declared["standard"])
        return SavedRun(
            folder=folder,
            suite=content["suite"],
            title=declared["title"],
            provenance=content["provenance"],
            cells=tuple(_cell(name) for name in content["cells"]),
            standard=standard,
            reference=_reference(declared["reference"], standard),
            images={kind: declared["images"][kind] for kind in ("clean", "corrupted")},
            targets=_targets(content["targets"]),
            held=_held(content["held"]) if "held" in content else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: expected what this version of recal writes, got something else ({error}). "
            "Say the same `recal eval` again: it writes the file anew and keeps the cells."
        ) from error


def declared(suite: Suite, images: SuiteImages) -> dict[str, Any]:
    """Return what run.json keeps of a suite and its images, because metrics depend on it."""
    reference = suite.reference
    chosen = {"clean": images.of_clean, "corrupted": images.of_corrupted}
    return {
        "title": suite.title,
        "images": {
            kind: None if of is None else images_digest(of.indices, of.labels[of.indices])
            for kind, of in chosen.items()
        },
        "standard": [cell.name for cell in suite.cells()],
        "reference": None if reference is None else {
            "source": reference.source,
            "clean_error": reference.clean_error,
            "errors": dict(reference.errors),
        },
    }  # fmt: skip


def images_digest(indices: NDArray[Any], labels: NDArray[Any]) -> str:
    """Return the hash of the numbers and labels of images."""
    return hashlib.sha256(np.stack([indices, labels]).astype("<i8").tobytes()).hexdigest()


def _cell(name: str) -> Cell:
    if name == "clean":
        return Cell(None, None)
    corruption, _, severity = name.rpartition("-")
    # names become paths, which must stay in the folder
    if not re.fullmatch(r"\w[\w.-]*", corruption):
        raise ValueError(f"cell {name!r}")
    return Cell(corruption, int(severity))


def _reference(content: Mapping[str, Any] | None, standard: Sequence[Cell]) -> Reference | None:
    if content is None:
        return None
    reference = Reference(**content)
    wanted = {cell.corruption for cell in standard}
    if not all(0 < float(reference.errors[name or ""]) <= 1 for name in wanted):
        raise ValueError("reference errors beyond 0 to 1")
    return reference


def _held(content: Mapping[str, Any]) -> dict[str, list[str]]:
    for names in content.values():
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise TypeError(f"cells {names!r}")
    return dict(content)


def _targets(content: Sequence[Mapping[str, Any]]) -> tuple[SavedTarget, ...]:
    if not content:
        raise ValueError("no targets")
    return tuple(_target(target) for target in content)


def _target(content: Mapping[str, Any]) -> SavedTarget:
    for name in ("name", "label"):
        if not isinstance(content[name], str):
            raise TypeError(f"{name} {content[name]!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", content["sha256"]):
        raise ValueError(f"sha256 {content['sha256']!r}")
    fields = ("name", "label", "sha256", "adaptation")
    return SavedTarget(**{name: content[name] for name in fields})


def _check_columns(columns: Columns, path: Path) -> None:
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise InputError(f"{path}: expected a cell of a run, got no {', '.join(missing)} in it.")
    for name in COLUMNS:
        column = columns[name]
        if column.dtype.kind not in "iuf" or not np.isfinite(column.astype(np.float64)).all():
            raise InputError(f"{path}: expected numbers as {name}, got others. Evaluate it again.")


COLUMNS = ("index", "label", "rank", "confidence", "nll", "sum_p2")
