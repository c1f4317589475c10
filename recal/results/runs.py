"""Runs: a folder with one file a cell, written whole, found again by what the cell depends on."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from recal.errors import InputError
from recal.files import whole_file, write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

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
