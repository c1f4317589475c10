"""Checking a data set or a downloaded archive, by name or by path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recal.datasets.catalogue import SUMS, catalogue, find_set
from recal.datasets.fetch import verify, verify_archive
from recal.datasets.generate import GENERATED, verify_folders
from recal.datasets.provenance import read_provenance
from recal.errors import InputError
from recal.wording import did_you_mean

if TYPE_CHECKING:
    from recal.datasets.fetch import StepProgress


def verify_target(target: str, progress: StepProgress) -> str:
    """Check a data set or an archive against its checksums.

    Args:
        target: Name or folder of a data set, or a downloaded archive.
        progress: Called as `progress(step, done_bytes, total_bytes)`.

    Returns:
        A sentence that says what was checked.

    Raises:
        InputError: There is no such data set or file.
        VerificationError: A file is missing or differs.
    """
    path = Path(target)
    if target in catalogue() and not path.exists():
        found = find_set(target)
        if found is None:
            raise InputError(
                f"{target}: expected it in a data folder, got none. See `recal data list`."
            )
        path = found
    if path.is_file():
        return f"{path}: is the published file of {verify_archive(path)}"
    if not path.is_dir():
        raise InputError(
            f"{target}: expected a folder, an archive or the name of a data set, but the path does "
            f"not exist.{did_you_mean(target, {*catalogue(), *GENERATED})}"
        )
    record = read_provenance(path)
    if record is not None and not (path / SUMS).is_file():
        count = verify_folders(path, record)
    else:
        count = verify(path, progress)
    label = f" ({record.label})" if record else ""
    return f"{path}: {count} files as recorded{label}"
