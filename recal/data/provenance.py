"""The record that regenerated data carry, and the label that every result with them shows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from recal.errors import InputError
from recal.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PROVENANCE = "PROVENANCE.json"
REGENERATED = "regenerated: not comparable digit for digit with the published set"


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """Return the record of a folder of regenerated data, or None where there is none.

    Raises:
        InputError: There is a record that cannot be read.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON, got {error}. Generate the set again.") from error
    if not isinstance(record, dict) or "label" not in record:
        raise InputError(f"{path}: expected a record with a label. Generate the set again.")
    return record


def write_provenance(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a folder, whole or not at all."""
    write_whole(folder / PROVENANCE, json.dumps(dict(record), indent=1) + "\n")


def label_of(folder: Path) -> str | None:
    """Return the label that results made from a folder must show, or None for published data."""
    record = read_provenance(folder)
    return None if record is None else str(record["label"])
