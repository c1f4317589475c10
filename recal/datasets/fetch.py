"""Fetching a published set and checking one that is there."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from recal.datasets.catalogue import PUBLISHED, SUMS, Download, PublishedSet
from recal.errors import InputError, RecalError, UsageError, VerificationError
from recal.files import locked, whole_file
from recal.wording import pick

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import Message

    StepProgress = Callable[[str, int, int], None]
    from recal.progress import Progress


BLOCK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 60.0
PAUSE = 1.0
SPARE_BYTES = 64 << 20
HTTP_PARTIAL, HTTP_RANGE_NOT_SATISFIABLE = 206, 416


class _CutError(Exception):
    """The transfer stopped early; what came is kept and the rest asked for."""


def download(source: Download, path: Path, progress: Progress) -> None:
    """Download a file, going on from what an earlier attempt left.

    What came is kept in `<path>.partial` until the file is whole and its checksum right; only then
    does it take its name. A server that cuts the connection is asked for the rest; so is one that
    sends less than it announced. Where the pieces do not add up to the published checksum, the file
    is fetched once more from its beginning.

    Args:
        source: Where it comes from, and its checksum.
        path: Where it goes.
        progress: Told the bytes that are there, and the bytes in all (0 while unknown).

    Raises:
        RecalError: The server cannot be reached, keeps cutting the connection, or the disk is full.
        VerificationError: The whole file does not have the published checksum.
        UsageError: The address is not of http or https.
    """
    if not source.url.startswith(("https://", "http://")):
        raise UsageError(f"{source.url}: expected an address of http or https.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    resumed = partial.exists()
    try:
        try:
            _fetch_whole(source.url, partial, progress)
        except RecalError:
            # the server may have announced more than there is
            if not partial.exists() or not _is_right(source, partial):
                raise
        if resumed and not _is_right(source, partial):
            partial.unlink()
            _fetch_whole(source.url, partial, progress)
        right = _is_right(source, partial)
    except OSError as error:
        raise RecalError(
            f"{partial}: cannot be written ({error.strerror or error}). Make room and run it "
            "again: it goes on from there."
        ) from error
    if not right:
        found = hash_file(partial, "md5")
        partial.unlink()
        raise VerificationError(
            f"{source.url}: expected md5 {source.md5}, got {found}. The file was removed; try "
            "again later, or get it by hand."
        )
    partial.replace(path)


def _is_right(source: Download, path: Path) -> bool:
    return hash_file(path, "md5") == source.md5


def hash_file(path: Path, algorithm: str) -> str:
    """Return the hash of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()


def _fetch_whole(url: str, partial: Path, progress: Progress) -> None:
    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _fetch_rest(url, partial, before, progress)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == HTTP_RANGE_NOT_SATISFIABLE and before > 0:
                    if _announced_size(error.headers) == before:
                        return  # all of it had come already
                    partial.unlink()
                    continue
                if error.code < 500:
                    raise RecalError(
                        f"{url}: the server says {error.code} {error.reason}."
                    ) from error
                reason: Exception = error
        except (_CutError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = error
        except urllib.error.URLError as error:
            reason = error
        else:
            return
        # only attempts in a row that brought nothing count
        after = partial.stat().st_size if partial.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures == ATTEMPTS:
            raise RecalError(
                f"{url}: gave up after {ATTEMPTS} attempts without a byte ({reason}). What had "
                "come is kept; run it again to go on."
            ) from reason
        time.sleep(PAUSE * failures)


def _fetch_rest(url: str, partial: Path, offset: int, progress: Progress) -> None:
    headers = {"User-Agent": "recal", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  (checked by download)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
        if offset and (answer.status != HTTP_PARTIAL or _range_start(answer.headers) != offset):
            offset = 0  # the server does not resume, or not where it was asked to
            if answer.status == HTTP_PARTIAL:
                partial.unlink()
                raise _CutError("the server resumed at another place")
        length = answer.headers.get("Content-Length")
        total = offset + int(length) if length and length.isdigit() else 0
        _require_room(partial, max(total - offset, 0))
        with partial.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            done = offset
            while block := answer.read(BLOCK):
                _require_room(partial, len(block))
                file.write(block)
                done += len(block)
                progress(done, total)
            file.flush()
            os.fsync(file.fileno())
        if total and done < total:
            raise _CutError(f"{done} of {total} bytes came")


def _range_start(headers: Message) -> int | None:
    text = headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0].strip()
    return int(text) if text.isdigit() else None


def _announced_size(headers: Message) -> int | None:
    text = headers.get("Content-Range", "").rpartition("/")[2]
    return int(text) if text.isdigit() else None


def _require_room(path: Path, needed: int) -> None:
    require_room(path.parent, needed + SPARE_BYTES)


def require_room(folder: Path, needed: int) -> None:
    """Refuse to start what does not fit on the disk.

    Raises:
        RecalError: Fewer than `needed` bytes are free where `folder` is, or will be.
    """
    import shutil

    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RecalError(
            f"{folder}: expected {needed / 1e9:.1f} GB of free disk, got {free / 1e9:.1f}. Make "
            "room, or choose another folder."
        )


COPIED_AT_ONCE = 1 << 20


def unpack(archive: Path, folder: Path, sums: IO[str], progress: Progress) -> None:
    """Unpack a tar archive into a folder that is made for it.

    Nothing is left at `folder` unless all of it was unpacked. A folder on top of the archive that
    has the name of `folder` is taken for it. Files get plain permissions.

    Args:
        archive: A .tar or .tar.gz file.
        folder: Must not exist.
        sums: Gets a line for each file, its sha256 and its path below `folder` with slashes.
        progress: Told the bytes of the archive that were read, and its bytes.

    Raises:
        InputError: It is no whole archive, or holds a link, a device, a path that leads out of the
            folder, or a file twice. Nothing of it is kept then.
        RecalError: The disk is full.
    """
    if folder.exists():
        raise InputError(f"{folder}: expected nothing there. Remove it or choose another folder.")
    partial = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(partial, ignore_errors=True)
    total = archive.stat().st_size
    try:
        partial.mkdir(parents=True)
        with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as members:
            for member in members:
                path = _safe_path(member, archive, folder.name)
                if path is not None and not member.isdir():
                    require_room(folder, member.size + SPARE_BYTES)
                    content = members.extractfile(member)
                    assert content is not None
                    digest = _copy(content, partial / path, member.size, archive)
                    sums.write(format_sum(digest, str(path)))
                progress(raw.tell(), total)
        partial.replace(folder)
    except (tarfile.TarError, zlib.error, EOFError, UnicodeError) as error:
        raise InputError(f"{archive}: expected a whole tar archive, got {error}.") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(
            f"{archive}: holds the same name twice, '{error.filename}'. Refused."
        ) from error
    except OSError as error:
        if isinstance(error, tarfile.ReadError | EOFError) or "gzip" in str(error).lower():
            raise InputError(f"{archive}: expected a whole archive, got {error}.") from error
        raise RecalError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def format_sum(digest: str, path: str) -> str:
    """Return a line of a SHA256SUMS file, which `sha256sum -c` reads too."""
    return f"{digest}  {path}\n"


def is_inside(name: str) -> bool:
    """Whether a path with slashes stays in its folder, on any system."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not set("\\:\0\r\n") & set(name)


def _safe_path(member: tarfile.TarInfo, archive: Path, top: str) -> PurePosixPath | None:
    """Return where a member goes below the folder, None for the folder itself."""
    name = member.name
    parts = [part for part in PurePosixPath(name).parts if part != "."]
    if not is_inside(name):
        raise InputError(f"{archive}: '{name}' leads out of the folder. Refused.")
    if not (member.isdir() or (member.isreg() and not member.issparse())):
        raise InputError(f"{archive}: '{name}' is no plain file or folder. Refused.")
    if parts and parts[0] == top:
        parts = parts[1:]
    if not parts:
        if not member.isdir():
            raise InputError(f"{archive}: '{name}' has no name below the folder. Refused.")
        return None
    return PurePosixPath(*parts)


def _copy(content: IO[bytes], path: Path, size: int, archive: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    written = 0
    with content, path.open("xb") as file:
        while block := content.read(COPIED_AT_ONCE):
            file.write(block)
            digest.update(block)
            written += len(block)
    if written != size:
        raise InputError(f"{archive}: ends in the middle of '{path.name}'.")
    return digest.hexdigest()


def fetch(name: str, place: Path, progress: StepProgress) -> Path:
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


def _fetch_parts(wanted: PublishedSet, work: Path, progress: StepProgress) -> None:
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


def verify(folder: Path, progress: StepProgress) -> int:
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
