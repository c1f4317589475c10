"""The published corrupted images of a suite: in folders, .npy files, or tar files of either."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from recal.data.arrays import checked_labels, open_array, tarred_arrays
from recal.data.folders import candidates
from recal.data.images import ArraySource, FileSource, decode, fingerprint_files, is_image_name
from recal.data.tars import TAR_SUFFIX, images_in
from recal.datasets.generate import label_of
from recal.errors import InputError
from recal.suites.classes import class_numbers
from recal.wording import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recal.data.images import ImageSource
    from recal.suites.suite import Cell, Suite


def check_corruptions(
    suite: Suite, where: Path, there: set[str], wanted: Sequence[str], suffix: str
) -> None:
    """Refuse a set without some of the wanted corruptions.

    Raises:
        InputError: It names them, and a file or folder of a similar name.
    """
    missing = [name for name in wanted if name not in there]
    if missing:
        strangers = sorted(there - set(suite.corruptions))
        hint = did_you_mean(missing[0], strangers).replace("Did you mean", "Is it")
        raise InputError(
            f"{where}: expected the published set, got one without "
            f"{', '.join(name + suffix for name in missing)}.{hint} Complete it, or leave "
            "corruptions out with --corruptions."
        )


def check_severities(
    suite: Suite, where: Path, found: set[tuple[str, str]], cells: Sequence[Cell]
) -> None:
    """Refuse severity folders that are missing, or that the suite does not know.

    Args:
        suite: Names its severities.
        where: For messages.
        found: Corruption and severity of each folder there is.
        cells: What is wanted.

    Raises:
        InputError: It names the corruption and the folders.
    """
    expected = {str(severity) for severity in suite.severities}
    for name in dict.fromkeys(str(cell.corruption) for cell in cells):
        there = {severity for corruption, severity in found if corruption == name}
        wanted = {str(cell.severity) for cell in cells if cell.corruption == name}
        if not wanted <= there or not there <= expected:
            raise InputError(
                f"{where}: {name}: expected the severities {', '.join(sorted(expected))} as "
                f"folders, got {', '.join(sorted(there)) or 'none'}."
            )


LABELS = "labels"
# images a class on average, from which on every class must have some
MANY = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class PublishedArrays:
    """The rows of arrays, mapped from the disk; see `Published`."""

    where: Path
    labels: NDArray[np.int64]
    arrays: Mapping[str, NDArray[np.uint8]]
    severities: tuple[int, ...]
    names: None = None

    def source(self, cell: Cell) -> ArraySource:
        """Return the rows of a severity."""
        assert cell.corruption is not None
        assert cell.severity is not None
        rows, place = len(self.labels), self.severities.index(cell.severity)
        array = self.arrays[cell.corruption]
        return ArraySource(self.where, array[place * rows : (place + 1) * rows], self.labels)

    def size_in_bytes(self, cell: Cell) -> int:
        """Return the bytes of a severity's rows."""
        return int(self.source(cell).images.nbytes)


def find_arrays(suite: Suite, folder: Path, cells: Sequence[Cell]) -> PublishedArrays | None:
    """Open a folder of arrays, or return None where it holds none of the suite's."""
    if not any((folder / f"{name}.npy").is_file() for name in suite.corruptions):
        return None
    there = {path.stem: path for path in folder.glob("*.npy")}
    wanted = _wanted(suite, folder, set(there), cells)
    return _checked(suite, folder, {name: open_array(there[name]) for name in wanted})


def find_tarred_arrays(
    suite: Suite, where: Path, archives: Sequence[Path], cells: Sequence[Cell]
) -> PublishedArrays:
    """Open the arrays inside a tar file."""
    there = tarred_arrays(archives[0])
    wanted = _wanted(suite, where, set(there), cells)
    return _checked(suite, where, {name: there[name] for name in wanted})


def _wanted(suite: Suite, where: Path, there: set[str], cells: Sequence[Cell]) -> list[str]:
    wanted = [*dict.fromkeys(str(cell.corruption) for cell in cells), LABELS]
    check_corruptions(suite, where, there, wanted, ".npy")
    return wanted


def _checked(suite: Suite, where: Path, arrays: Mapping[str, NDArray[Any]]) -> PublishedArrays:
    place = where / f"{LABELS}.npy"
    labels, count = arrays[LABELS], len(suite.severities)
    rows = suite.rows
    if not rows or label_of(where) is not None:
        # what was regenerated may be of fewer images
        rows = len(labels) // count if labels.ndim == 1 else 0
    if labels.shape not in ((rows * count,), (rows,)) or not rows:
        raise InputError(f"{place}: expected {rows * count} labels, got {labels.shape}.")
    checked = checked_labels(place, labels[:rows], rows)
    if len(labels) > rows and not np.array_equal(labels, np.tile(checked, count)):
        raise InputError(
            f"{place}: expected the same {rows:,} labels for each severity, got others. Are these "
            "the labels of another set?"
        )
    if checked.min() < 0 or checked.max() >= suite.classes:
        raise InputError(
            f"{place}: expected labels 0 to {suite.classes - 1}, got {checked.min()} to "
            f"{checked.max()}. Is this another data set?"
        )
    classes = len(np.unique(checked))
    if classes < suite.classes and rows >= MANY * suite.classes:
        raise InputError(
            f"{place}: expected labels of {suite.classes} classes, got {classes}. Is this another "
            "data set?"
        )
    for name, array in arrays.items():
        side = suite.size or (array.shape[1] if array.ndim == 4 else 0)
        expected = (rows * count, side, side, 3)
        if name != LABELS and (array.dtype != np.uint8 or array.shape != expected):
            raise InputError(
                f"{where / name}.npy: expected uint8 {expected}, got {array.dtype} {array.shape}."
            )
    return PublishedArrays(where=where, labels=checked, arrays=arrays, severities=suite.severities)


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


class Published(Protocol):
    """The corrupted images of a suite: the same images, in the same order, in every cell."""

    @property
    def where(self) -> Path:
        """The folder or tar file."""
        ...

    @property
    def names(self) -> tuple[str, ...] | None:
        """`<class folder>/<file>` of each image, or None where they are rows of arrays."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of each image, int64 (N,)."""
        ...

    def source(self, cell: Cell) -> ImageSource:
        """Return the images of a cell."""
        ...

    def size_in_bytes(self, cell: Cell) -> int:
        """Return about what is read of the disk for a cell."""
        ...


def find_published(suite: Suite, data: Path | None, cells: Sequence[Cell]) -> Published | None:
    """Open the published images of a suite, or return None where there are none.

    Args:
        suite: Says where to look, and the layout.
        data: The user's folder or tar file, or None to look in the usual places.
        cells: The corrupted cells that are wanted.

    Raises:
        InputError: There are some, but a wanted corruption or severity is missing, or the files
            are not what the suite says; the message names the first fault.
    """
    if not suite.folders or not cells:
        return None
    arrays = suite.layout == "arrays"
    in_folder = find_arrays if arrays else find_folders
    in_tars = find_tarred_arrays if arrays else find_tarred_folders
    if data is not None and data.suffix == TAR_SUFFIX and data.is_file():
        return in_tars(suite, data, [data], cells)
    for folder in candidates(data, suite.folders):
        # what lies in a usual place under other names is of other sets
        if data is None and folder.name not in suite.folders:
            continue
        if (found := in_folder(suite, folder, cells)) is not None:
            return found
    for where, archives in _archives(suite, data):
        return in_tars(suite, where, archives, cells)
    return None


def _archives(suite: Suite, data: Path | None) -> list[tuple[Path, list[Path]]]:
    """Return tar files of the set's name, and folders of its name with tar files in them."""
    places = candidates(data, ())
    tars = [place / f"{name}{TAR_SUFFIX}" for place in places for name in suite.folders]
    folders = [f for f in candidates(data, suite.folders) if f.name in suite.folders or f == data]
    inside = [(folder, sorted(folder.glob(f"*{TAR_SUFFIX}"))) for folder in folders]
    return [(tar, [tar]) for tar in tars if tar.is_file()] + [pair for pair in inside if pair[1]]
