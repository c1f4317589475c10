"""ImageNet-C's layout: `<corruption>/<severity>/<class>/<file>`, in folders or inside tar files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recal.data.archives import images_in
from recal.data.provenance import label_of
from recal.data.sources import FileSource, decode, fingerprint_files, is_image_name
from recal.errors import InputError
from recal.suites.class_order import class_numbers
from recal.suites.published_names import check_corruptions, check_severities

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recal.suites.suite import Cell, Suite


# ImageNet-C's tar files, whose names some people unpack them below
GROUPS = ("noise", "blur", "weather", "digital", "extra")


@dataclass(frozen=True, kw_only=True, eq=False)
class PublishedFolders:
    """Files in folders; see `Published`."""

    where: Path
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    folders: Mapping[str, Path]

    def source(self, cell: Cell) -> FileSource:
        """Return a severity's files."""
        base = self.folders[str(cell.corruption)] / str(cell.severity)
        return FileSource(base, tuple(base / name for name in self.names), self.labels)

    def size_in_bytes(self, cell: Cell) -> int:
        """Return the size of every hundredth file, times hundred."""
        paths = self.source(cell).paths
        some = paths[:: max(1, len(paths) // 100)]
        return sum(path.stat().st_size for path in some) * len(paths) // len(some)


@dataclass(frozen=True, kw_only=True, eq=False)
class PublishedTars:
    """Files inside tar files, which are read in place; see `Published`."""

    where: Path
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    places: Mapping[tuple[str, str], Places]

    def source(self, cell: Cell) -> TarredCell:
        """Return a severity's files."""
        places = self.places[str(cell.corruption), str(cell.severity)]
        return TarredCell(self.where, self.names, self.labels, places)

    def size_in_bytes(self, cell: Cell) -> int:
        """Return the files' lengths together."""
        return int(self.places[str(cell.corruption), str(cell.severity)].sizes.sum())


@dataclass(frozen=True, eq=False)
class Places:
    """Where the images of a cell stand in a tar file: 16 bytes an image.

    Attributes:
        archive: The tar file.
        offsets: Of each image's first byte, int64 (N,).
        sizes: In bytes, int64 (N,).
    """

    archive: Path
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TarredCell:
    """The images of one cell inside a tar file: an `ImageSource`."""

    where: Path
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    places: Places
    classes: None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return decode(self._content(index), self.name(index))

    def name(self, index: int) -> str:
        """Return the archive and the path inside it."""
        return f"{self.places.archive}: {self.names[index]}"

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Return a hash of these images' names, contents and labels: that of the unpacked files."""
        names = [self.names[index] for index in indices]
        return fingerprint_files(names, map(self._content, indices), self.labels, indices)

    def _content(self, index: int) -> bytes:
        size = int(self.places.sizes[index])
        with self.places.archive.open("rb", buffering=0) as file:
            file.seek(int(self.places.offsets[index]))
            content = file.read(size)
        if len(content) != size:
            raise InputError(f"{self.places.archive}: ends in '{self.names[index]}'.")
        return content


def find_folders(suite: Suite, where: Path, cells: Sequence[Cell]) -> PublishedFolders | None:
    """Open a folder of corruptions, or return None where it holds none of the suite's.

    The corruptions may also lie one level deeper, below `noise/` and the like.
    """
    below = [path for path in sorted(where.iterdir()) if path.is_dir()]
    groups = [path for path in below if path.name in GROUPS]
    inner = [path for group in groups for path in sorted(group.iterdir()) if path.is_dir()]
    folders = {path.name: path for path in (*inner, *below)}
    if not set(folders) & set(suite.corruptions):
        return None
    wanted = [*dict.fromkeys(str(cell.corruption) for cell in cells)]
    check_corruptions(suite, where, set(folders), wanted, "")
    there = {
        (name, path.name) for name in wanted for path in folders[name].iterdir() if path.is_dir()
    }
    check_severities(suite, where, there, cells)
    listed = ((c, _listed(folders[str(c.corruption)] / str(c.severity))) for c in cells)
    names, labels = _the_same_images(suite, where, listed)
    return PublishedFolders(where=where, names=names, labels=labels, folders=folders)


def find_tarred_folders(
    suite: Suite, where: Path, archives: Sequence[Path], cells: Sequence[Cell]
) -> PublishedTars:
    """Open tar files of such folders, wherever in them the folders lie."""
    places: dict[tuple[str, str], Places] = {}
    images: dict[tuple[str, str], tuple[str, ...]] = {}
    for archive in archives:
        for key, (names, found) in _index(suite, archive).items():
            if key in places:
                raise InputError(f"{where}: holds {'/'.join(key)} in two tar files. Keep one.")
            places[key] = found
            # nearly all cells have the same names: keep these once, not seventy-five times
            same = [known for known in images.values() if known == names]
            images[key] = same[0] if same else names
    wanted = [*dict.fromkeys(str(cell.corruption) for cell in cells)]
    check_corruptions(suite, where, {corruption for corruption, _ in places}, wanted, "")
    check_severities(suite, where, set(places), cells)
    listed = ((cell, images[str(cell.corruption), str(cell.severity)]) for cell in cells)
    names, labels = _the_same_images(suite, where, listed)
    return PublishedTars(where=where, names=names, labels=labels, places=places)


def _listed(base: Path) -> tuple[str, ...]:
    """Return `<class>/<file>` of the images below a folder, in order."""
    found = []
    with os.scandir(base) as classes:
        for folder in classes:
            if folder.is_dir():
                with os.scandir(folder.path) as files:
                    found += [f"{folder.name}/{file.name}" for file in files if file.is_file()]
    return tuple(sorted((n for n in found if is_image_name(n)), key=lambda n: n.split("/")))


def _index(suite: Suite, archive: Path) -> dict[tuple[str, str], tuple[tuple[str, ...], Places]]:
    """List an archive's images by corruption and severity."""
    found: dict[tuple[str, str], list[tuple[str, str, int, int]]] = {}
    for member in images_in(archive):
        parts = member.name.split("/")
        if len(parts) >= 4 and parts[-4] in suite.corruptions:
            place = (parts[-2], parts[-1], member.offset, member.size)
            found.setdefault((parts[-4], parts[-3]), []).append(place)
    indexed = {}
    for key, rows in found.items():
        rows.sort()
        names = tuple(f"{folder}/{file}" for folder, file, _, _ in rows)
        if len(set(names)) < len(names):
            raise InputError(f"{archive}: {'/'.join(key)}: holds the same name twice. Refused.")
        offsets, sizes = (np.array([row[i] for row in rows], np.int64) for i in (2, 3))
        indexed[key] = names, Places(archive, offsets, sizes)
    return indexed


def _the_same_images(
    suite: Suite, where: Path, listed: Iterable[tuple[Cell, tuple[str, ...]]]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Check that every cell has the same images, as many as published; return them and labels."""
    exact = suite.rows and label_of(where) is None
    first: tuple[Cell, tuple[str, ...]] | None = None
    for cell, names in listed:
        if (exact and len(names) != suite.rows) or not names:
            expected = f"{suite.rows:,} images" if suite.rows else "images"
            raise InputError(f"{where}: {cell.name}: expected {expected}, got {len(names):,}.")
        first = first or (cell, names)
        if names != first[1]:
            odd = min(set(names) ^ set(first[1]))
            has, lacks = (cell, first[0]) if odd in names else (first[0], cell)
            raise InputError(
                f"{where}: expected the same images in every cell, got '{odd}' in {has.name} and "
                f"not in {lacks.name}."
            )
    assert first is not None
    tops = [name.partition("/")[0] for name in first[1]]
    folders = sorted(set(tops))
    if exact and len(folders) != suite.classes:
        raise InputError(
            f"{where}: expected {suite.classes:,} class folders, got {len(folders):,}."
        )
    numbers = dict(zip(folders, class_numbers(folders, suite, where).tolist(), strict=True))
    return first[1], np.array([numbers[top] for top in tops], np.int64)
