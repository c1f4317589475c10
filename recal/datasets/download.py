"""Downloading one file over HTTP: resumed, and verified by its published checksum."""

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from recal.datasets.catalogue import Download
from recal.errors import RecalError, UsageError, VerificationError
from recal.progress import Progress

BLOCK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 60.0
PAUSE = 1.0
SPARE_BYTES = 64 << 20
HTTP_PARTIAL, HTTP_RANGE_NOT_SATISFIABLE = 206, 416


# the transfer stopped early; the bytes that came are kept, and the rest is requested
CUT = (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError)


def download(source: Download, path: Path, progress: Progress) -> None:
    """Download a file to `path`, resuming an earlier attempt.

    The bytes are kept in `<path>.partial` until the file is whole and its checksum right. If the
    server cuts the connection or sends less than it announced, the rest is requested. If a resumed
    file does not have the published checksum, it is downloaded once more from its beginning.
    `progress` is called with the number of bytes on disk and in total (0 while unknown).

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
            f"{partial}: cannot be written ({error.strerror or error}). Make room and run the "
            "command again, which resumes the download."
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
                    if error.headers.get("Content-Range", "").rpartition("/")[2] == str(before):
                        return  # the file was whole already
                    partial.unlink()
                    continue
                if error.code < 500:
                    raise RecalError(
                        f"{url}: the server answered {error.code} {error.reason}."
                    ) from error
                reason: Exception = error
        except CUT as error:
            reason = error
        else:
            return
        # only attempts in a row that brought nothing count
        after = partial.stat().st_size if partial.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures == ATTEMPTS:
            raise RecalError(
                f"{url}: gave up after {ATTEMPTS} attempts without a byte ({reason}). The bytes "
                "that had come are kept; run the command again to resume."
            ) from reason
        time.sleep(PAUSE * failures)


def _fetch_rest(url: str, partial: Path, offset: int, progress: Progress) -> None:
    headers = {"User-Agent": "recal", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  (checked by download)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
        place = answer.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0].strip()
        if offset and (answer.status != HTTP_PARTIAL or place != str(offset)):
            offset = 0  # the server does not resume, or not where it was asked to
            if answer.status == HTTP_PARTIAL:
                partial.unlink()
                raise ConnectionError("the server resumed at another place")
        length = answer.headers.get("Content-Length")
        total = offset + int(length) if length and length.isdigit() else 0
        require_room(partial.parent, max(total - offset, 0) + SPARE_BYTES)
        with partial.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            done = offset
            while block := answer.read(BLOCK):
                require_room(partial.parent, len(block) + SPARE_BYTES)
                file.write(block)
                done += len(block)
                progress(done, total)
            file.flush()
            os.fsync(file.fileno())
        if total and done < total:
            raise ConnectionError(f"{done} of {total} bytes came")


def require_room(folder: Path, needed: int) -> None:
    """Raise an error if fewer than `needed` bytes are free where a folder is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RecalError(
            f"{folder}: expected {needed / 1e9:.1f} GB of free disk, got {free / 1e9:.1f}. Make "
            "room, or choose another folder."
        )
