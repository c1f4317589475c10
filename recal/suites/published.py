"""The published corrupted images of a suite, in the forms in which they are distributed.

Files that are malformed, or that do not match what the suite declares, are an `InputError`.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recal.data.arrays import checked_labels, open_array, tarred_arrays
from recal.data.folders import (
    compressed_in,
    is_tar,
    named_places,
    packed_places,
)
from recal.data.images import ArraySource, FileSource, is_image_name, numbered
from recal.data.tars import TAR_SUFFIX, Member, TarSource, images_in
from recal.datasets.catalogue import label_of
from recal.errors import InputError, did_you_mean
from recal.suites.suite import Cell, Suite, class_count, class_numbers

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
            return int(source.places[:, 2].sum())
        some = source.paths[:: max(1, len(source) // 100)]
        return sum(path.stat().st_size for path in some) * len(source) // len(some)


def find_published(suite: Suite, data: Path | None, cells: Sequence[Cell]) -> Published | None:
    """Open the published images of a suite, all of whose cells must be there, or return None.

    Raises:
        InputError: A place of their name does not hold them as they should be, or is compressed.
    """
    names = suite.corrupted.folders
    if not names or not cells:
        return None
    open_place = _open_arrays if suite.corrupted.layout == "arrays" else _open_files
    named, problem = named_places(data, names), None
    for place in named if data is None else [*named, data]:
        try:
            found = open_place(suite, place, _archives_of(place), cells)
        except InputError as error:
            problem = problem or error
            continue
        if found is not None:
            return found
        if place in named:
            problem = problem or InputError(
                f"{place}: expected the published images of suite {suite.name}, such as "
                f"{_example(suite)}, got none of them.{compressed_in(place)} Complete the folder, "
                "or give it another name."
            )
    packed = packed_places(data, names)
    if problem is None and packed:
        problem = InputError(
            f"{packed[0]}: expected the published images unpacked or in a .tar file, got a "
            "compressed archive. Unpack it."
        )
    if problem is not None:
        raise problem
    return None


def _archives_of(place: Path) -> list[Path]:
    """Return the tar files in a folder, and the one of its name beside it; or the tar file."""
    if is_tar(place):
        return [place]
    beside = place.with_name(f"{place.name}{TAR_SUFFIX}")
    return [*sorted(place.glob(f"*{TAR_SUFFIX}")), *([beside] if is_tar(beside) else [])]


def _example(suite: Suite) -> str:
    name = suite.corrupted.corruptions[0]
    if suite.corrupted.layout == "arrays":
        return f"{name}.npy"
    return f"{name}/{suite.corrupted.severities[0]}/<class>/"


def _open_arrays(
    suite: Suite, where: Path, archives: Sequence[Path], cells: Sequence[Cell]
) -> Published | None:
    """Open a folder or a tar file of arrays, or return None if it holds none of the suite's.

    An array holds all severities of a corruption, or the one in its name: `fog_1.npy`. What the
    folder lacks is looked for in the tar files.
    """
    there: dict[str, Path | NDArray[Any]] = {path.stem: path for path in where.glob("*.npy")}
    if any(name is None for name in [*_array_names(there, cells).values(), there.get(LABELS)]):
        for archive in archives:
            there = {**tarred_arrays(archive), **there}
    of_cells = _array_names(there, cells)
    known = {name for name in of_cells.values() if name is not None}
    if not known and not set(there) & set(suite.corrupted.corruptions) and not is_tar(where):
        return None
    complete = {str(cell.corruption) for cell in cells} - {
        str(cell.corruption) for cell, name in of_cells.items() if name is None
    }
    found = {*there, *complete}
    _require_corruptions(suite, where, found, [*_corruptions_of(cells), LABELS], ".npy")
    arrays = ((name, there[name]) for name in sorted({*known, LABELS}))
    opened = {name: open_array(a) if isinstance(a, Path) else a for name, a in arrays}
    labels = _checked_arrays(suite, where, opened)
    rows, severities = len(labels), suite.corrupted.severities

    def source(cell: Cell) -> ArraySource:
        assert cell.severity is not None
        name = str(of_cells[cell])
        begin = severities.index(cell.severity) * rows if name == cell.corruption else 0
        return ArraySource(where, opened[name][begin : begin + rows], labels)

    return Published(where=where, names=None, labels=labels, source=source)


def _array_names(there: Collection[str], cells: Sequence[Cell]) -> dict[Cell, str | None]:
    """Return the name of the array of each cell among those that are there, or None."""
    names: dict[Cell, str | None] = {}
    for cell in cells:
        name = str(cell.corruption)
        spellings = (name, f"{name}_{cell.severity}", f"{name}-{cell.severity}")
        names[cell] = next((spelling for spelling in spellings if spelling in there), None)
    return names


def _open_files(
    suite: Suite, where: Path, archives: Sequence[Path], cells: Sequence[Cell]
) -> Published | None:
    """Open `<corruption>/<severity>/<class>/*`, or return None if there are none of the suite's.

    In a folder, the corruptions may be one level deeper, below `noise/` and the like. In tar files
    they may be at any depth. If the folder lacks cells, those in its tar files are read from them:
    it may be half unpacked.
    """
    folders = _corruption_folders(where) if where.is_dir() else {}
    wanted, there = _corruptions_of(cells), set(folders)
    below = (path for name in wanted if name in there for path in folders[name].iterdir())
    places: dict[tuple[str, str], Path | TarSource] = {
        (path.parent.name, path.name): path for path in below if path.is_dir()
    }
    if archives and not all(_key(cell) in places for cell in cells):
        places |= _cells_in_tars(suite, where, archives)
        there |= {corruption for corruption, _ in places}
    if not there & set(suite.corrupted.corruptions) and not is_tar(where):
        return None
    _require_corruptions(suite, where, there, wanted)
    _check_severities(suite, where, set(places), cells)

    def names_of(place: Path | TarSource) -> tuple[str, ...]:
        return place.names if isinstance(place, TarSource) else _files_below(place)

    listed = ((cell, names_of(places[_key(cell)])) for cell in cells)
    names, labels = _the_same_images(suite, where, listed)

    def source(cell: Cell) -> FileSource | TarSource:
        place = places[_key(cell)]
        if isinstance(place, TarSource):
            return replace(place, labels=labels)
        return FileSource(place, tuple(place / name for name in names), labels)

    return Published(where=where, names=names, labels=labels, source=source)


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
    for folder in base.iterdir():
        if folder.is_dir():
            with os.scandir(folder) as files:
                found += [f"{folder.name}/{file.name}" for file in files if file.is_file()]
    return tuple(sorted(filter(is_image_name, found), key=lambda name: name.split("/")))


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
    folders, numbers = numbered([name.partition("/")[0] for name in first[1]])
    labels = class_numbers(folders, suite, where)[numbers]
    _require_classes(suite, where, labels, suite.corrupted.rows if exact else 0)
    return first[1], labels


def _require_classes(suite: Suite, where: Path, labels: NDArray[np.int64], rows: int) -> None:
    """Refuse labels of fewer classes than the suite's, where so many images are of all of them."""
    classes, expected = len(np.unique(labels[labels >= 0])), class_count(suite)
    if classes < expected and rows >= EXPECTED_EACH * expected:
        raise InputError(
            f"{where}: expected labels of {expected:,} classes, got {classes:,}. Is this another "
            "data set?"
        )


def _require_corruptions(
    suite: Suite, where: Path, there: set[str], wanted: Sequence[str], suffix: str = ""
) -> None:
    """Refuse a set without some of the wanted corruptions."""
    missing = [name for name in wanted if name not in there]
    if missing:
        strangers = sorted(there - set(suite.corrupted.corruptions))
        hint = did_you_mean(missing[0], strangers).replace("Did you mean", "Is it")
        packed = compressed_in(where) if where.is_dir() else ""
        raise InputError(
            f"{where}: expected the published set, got one without "
            f"{', '.join(name + suffix for name in missing)}.{hint}{packed} Complete it, or leave "
            "corruptions out with --corruptions."
        )


def _check_severities(
    suite: Suite, where: Path, found: set[tuple[str, str]], cells: Sequence[Cell]
) -> None:
    """Refuse folders (corruption and severity) that are missing, or unknown to the suite."""
    expected = {str(severity) for severity in suite.corrupted.severities}
    for name in _corruptions_of(cells):
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
    names, rows = suite.corrupted.corruptions, suite.corrupted.rows
    labels, count = arrays[LABELS], len(suite.corrupted.severities)
    if not rows or label_of(where) is not None:
        # a regenerated set may have fewer images
        single = [len(a) for name, a in arrays.items() if name not in names and name != LABELS]
        rows = single[0] if single else len(labels) // count if labels.ndim else 0
    if not rows or len(labels) not in (rows * count, rows):
        raise InputError(f"{place}: expected {rows * count} labels, got {labels.shape}.")
    checked = checked_labels(place, labels, len(labels))
    if len(labels) > rows and not np.array_equal(checked, np.tile(checked[:rows], count)):
        raise InputError(
            f"{place}: expected the same {rows:,} labels for each severity, got others. Are these "
            "the labels of another set?"
        )
    checked = checked[:rows]
    if checked.min() < 0 or checked.max() >= suite.classes:
        raise InputError(
            f"{place}: expected labels 0 to {suite.classes - 1}, got {checked.min()} to "
            f"{checked.max()}. Is this another data set?"
        )
    _require_classes(suite, place, checked, rows)
    for name, array in arrays.items():
        side = suite.corrupted.size or (array.shape[1] if array.ndim == 4 else 0)
        whole = name in names  # and not of one severity
        expected = (rows * count if whole else rows, side, side, 3)
        if name != LABELS and (array.dtype != np.uint8 or array.shape != expected):
            raise InputError(
                f"{where / name}.npy: expected uint8 {expected}, got {array.dtype} {array.shape}."
            )
    return checked
