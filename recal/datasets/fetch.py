"""Fetching a published set: downloading, unpacking and verifying it."""

import gzip
import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias

from recal.data.tars import safe_path
from recal.datasets.catalogue import SUMS, PublishedSet, catalogue
from recal.datasets.download import BLOCK, SPARE_BYTES, download, hash_file, require_room
from recal.errors import InputError, RecalError, UsageError, pick
from recal.files import locked, whole_file, write_whole
from recal.progress import Progress

StepProgress: TypeAlias = Callable[[str, int, int], None]


def unpack(archive: Path, folder: Path, sums: IO[str], progress: Progress) -> None:
    """Unpack a tar archive into a new folder, completely or not at all.

    A folder at the top of the archive that has the name of `folder` becomes it. Files get default
    permissions. `sums` receives each file's line of SHA256SUMS.

    Raises:
        InputError: The folder exists, or the archive is damaged or holds a link, a device, a path
            that leads out of the folder, or the same file twice.
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
                path = _path_below(member, archive, folder.name)
                if path is not None and not member.isdir():
                    require_room(folder, member.size + SPARE_BYTES)
                    content = members.extractfile(member)
                    assert content is not None
                    digest = _copy(content, partial / path, member.size, archive)
                    sums.write(format_sum(digest, str(path)))
                progress(raw.tell(), total)
        partial.replace(folder)
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, UnicodeError) as error:
        raise InputError(f"{archive}: expected a whole tar archive, got {error}.") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(
            f"{archive}: holds the same name twice, '{error.filename}'. Refused."
        ) from error
    except OSError as error:
        raise RecalError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def format_sum(digest: str, path: str) -> str:
    """Return a line of a SHA256SUMS file, which `sha256sum -c` reads too."""
    return f"{digest}  {path}\n"


def _path_below(member: tarfile.TarInfo, archive: Path, top: str) -> PurePosixPath | None:
    """Return the path of a member below the folder, None for the folder itself."""
    name, path = member.name, safe_path(member, archive)
    if not is_portable(name):
        raise InputError(f"{archive}: '{name}' leads out of the folder. Refused.")
    path = path.relative_to(top) if path.is_relative_to(top) else path
    if path.parts:
        return path
    if not member.isdir():
        raise InputError(f"{archive}: '{name}' has no name below the folder. Refused.")
    return None


def is_portable(name: str) -> bool:
    """Whether a path with slashes stays in its folder on any system, and fits on one line."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not set("\\:\0\r\n") & set(name)


def _copy(content: IO[bytes], path: Path, size: int, archive: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    written = 0
    with content, path.open("xb") as file:
        while block := content.read(BLOCK):
            file.write(block)
            digest.update(block)
            written += len(block)
    if written != size:
        raise InputError(f"{archive}: ends in the middle of '{path.name}'.")
    return digest.hexdigest()


def fetch(name: str, place: Path, progress: StepProgress) -> Path:
    """Download and unpack a published set into `place`, unless it is there.

    Each file is verified by its published checksum before it is used. If the process is killed, the
    next call resumes with the bytes that were downloaded and the archives that were unpacked.

    Args:
        name: Name of the set in the catalogue.
        place: The folder that the set's own folder is made in.
        progress: Called as `progress(step, done, total)`, with numbers of bytes.

    Returns:
        The set's folder.

    Raises:
        UsageError: The set is unknown, or has to be downloaded by hand.
        InputError: The folder exists already, or an archive is refused.
        VerificationError: A checksum differs.
        RecalError: There is no connection, the disk is full, or another process fetches the set.
    """
    wanted = catalogue()[pick(name, catalogue(), "data set")]
    folder = place / wanted.folder
    if (folder / SUMS).is_file():
        return folder
    if not wanted.files:
        raise UsageError(
            f"{wanted.title}: has no download with a published checksum. Get it from "
            f"{wanted.page} and put it into {folder}."
        )
    if folder.exists():
        raise InputError(
            f"{folder}: is there already, but recal did not fetch it. Use it as it is (`recal data "
            "verify` checks it), or move it away."
        )
    # the archive and its content need room at the same time
    require_room(place, int(2 * wanted.gigabytes * 1e9))
    work = place / f".{wanted.folder}.fetching"
    with locked(work):
        _fetch_parts(wanted, work, progress)
        (work / "content").replace(folder)
    shutil.rmtree(work, ignore_errors=True)
    return folder


def _fetch_parts(wanted: PublishedSet, work: Path, progress: StepProgress) -> None:
    content = work / "content"
    # the list of a download's files exists once it is unpacked
    records = [work / f"{source.name}.sums" for source in wanted.files]
    parts = [work / f"{source.name}.content" / wanted.folder for source in wanted.files]
    for source, record, part in zip(wanted.files, records, parts, strict=True):
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
    _merge(parts, content)
    write_whole(content / SUMS, b"".join(record.read_bytes() for record in records))


def _merge(parts: list[Path], content: Path) -> None:
    """Move the files of all parts below one folder. A second call continues the first one."""
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
