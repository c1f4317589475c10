"""Unpacking an archive that is not trusted: plain files inside the folder, and nothing else."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from recal.data.downloading import SPARE_BYTES, require_room
from recal.errors import InputError, RecalError

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 1 << 20


def unpack(
    archive: Path, folder: Path, sums: IO[str], progress: Callable[[int, int], None]
) -> None:
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
        while block := content.read(BLOCK):
            file.write(block)
            digest.update(block)
            written += len(block)
    if written != size:
        raise InputError(f"{archive}: ends in the middle of '{path.name}'.")
    return digest.hexdigest()
