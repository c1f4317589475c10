"""The published corrupted images of a suite: in folders, .npy files, or tar files of either."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recal.data.arrays import checked_labels, open_array, tarred_arrays
from recal.data.folders import is_tar, named_places
from recal.data.images import ArraySource, FileSource, is_image_name
from recal.data.tars import TAR_SUFFIX, Member, TarSource, images_in
from recal.datasets.provenance import label_of
from recal.errors import InputError
from recal.suites.classes import class_numbers
from recal.suites.suite import Cell, Suite
from recal.wording import did_you_mean

LABELS = "labels"
# images per class on average, from which on every class must have some
EXPECTED_EACH = 10
# ImageNet-C's tar files; some people unpack them into folders of these names
TAR_FOLDERS = ("noise", "blur", "weather", "digital", "extra")


@dataclass(frozen=True, kw_only=True, eq=False)
class Published:
    """The corrupted images of a suite: the same images, in the same order, in every cell.

    Attributes:
        where: The folder or tar file.
        names: `<class folder>/<file>` of each image, or None if they are rows of arrays.
        labels: Label of each image, int64 (N,).
        source: Function that returns the images of a cell.
    """

    where: Path
    names: tuple[str, ...] | None
    labels: NDArray[np.int64]
    source: Callable[[Cell], ArraySource | FileSource | TarSource]

    def size_in_bytes(self, cell: Cell) -> int:
        """Return the approximate number of bytes that are read from disk for a cell."""
        source = self.source(cell)
        if isinstance(source, ArraySource):
            return int(source.images.nbytes)
        if isinstance(source, TarSource):
            return int(source.sizes.sum())
        some = source.paths[:: max(1, len(source) // 100)]
        return sum(path.stat().st_size for path in some) * len(source) // len(some)


def find_published(suite: Suite, data: Path | None, cells: Sequence[Cell]) -> Published | None:
    """Open the published images of a suite, or return None if there are none.

    Args:
        suite: The suite, which declares the usual names and the layout.
        data: The user's folder or tar file, or None to look in the usual places.
        cells: The corrupted cells to open.

    Raises:
        InputError: A corruption or severity is missing, or the files do not match the suite. The
            message names the first fault.
    """
    if not suite.corrupted.folders or not cells:
        return None
    open_place = _open_arrays if suite.corrupted.layout == "arrays" else _open_files
    places = named_places(data, suite.corrupted.folders)
    for place in places if data is None else [*places, data]:
        archives = [place] if is_tar(place) else sorted(place.glob(f"*{TAR_SUFFIX}"))
        found = open_place(suite, place, archives, cells)
        if found is not None:
            return found
    return None


def _open_arrays(
    suite: Suite, where: Path, archives: Sequence[Path], cells: Sequence[Cell]
) -> Published | None:
    """Open a folder or a tar file of arrays, or return None if it holds none of the suite's."""
    there: Mapping[str, Path | NDArray[Any]] = {path.stem: path for path in where.glob("*.npy")}
    if not set(there) & set(suite.corrupted.corruptions):
        if not archives:
            return None
        there = tarred_arrays(archives[0])
    wanted = [*_corruptions_of(cells), LABELS]
    check_corruptions(suite, where, set(there), wanted, ".npy")
    arrays = {name: there[name] for name in wanted}
    opened = {n: a if isinstance(a, np.ndarray) else open_array(a) for n, a in arrays.items()}
    labels = _checked_arrays(suite, where, opened)
    rows, severities = len(labels), suite.corrupted.severities

    def source(cell: Cell) -> ArraySource:
        assert cell.severity is not None
        begin = severities.index(cell.severity) * rows
        return ArraySource(where, opened[str(cell.corruption)][begin : begin + rows], labels)

    return Published(where=where, names=None, labels=labels, source=source)


def _open_files(
    suite: Suite, where: Path, archives: Sequence[Path], cells: Sequence[Cell]
) -> Published | None:
    """Open `<corruption>/<severity>/<class>/*`, or return None if there are none of the suite's.

    In a folder, the corruptions may be one level deeper, below `noise/` and the like. In tar files
    they may be at any depth.
    """
    folders = _corruption_folders(where) if where.is_dir() else {}
    if set(folders) & set(suite.corrupted.corruptions):
        check_corruptions(suite, where, set(folders), _corruptions_of(cells), "")
        bases = {
            (name, path.name): path
            for name in _corruptions_of(cells)
            for path in folders[name].iterdir()
            if path.is_dir()
        }
        check_severities(suite, where, set(bases), cells)
        listed = ((cell, _files_below(bases[_key(cell)])) for cell in cells)
        names, labels = _the_same_images(suite, where, listed)

        def files(cell: Cell) -> FileSource:
            base = bases[_key(cell)]
            return FileSource(base, tuple(base / name for name in names), labels)

        return Published(where=where, names=names, labels=labels, source=files)
    if not archives:
        return None
    packed = _cells_in_tars(suite, where, archives)
    corruptions = {corruption for corruption, _ in packed}
    check_corruptions(suite, where, corruptions, _corruptions_of(cells), "")
    check_severities(suite, where, set(packed), cells)
    names, labels = _the_same_images(suite, where, ((c, packed[_key(c)].names) for c in cells))

    def members(cell: Cell) -> TarSource:
        return replace(packed[_key(cell)], labels=labels)

    return Published(where=where, names=names, labels=labels, source=members)


def _key(cell: Cell) -> tuple[str, str]:
    return str(cell.corruption), str(cell.severity)


def _corruptions_of(cells: Sequence[Cell]) -> list[str]:
    return [*dict.fromkeys(str(cell.corruption) for cell in cells)]


def _corruption_folders(where: Path) -> dict[str, Path]:
    below = [path for path in sorted(where.iterdir()) if path.is_dir()]
    groups = [path for path in below if path.name in TAR_FOLDERS]
    inner = [path for group in groups for path in sorted(group.iterdir()) if path.is_dir()]
    return {path.name: path for path in (*inner, *below)}


def _cells_in_tars(
    suite: Suite, where: Path, archives: Sequence[Path]
) -> dict[tuple[str, str], TarSource]:
    """Return the images of archives by corruption and severity, without labels."""
    cells: dict[tuple[str, str], TarSource] = {}
    for archive in archives:
        found: dict[tuple[str, str], list[Member]] = {}
        for member in images_in(archive):
            *_, corruption, severity, folder, file = "", "", "", *member.name.split("/")
            if corruption in suite.corrupted.corruptions:
                inside = member._replace(name=f"{folder}/{file}")
                found.setdefault((corruption, severity), []).append(inside)
        for key, members in found.items():
            if key in cells:
                raise InputError(f"{where}: holds {'/'.join(key)} in two tar files. Keep one.")
            source = TarSource.of_members(archive, [archive], [members], "/".join(key))
            # nearly all cells have the same names: keep these once, not seventy-five times
            same = next((s.names for s in cells.values() if s.names == source.names), source.names)
            cells[key] = replace(source, names=same)
    return cells


def _files_below(base: Path) -> tuple[str, ...]:
    """Return `<class>/<file>` of the images below a folder, in order."""
    found = []
    with os.scandir(base) as classes:
        for folder in classes:
            if folder.is_dir():
                with os.scandir(folder.path) as files:
                    found += [f"{folder.name}/{file.name}" for file in files if file.is_file()]
    return tuple(sorted((n for n in found if is_image_name(n)), key=lambda n: n.split("/")))


def _cells_in(suite: Suite, archive: Path) -> dict[tuple[str, str], TarSource]:
    """Return an archive's images by corruption and severity."""
    found: dict[tuple[str, str], list[Member]] = {}
    for member in images_in(archive):
        *_, corruption, severity, folder, file = "", "", "", *member.name.split("/")
        if corruption in suite.corrupted.corruptions:
            inside = member._replace(name=f"{folder}/{file}")
            found.setdefault((corruption, severity), []).append(inside)
    return {
        key: TarSource.of_members(archive, [archive], [members], "/".join(key))
        for key, members in found.items()
    }


def _the_same_images(
    suite: Suite, where: Path, listed: Iterable[tuple[Cell, tuple[str, ...]]]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the names and labels of the images, after checking that all cells have the same."""
    exact = suite.corrupted.rows and label_of(where) is None
    first: tuple[Cell, tuple[str, ...]] | None = None
    for cell, names in listed:
        if (exact and len(names) != suite.corrupted.rows) or not names:
            expected = f"{suite.corrupted.rows:,} images" if suite.corrupted.rows else "images"
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


def check_corruptions(
    suite: Suite, where: Path, there: set[str], wanted: Sequence[str], suffix: str
) -> None:
    """Refuse a set without some of the wanted corruptions.

    Raises:
        InputError: Some are missing. The message names them, and a file or folder of a similar
            name.
    """
    missing = [name for name in wanted if name not in there]
    if missing:
        strangers = sorted(there - set(suite.corrupted.corruptions))
        hint = did_you_mean(missing[0], strangers).replace("Did you mean", "Is it")
        raise InputError(
            f"{where}: expected the published set, got one without "
            f"{', '.join(name + suffix for name in missing)}.{hint} Complete it, or leave "
            "corruptions out with --corruptions."
        )


def check_severities(
    suite: Suite, where: Path, found: set[tuple[str, str]], cells: Sequence[Cell]
) -> None:
    """Refuse severity folders that are missing, or unknown to the suite.

    Args:
        suite: The suite, which declares its severities.
        where: The folder or tar file, for messages.
        found: Corruption and severity of each existing folder.
        cells: The cells to open.

    Raises:
        InputError: The severities differ. The message names the corruption and the folders.
    """
    expected = {str(severity) for severity in suite.corrupted.severities}
    for name in dict.fromkeys(str(cell.corruption) for cell in cells):
        there = {severity for corruption, severity in found if corruption == name}
        wanted = {str(cell.severity) for cell in cells if cell.corruption == name}
        if not wanted <= there or not there <= expected:
            raise InputError(
                f"{where}: {name}: expected the severities {', '.join(sorted(expected))} as "
                f"folders, got {', '.join(sorted(there)) or 'none'}."
            )


def _checked_arrays(
    suite: Suite, where: Path, arrays: Mapping[str, NDArray[Any]]
) -> NDArray[np.int64]:
    """Return the labels of the rows of one severity, after checking all arrays."""
    place = where / f"{LABELS}.npy"
    severities, rows = suite.corrupted.severities, suite.corrupted.rows
    labels, count = arrays[LABELS], len(severities)
    if not rows or label_of(where) is not None:
        # a regenerated set may have fewer images
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
    if classes < suite.classes and rows >= EXPECTED_EACH * suite.classes:
        raise InputError(
            f"{place}: expected labels of {suite.classes} classes, got {classes}. Is this another "
            "data set?"
        )
    for name, array in arrays.items():
        side = suite.corrupted.size or (array.shape[1] if array.ndim == 4 else 0)
        expected = (rows * count, side, side, 3)
        if name != LABELS and (array.dtype != np.uint8 or array.shape != expected):
            raise InputError(
                f"{where / name}.npy: expected uint8 {expected}, got {array.dtype} {array.shape}."
            )
    return checked
