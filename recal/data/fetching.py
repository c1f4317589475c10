"""Fetching a published set and checking one that is there."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING

from recal.data.downloading import download, hash_file, require_room
from recal.data.published import PUBLISHED, SUMS, Download, PublishedSet
from recal.data.unpacking import format_sum, is_inside, unpack
from recal.declared import pick
from recal.errors import InputError, UsageError, VerificationError
from recal.files import locked, whole_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Progress = Callable[[str, int, int], None]


def fetch(name: str, place: Path, progress: Progress) -> Path:
    """Download and unpack a published set into `place`, unless it is there.

    Each file has its published checksum before it is used. Killed at any moment, it goes on where
    it was: with the bytes that had come, and the archives that had been unpacked.

    Args:
        name: A key of `PUBLISHED`.
        place: The folder of data that the set's own folder goes into.
        progress: Told what is at work, how much of it is done and how much there is, in bytes.

    Returns:
        The set's folder.

    Raises:
        UsageError: There is no such set, or it has to be got by hand.
        InputError: An archive is refused.
        VerificationError: A checksum differs.
        RecalError: No connection, a full disk, or another process at the same.
    """
    wanted = PUBLISHED[pick(name, PUBLISHED, "data set")]
    folder = place / wanted.folder
    if (folder / SUMS).is_file():
        return folder
    if not wanted.downloads:
        raise UsageError(
            f"{wanted.title}: has no download that recal can check. Get it from {wanted.page} and "
            f"put it into {folder}."
        )
    if folder.exists():
        raise InputError(
            f"{folder}: is there already, but recal did not fetch it. Use it as it is (`recal data "
            "verify` checks it), or move it away."
        )
    # archive and content lie side by side for a while
    require_room(place, int(2 * wanted.gigabytes * 1e9))
    work = place / f".{wanted.folder}.fetching"
    with locked(work):
        _fetch_parts(wanted, work, progress)
        (work / "content").replace(folder)
    shutil.rmtree(work, ignore_errors=True)
    return folder


def _fetch_parts(wanted: PublishedSet, work: Path, progress: Progress) -> None:
    content = work / "content"
    for source in wanted.downloads:
        record, part = _record(work, source), _part(work, source, wanted)
        if record.is_file():
            continue
        path = work / source.name
        if not path.is_file():
            download(source, path, partial(progress, f"fetch {source.name}"))
        shutil.rmtree(part.parent, ignore_errors=True)
        part.parent.mkdir(parents=True)
        with whole_file(record) as lines, lines.open("w", encoding="utf-8") as sums:
            if source.is_archive:
                unpack(path, part, sums, partial(progress, f"unpack {source.name}"))
            else:
                part.mkdir()
                shutil.copyfile(path, part / source.name)
                sums.write(format_sum(hash_file(path, "sha256"), source.name))
        path.unlink()
    _merge([_part(work, source, wanted) for source in wanted.downloads], content)
    with whole_file(content / SUMS) as lines, lines.open("wb") as sums_of_all:
        for source in wanted.downloads:
            sums_of_all.write(_record(work, source).read_bytes())


def _record(work: Path, source: Download) -> Path:
    """Return the file that says which files a download holds, and that it is done with."""
    return work / f"{source.name}.sums"


def _part(work: Path, source: Download, wanted: PublishedSet) -> Path:
    return work / f"{source.name}.content" / wanted.folder


def _merge(parts: list[Path], content: Path) -> None:
    """Move the files of all parts below one folder; moved ones are not missed the second time."""
    content.mkdir(exist_ok=True)
    for part in parts:
        for path in sorted(part.rglob("*")) if part.is_dir() else []:
            target = content / path.relative_to(part)
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            elif target.exists():
                raise InputError(f"{path.name}: is in two archives of the set. Refused.")
            else:
                path.replace(target)


def verify(folder: Path, progress: Progress) -> int:
    """Check the files of a folder against its SHA256SUMS.

    Returns:
        The number of files.

    Raises:
        InputError: There is no SHA256SUMS in it, or a line of it is not one.
        VerificationError: A file is missing or changed; the message names the first ones.
    """
    record = folder / SUMS
    if not record.is_file():
        raise InputError(
            f"{folder}: expected {SUMS} in it, got none. Only sets that recal fetched or generated "
            "have one."
        )
    faults, count = [], 0
    done, total = 0, record.stat().st_size
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
        shown = "; ".join(faults[:5]) + (f"; {len(faults) - 5} more" if len(faults) > 5 else "")
        raise VerificationError(f"{folder}: expected the files of {SUMS}, got {shown or 'none'}.")
    return count


def _parse_sum(line: str, record: Path) -> tuple[str, str]:
    digest, path = line[:64], line[66:].rstrip("\n")
    if line[64:66] not in ("  ", " *") or not path or not is_inside(path):
        raise InputError(f"{record}: expected lines of a sha256 and a path, got {line!r}.")
    return digest, path


def verify_archive(path: Path) -> str:
    """Check a downloaded file by its name and published checksum; return its set's name.

    Raises:
        InputError: No set has a file of this name.
        VerificationError: The checksum differs.
    """
    for name, published in PUBLISHED.items():
        for source in published.downloads:
            if source.name == path.name:
                found = hash_file(path, "md5")
                if found != source.md5:
                    raise VerificationError(
                        f"{path}: expected md5 {source.md5} ({name}), got {found}. Fetch it again."
                    )
                return name
    raise InputError(f"{path}: expected a folder, or a file of a published set, got '{path.name}'.")
