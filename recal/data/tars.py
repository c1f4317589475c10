"""Images inside tar archives, read in place without unpacking.

An archive that is compressed or damaged, or holds a link, a device, a name that leads out of it, or
the same name twice, is an `InputError`.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recal.data.images import decode, fingerprint_files, is_hidden, is_image_name, numbered
from recal.errors import InputError, listed, reason, shown

TAR_SUFFIX = ".tar"
# suffixes of the files beside an image of a WebDataset shard that may hold its label
LABEL_SUFFIXES = (".cls", ".json")
JSON_LABELS = ("wnid", "synset", "label", "cls", "class", "target")
LARGEST_LABEL = 1_000_000  # bytes


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
    answers: None = None
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
    """List the images inside tar files, with the labels of WebDataset shards.

    In a shard, the label of `x.jpg` is in `x.cls`, or in `x.json` as `label`, `cls` and the like.
    Images of other archives have no labels, and `TarSource.below` labels them.

    Tar files inside an archive are read too, one level deep: `n01440764.tar` counts as a folder
    `n01440764`. If there are several archives, each of them counts as a folder. `where` is the
    folder that holds them, or the only archive.
    """
    archives = archives or [where]
    members = []
    labels: dict[str, int | str] = {}
    for archive in archives:
        status = archive.stat()
        found = _listed(archive, status.st_mtime_ns, status.st_size)
        prefix = f"{archive.stem}/" if len(archives) > 1 else ""
        images = [member for member in found if is_image_name(member.name)]
        labels |= {prefix + name: label for name, label in _shard_labels(archive, found)}
        members.append([m._replace(name=prefix + m.name) if prefix else m for m in images])
    source = TarSource.of_members(where, archives, members)
    return _labelled(source, labels) if labels else source


def _labelled(source: TarSource, labels: Mapping[str, int | str]) -> TarSource:
    """Return the images with the labels of shards, by name; each must have one."""
    missing = [name for name in source.names if name not in labels]
    values = [labels[name] for name in source.names if name in labels]
    if missing or len({type(value) for value in values}) > 1:
        found = f"none for {len(missing):,}: {listed(missing)}" if missing else "numbers and names"
        raise InputError(
            f"{source.where}: expected a label (.cls or .json) for each of {len(source):,} images, "
            f"as a number or as a name, got {found}."
        )
    names = [value for value in values if isinstance(value, str)]
    if not names:
        return replace(source, labels=np.array(values, np.int64))
    classes, numbers = numbered(names)
    return replace(source, labels=numbers, classes=classes)


def _shard_labels(archive: Path, members: Sequence[Member]) -> Iterator[tuple[str, int | str]]:
    """Yield the name of each image with the label of the same key in its shard, where it has one.

    The key of a file is its path up to the first dot of its name.
    """
    entries: dict[str, Member] = {}
    images: dict[str, list[str]] = {}
    for member in members:
        folder, _, file = member.name.rpartition("/")
        key = f"{folder}/{file.partition('.')[0]}"
        if not is_image_name(member.name):
            if key not in entries or member.name.endswith(".cls"):
                entries[key] = member
        else:
            images.setdefault(key, []).append(member.name)
    with archive.open("rb") as opened:
        for key, names in images.items():
            label = _label(opened, archive, entries[key]) if key in entries else None
            if label is not None and len(names) > 1:
                raise InputError(f"{archive}: holds a label for two images, {listed(names)}.")
            if label is not None:
                yield names[0], label


def _label(file: IO[bytes], archive: Path, entry: Member) -> int | str | None:
    """Return the label in a `.cls` or `.json` entry; None if the JSON holds none."""
    try:
        if entry.size > LARGEST_LABEL:
            raise ValueError(f"{entry.size:,} bytes")
        file.seek(entry.offset)
        text = file.read(entry.size).decode().strip()
        if entry.name.endswith(".cls"):
            return int(text) if text.lstrip("-").isdecimal() else _named(text)
        table = json.loads(text)
        found = next((table[key] for key in JSON_LABELS if key in table), None)
        return found if found is None or isinstance(found, int) else _named(found)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{archive}: {entry.name}: expected a number or name of a class, got {reason(error)}."
        ) from error


def _named(label: object) -> str:
    if not isinstance(label, str) or not label or len(label) > 200:
        raise ValueError(shown(label))
    return label


# a suite opens dozens of folders of the same few archives
@lru_cache(maxsize=4)
def _listed(archive: Path, _mtime: int, _size: int) -> tuple[Member, ...]:
    return tuple(_entries(archive))


def images_in(archive: Path) -> Iterator[Member]:
    """Yield the images inside a tar file, in the order of the file."""
    return (member for member in _entries(archive) if is_image_name(member.name))


def _entries(archive: Path) -> Iterator[Member]:
    """Yield the images inside a tar file, and what may hold labels of them."""
    try:
        with tarfile.open(archive, "r:") as tar:
            size = archive.stat().st_size
            yield from _members(tar, archive, start=0, size=size, prefix="", nested=True)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise no_tar(archive, error) from error


def no_tar(archive: Path, error: Exception) -> InputError:
    """Return the error to raise about a file that cannot be read as a tar archive."""
    return InputError(
        f"{archive}: expected a whole tar archive without compression, got another file "
        f"({error}). Unpack it and name the folder."
    )


def _members(
    tar: tarfile.TarFile, archive: Path, *, start: int, size: int, prefix: str, nested: bool
) -> Iterator[Member]:
    """Yield the files of an archive that begins at byte `start` of the file `archive`."""
    for member in plain_members(tar, archive):
        name = prefix + member.name
        if member.offset_data + member.size > size:
            raise InputError(f"{archive}: ends in the middle of '{name}'.")
        offset = start + member.offset_data
        if nested and name.endswith(TAR_SUFFIX) and not is_hidden(name):
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                inside = name.removesuffix(TAR_SUFFIX) + "/"
                yield from _members(
                    inner, archive, start=offset, size=member.size, prefix=inside, nested=False
                )
        elif is_image_name(name) or (name.endswith(LABEL_SUFFIXES) and not is_hidden(name)):
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
