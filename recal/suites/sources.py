"""The sources of a suite's images: clean test images, and published corrupted ones.

Files that are malformed, or that do not match what the suite declares, are an `InputError`.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recal.data.arrays import checked_labels, checked_source, open_array, tarred_arrays
from recal.data.folders import candidates, is_tar, named_places, open_images, places_searched
from recal.data.images import ArraySource, FileSource, ImageSource, is_image_name, numbered
from recal.data.splits import TEST
from recal.data.tars import TAR_SUFFIX, Member, TarSource, images_in
from recal.datasets.catalogue import label_of
from recal.datasets.classes import class_answers
from recal.errors import InputError, did_you_mean
from recal.suites.suite import Cell, Suite, class_count, class_numbers, class_order

LABELS = "labels"
# images per class on average, from which on every class must have some
EXPECTED_EACH = 10
# ImageNet-C's tar files; some people unpack them into folders of these names
TAR_FOLDERS = ("noise", "blur", "weather", "digital", "extra")


@dataclass(frozen=True, eq=False, kw_only=True)
class CleanImages:
    """A suite's clean test images.

    Attributes:
        source: The images.
        labels: Label of each image in the suite's classes, int64 (N,).
        answers: All right answers of each image, int64 (N, A), or None where there is one for each.
        names: `<class folder>/<file>` of each image, or None if they are rows of arrays.
        warnings: Warnings about the images, for the user.
    """

    source: ImageSource
    labels: NDArray[np.int64]
    answers: NDArray[np.int64] | None
    names: tuple[str, ...] | None
    warnings: tuple[str, ...]

    @property
    def where(self) -> Path:
        """The folder or file that they were read from, for messages."""
        return self.source.where


def find_clean(suite: Suite, data: Path | None, corrupted: Path | None = None) -> CleanImages:
    """Open a suite's clean test images, which must be there and have labels.

    The search in `data`, or in the usual places, leaves out the place of the corrupted images.
    """
    if data is not None and not data.is_dir() and data != corrupted:
        return _labelled(suite, open_images(data, TEST))
    problem: InputError | None = None
    for folder in candidates(data, suite.clean.folders):
        if folder == corrupted:
            continue
        try:
            if suite.clean.arrays:
                images, labels = (folder / name for name in suite.clean.arrays)
                source = checked_source(images, open_array(images), open_array(labels))
                return _labelled(suite, source)
            return _labelled(suite, open_images(folder, TEST))
        except InputError as error:
            # the first folder is the likeliest: its fault is the one to report
            problem = problem or error
    if data is not None and problem is not None:
        raise problem
    raise InputError(f"suite {suite.name}: expected images, got none. {places_searched(data)}")


def _labelled(suite: Suite, source: ImageSource) -> CleanImages:
    if source.labels is None:
        raise InputError(
            f"{source.where}: expected labelled test images (class folders), got plain images."
        )
    answers, names, warnings = class_answers(source, class_order(suite)), None, []
    assert answers is not None
    if source.classes is not None and source.names is not None:
        files = (name.rpartition("/")[2] for name in source.names)
        names = tuple(map("{}/{}".format, (source.classes[i] for i in source.labels), files))
    highest = class_count(suite) - 1
    classes = len(np.unique(answers))
    if classes <= highest:
        warnings.append(f"{source.where}: {classes:,} of the {highest + 1:,} classes have images.")
    if suite.clean.images and len(source) != suite.clean.images:
        warnings.append(
            f"{source.where}: {len(source):,} images, where the published set has "
            f"{suite.clean.images:,}."
        )
    return CleanImages(
        source=source,
        labels=answers[:, 0].copy(),
        answers=answers if answers.shape[1] > 1 else None,
        names=names,
        warnings=tuple(warnings),
    )


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
    """Open the published images of a suite, all of whose cells must be there, or return None."""
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
    _require_corruptions(suite, where, set(there), wanted, ".npy")
    arrays = ((name, there[name]) for name in wanted)
    opened = {name: open_array(a) if isinstance(a, Path) else a for name, a in arrays}
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
    places: Mapping[tuple[str, str], Path | TarSource]
    folders = _corruption_folders(where) if where.is_dir() else {}
    wanted, there = _corruptions_of(cells), set(folders)
    if there & set(suite.corrupted.corruptions):
        below = (
            (name, path) for name in wanted if name in there for path in folders[name].iterdir()
        )
        places = {(name, path.name): path for name, path in below if path.is_dir()}
    elif archives:
        places = _cells_in_tars(suite, where, archives)
        there = {corruption for corruption, _ in places}
    else:
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
    folders, labels = numbered([name.partition("/")[0] for name in first[1]])
    if exact and len(folders) != suite.classes:
        raise InputError(
            f"{where}: expected {suite.classes:,} class folders, got {len(folders):,}."
        )
    return first[1], class_numbers(folders, suite, where)[labels]


def _require_corruptions(
    suite: Suite, where: Path, there: set[str], wanted: Sequence[str], suffix: str = ""
) -> None:
    """Refuse a set without some of the wanted corruptions."""
    missing = [name for name in wanted if name not in there]
    if missing:
        strangers = sorted(there - set(suite.corrupted.corruptions))
        hint = did_you_mean(missing[0], strangers).replace("Did you mean", "Is it")
        raise InputError(
            f"{where}: expected the published set, got one without "
            f"{', '.join(name + suffix for name in missing)}.{hint} Complete it, or leave "
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
    severities, rows = suite.corrupted.severities, suite.corrupted.rows
    labels, count = arrays[LABELS], len(severities)
    if not rows or label_of(where) is not None:
        # a regenerated set may have fewer images
        rows = len(labels) // count if labels.ndim else 0
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
