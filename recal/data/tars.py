"""Images inside tar archives, read in place: no unpacking, and nothing outside is ever touched."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recal.data.images import decode, fingerprint_files, is_hidden, is_image_name
from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray


TAR_SUFFIX = ".tar"


class Member(NamedTuple):
    """An image inside an archive.

    Attributes:
        archive: The tar file.
        name: Its path inside, with slashes; below the archive's own name where there are several.
        offset: Where its content begins in the archive, in bytes.
        size: The content's length in bytes.
    """

    archive: Path
    name: str
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class TarSource:
    """Images in one or several tar files, in the order of their paths: an `ImageSource`.

    An image is read by opening the archive, so that nothing is shared with other threads or with
    the processes of a loader.

    Attributes:
        where: The archive, or the folder of archives.
        members: The images.
        labels: int64 (N,), or None.
        classes: The classes' names in the order of the labels, or None.
        folder: The folder inside that they are taken from; empty for all of it.
    """

    where: Path
    members: tuple[Member, ...]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None
    folder: str = ""

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return decode(_content(self.members[index]), self.name(index))

    def name(self, index: int) -> str:
        """Return the archive's path and the image's path in it."""
        member = self.members[index]
        return f"{member.archive}: {member.name}"

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Return a hash of these images' names, contents and labels, in hexadecimal.

        It is that of the same images unpacked.
        """
        members = [self.members[index] for index in indices]
        names = [member.name[len(self.folder) :].lstrip("/") for member in members]
        return fingerprint_files(names, map(_content, members), self.labels, indices)

    def folders(self) -> set[str]:
        """Return the names of the folders at the top of `folder`."""
        start = len(self.folder) + 1 if self.folder else 0
        tops = (member.name[start:].partition("/") for member in self.members)
        return {top for top, slash, _ in tops if slash}

    def below(self, folder: str) -> TarSource:
        """Return the images below a folder inside, its own folders being the classes.

        Images that lie in it directly are left out where there are class folders, and have no
        labels where there are none. The source may come out empty.

        Args:
            folder: Its path inside the archive, with slashes, such as `fog/3`; empty for all of it.
        """
        prefix = f"{folder}/" if folder else ""
        inside = tuple(member for member in self.members if member.name.startswith(prefix))
        chosen = replace(self, members=inside, labels=None, classes=None, folder=folder)
        classes = tuple(sorted(chosen.folders()))
        if not classes:
            return chosen
        numbers = {name: number for number, name in enumerate(classes)}
        tops = [member.name[len(prefix) :].partition("/") for member in inside]
        labels = [numbers[top] for top, slash, _ in tops if slash]
        members = tuple(m for m, (_, slash, _) in zip(inside, tops, strict=True) if slash)
        return replace(chosen, members=members, labels=np.array(labels, np.int64), classes=classes)


def open_tars(where: Path, archives: Sequence[Path] | None = None) -> TarSource:
    """List the images inside tar files, without labels; `below()` labels them.

    Tar files inside an archive are read too, one level deep: `n01440764.tar` counts as a folder
    `n01440764`, and so does every archive where there are several.

    Args:
        where: An archive, or the folder that holds them.
        archives: Those of the folder; None where `where` is the archive.

    Raises:
        InputError: One is compressed, damaged, holds a link, a device or a name that leads out of
            it, or the same name twice.
    """
    found: list[Member] = []
    for archive in archives or [where]:
        status = archive.stat()
        prefix = "" if archives is None or len(archives) == 1 else f"{archive.stem}/"
        for member in _listed(archive, status.st_mtime_ns, status.st_size):
            found.append(member._replace(name=prefix + member.name) if prefix else member)
    found.sort(key=lambda member: member.name.split("/"))
    for member, following in pairwise(found):
        if member.name == following.name:
            raise InputError(
                f"{following.archive}: holds the same name twice, '{member.name}'. Refused."
            )
    return TarSource(where, tuple(found))


def _content(member: Member) -> bytes:
    with member.archive.open("rb") as file:
        file.seek(member.offset)
        content = file.read(member.size)
    if len(content) != member.size:  # it has changed since it was listed
        raise InputError(f"{member.archive}: ends in the middle of '{member.name}'.")
    return content


# a suite asks for dozens of folders of the same few archives
@lru_cache(maxsize=4)
def _listed(archive: Path, _mtime: int, _size: int) -> tuple[Member, ...]:
    return tuple(images_in(archive))


def images_in(archive: Path) -> Iterator[Member]:
    """Yield the images inside a tar file in the order in which they stand there.

    Raises:
        InputError: As `open_tars` says.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            size = archive.stat().st_size
            yield from _images(tar, archive, start=0, size=size, prefix="", nested=True)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise InputError(
            f"{archive}: expected a whole tar archive without compression, got another file "
            f"({error}). Unpack it and name the folder."
        ) from error


def _images(
    tar: tarfile.TarFile, archive: Path, *, start: int, size: int, prefix: str, nested: bool
) -> Iterator[Member]:
    """Yield the images of an archive that begins at byte `start` of the file `archive`."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep what it has read, a kilobyte an image
        name = checked_name(member, archive, prefix)
        if member.isdir():
            continue
        if member.offset_data + member.size > size:
            raise InputError(f"{archive}: ends in the middle of '{name}'.")
        offset = start + member.offset_data
        if nested and name.endswith(TAR_SUFFIX) and not is_hidden(name):
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                inside = name.removesuffix(TAR_SUFFIX) + "/"
                yield from _images(
                    inner, archive, start=offset, size=member.size, prefix=inside, nested=False
                )
        elif is_image_name(name):
            yield Member(archive, name, offset, member.size)
    check_end(tar, archive)


def checked_name(member: tarfile.TarInfo, archive: Path, prefix: str) -> str:
    """Return a member's path inside, without doubled slashes; refuse what is no plain file."""
    inside, name = PurePosixPath(member.name), prefix + member.name
    if inside.is_absolute() or ".." in inside.parts:
        raise InputError(f"{archive}: '{name}' leads out of it. Refused.")
    plain = member.isreg() and not member.issparse() and member.size >= 0
    if not (plain or member.isdir()):
        raise InputError(f"{archive}: '{name}' is no plain file or folder. Refused.")
    return f"{prefix}{inside}"  # without ./ and doubled slashes


def check_end(tar: tarfile.TarFile, archive: Path) -> None:
    """Refuse an archive whose listing ended at a damaged header: tarfile says nothing then."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise InputError(f"{archive}: expected a whole tar archive, got damage at {tar.offset:,}.")
