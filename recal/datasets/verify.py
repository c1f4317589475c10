"""Checking a data set or a downloaded archive, by name or by path, against its checksums."""

from pathlib import Path

from recal.datasets.catalogue import SUMS, Provenance, catalogue, find_set, read_provenance
from recal.datasets.download import hash_file
from recal.datasets.fetch import StepProgress, is_portable
from recal.datasets.generate import GENERATED
from recal.errors import InputError, VerificationError, did_you_mean, listed


def verify_target(target: str, progress: StepProgress) -> str:
    """Check a data set or an archive against its checksums.

    Args:
        target: Name or folder of a data set, or a downloaded archive.
        progress: Called as `progress(step, done_bytes, total_bytes)`.

    Returns:
        A sentence that says what was checked.

    Raises:
        InputError: There is no such data set or file, or no checksum of it.
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


def verify_folders(out: Path, record: Provenance) -> int:
    """Check that a regenerated set of folders has all its images, and return their number."""
    again = "Run `recal data generate` again."
    if not record.complete:
        raise VerificationError(f"{out}: expected a complete set, got a part of it. {again}")
    count = 0
    for name in record.corruptions:
        for severity in record.severities:
            cell = out / name / str(severity)
            there = sum(1 for path in cell.rglob("*.JPEG") if path.stat().st_size > 0)
            if there != record.images:
                raise VerificationError(
                    f"{cell}: expected {record.images} images, got {there}. {again}"
                )
            count += there
    return count


def verify(folder: Path, progress: StepProgress) -> int:
    """Check the files of a folder against its SHA256SUMS, and return their number."""
    record = folder / SUMS
    if not record.is_file():
        raise InputError(
            f"{folder}: expected {SUMS} in it, got none. Only sets that recal fetched or generated "
            "have one."
        )
    faults, count, done, total = [], 0, 0, record.stat().st_size
    with record.open(encoding="utf-8") as lines:
        for line in lines:
            digest, path = _parse_sum(line, record)
            if not (folder / path).is_file():
                faults.append(f"{path} is missing")
            elif hash_file(folder / path, "sha256") != digest:
                faults.append(f"{path} differs")
            count += 1
            done += len(line.encode())
            progress("verify", done, total)
    if faults or not count:
        raise VerificationError(
            f"{folder}: expected the files of {SUMS}, got {listed(faults, 5) or 'none'}."
        )
    return count


def _parse_sum(line: str, record: Path) -> tuple[str, str]:
    digest, path = line[:64], line[66:].rstrip("\n")
    if line[64:66] not in ("  ", " *") or not path or not is_portable(path):
        raise InputError(f"{record}: expected lines of a sha256 and a path, got {line!r}.")
    return digest, path


def verify_archive(path: Path) -> str:
    """Check a downloaded file by its published checksum, and return the name of its set."""
    for name, published in catalogue().items():
        for source in published.files:
            if source.name == path.name:
                found = hash_file(path, "md5")
                if found != source.md5:
                    raise VerificationError(
                        f"{path}: expected md5 {source.md5} ({name}), got {found}. Fetch it again."
                    )
                return name
    raise InputError(f"{path}: expected a folder, or a file of a published set, got '{path.name}'.")
