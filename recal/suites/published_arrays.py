"""CIFAR-10-C's layout: `<corruption>.npy`, the severities one after the other, and `labels.npy`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recal.data.arrays import checked_labels, open_array
from recal.data.provenance import label_of
from recal.data.sources import ArraySource
from recal.data.tarred_arrays import tarred_arrays
from recal.errors import InputError
from recal.suites.published_names import check_corruptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recal.suites.suite import Cell, Suite

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
