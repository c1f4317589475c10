"""Images inside tar archives, read in place without unpacking.

An archive that is compressed or damaged, or holds a link, a device, a name that leads out of it, or
the same name twice, is an `InputError`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recal.data.images import decode, fingerprint_files, is_hidden, is_image_name, numbered
from recal.errors import InputError

TAR_SUFFIX = ".tar"


class Member(NamedTuple):
    """The path of an image in an archive, with slashes, and its content's place in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, eq=False, kw_only=True)
class TarSource:
    """Images in one or several tar files, in the order of their paths: an `ImageSource`.

    Each image is read by opening the archive: threads and processes of a loader share nothing.

    Attributes:
        where: The archive, or the folder of archives.
        archives: The archives.
        names: Path of each image below `folder`, with slashes.
        places: Number of the archive, offset and size in bytes of each image, int64 (N, 3).
        labels: Label of each image, int64 (N,), or None.
        classes: Names of the classes in the order of the labels, or None.
        ordered: Whether that order is the data's own, not that of the sorted names.
        folder: The folder inside that the images are taken from; empty for all of it.
    """

    where: Path
    archives: tuple[Path, ...]
    names: tuple[str, ...]
    places: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None
    ordered: bool = False
    folder: str = ""

    @classmethod
    def of_members(
        cls,
        where: Path,
        archives: Sequence[Path],
        members: Sequence[Sequence[Member]],
        folder: str = "",
    ) -> TarSource:
        """Return the images of several archives, without labels, in the order of their paths.

        The members' names are paths below `folder`, each of which may occur only once.
        """
        found = [(m.name.split("/"), m, i) for i, part in enumerate(members) for m in part]
        found.sort(key=lambda row: row[0])
        for (path, _, _), (following, member, number) in pairwise(found):
            if path == following:
                name = f"{folder}/{member.name}" if folder else member.name
                raise InputError(
                    f"{archives[number]}: holds the same name twice, '{name}'. Refused."
                )
        places = [(number, member.offset, member.size) for _, member, number in found]
        return cls(
            where=where,
            archives=tuple(archives),
            names=tuple(member.name for _, member, _ in found),
            places=np.array(places, np.int64).reshape(-1, 3),
            folder=folder,
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return decode(self._content(index), self.name(index))

    def name(self, index: int) -> str:
        """Return the archive's path and the image's path in it."""
        inside = f"{self.folder}/{self.names[index]}" if self.folder else self.names[index]
        return f"{self.archives[self.places[index, 0]]}: {inside}"

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Return the same hash as for the same images unpacked: see `FileSource.fingerprint`."""
        names = [self.names[index] for index in indices]
        return fingerprint_files(names, map(self._content, indices), self.labels, indices)

    def _content(self, index: int) -> bytes:
        number, offset, size = self.places[index].tolist()
        archive = self.archives[number]
        with archive.open("rb", buffering=0) as file:
            file.seek(offset)
            content: bytes = file.read(size)
        if len(content) != size:  # it has changed since it was listed
            raise InputError(f"{archive}: ends in the middle of '{self.names[index]}'.")
        return content

    def folders(self) -> set[str]:
        """Return the names of the folders at the top of `folder`."""
        return {name.partition("/")[0] for name in self.names if "/" in name}

    def below(self, folder: str) -> TarSource:
        """Return the images below a folder, such as `fog/3`; the folders in it are the classes.

        Images directly in it are left out if it has class folders. Without class folders there are
        no labels. The result may be empty.
        """
        prefix = f"{folder}/" if folder else ""
        inside = [i for i, name in enumerate(self.names) if name.startswith(prefix)]
        inside = [i for i in inside if "/" in self.names[i][len(prefix) :]] or inside
        names = tuple(self.names[i][len(prefix) :] for i in inside)
        classes, labels = numbered([name.partition("/")[0] for name in names if "/" in name])
        return replace(
            self,
            names=names,
            places=self.places[inside],
            labels=labels if classes else None,
            classes=classes or None,
            folder="/".join(filter(None, (self.folder, folder))),
        )


def open_tars(where: Path, archives: Sequence[Path] | None = None) -> TarSource:
    """List the images inside tar files, without labels; `TarSource.below` labels them.

    Tar files inside an archive are read too, one level deep: `n01440764.tar` counts as a folder
    `n01440764`. If there are several archives, each of them counts as a folder. `where` is the
    folder that holds them, or the only archive.
    """
    archives = archives or [where]
    members = []
    for archive in archives:
        status = archive.stat()
        listed = _listed(archive, status.st_mtime_ns, status.st_size)
        prefix = f"{archive.stem}/" if len(archives) > 1 else ""
        members.append([m._replace(name=prefix + m.name) if prefix else m for m in listed])
    return TarSource.of_members(where, archives, members)


# a suite opens dozens of folders of the same few archives
@lru_cache(maxsize=4)
def _listed(archive: Path, _mtime: int, _size: int) -> tuple[Member, ...]:
    return tuple(images_in(archive))


def images_in(archive: Path) -> Iterator[Member]:
    """Yield the images inside a tar file, in the order of the file."""
    try:
        with tarfile.open(archive, "r:") as tar:
            size = archive.stat().st_size
            yield from _images(tar, archive, start=0, size=size, prefix="", nested=True)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise no_tar(archive, error) from error


def no_tar(archive: Path, error: Exception) -> InputError:
    """Return the error to raise about a file that cannot be read as a tar archive."""
    return InputError(
        f"{archive}: expected a whole tar archive without compression, got another file "
        f"({error}). Unpack it and name the folder."
    )


def _images(
    tar: tarfile.TarFile, archive: Path, *, start: int, size: int, prefix: str, nested: bool
) -> Iterator[Member]:
    """Yield the images of an archive that begins at byte `start` of the file `archive`."""
    for member in plain_members(tar, archive):
        name = prefix + member.name
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
            yield Member(name, offset, member.size)


def plain_members(tar: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the files of an archive, their names without `./` and doubled slashes."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep a kilobyte per image
        member.name = str(safe_path(member, archive))
        if not member.isdir():
            yield member
    # the listing ends at a damaged header, which tarfile does not report
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise InputError(f"{archive}: expected a whole tar archive, got damage at {tar.offset:,}.")


def safe_path(member: tarfile.TarInfo, archive: Path) -> PurePosixPath:
    """Return a member's path inside an archive, or refuse one that leads out of it, or a link."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{archive}: '{member.name}' leads out of it. Refused.")
    plain = member.isreg() and not member.issparse() and member.size >= 0
    if not (plain or member.isdir()):
        raise InputError(f"{archive}: '{member.name}' is no plain file or folder. Refused.")
    return path
