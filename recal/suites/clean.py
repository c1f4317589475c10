"""The clean images of a suite: found, labelled by the suite's classes, and counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recal.data.arrays import checked_source, open_array
from recal.data.folders import SPLIT_FOLDERS, TEST, candidates, open_images, places_searched
from recal.data.images import FileSource, ImageSource
from recal.data.tars import TarSource
from recal.errors import InputError
from recal.resources import data_folders
from recal.suites.classes import class_count, class_numbers

if TYPE_CHECKING:
    from recal.suites.suite import Suite


@dataclass(frozen=True, eq=False, kw_only=True)
class CleanImages:
    """A suite's clean test images.

    Attributes:
        source: The images.
        labels: Label of each image in the suite's classes, int64 (N,).
        names: `<class folder>/<file>` of each image, or None if they are rows of arrays.
        warnings: Warnings about the images, for the user.
    """

    source: ImageSource
    labels: NDArray[np.int64]
    names: tuple[str, ...] | None
    warnings: tuple[str, ...]

    @property
    def where(self) -> Path:
        """The folder or file that they were read from, for messages."""
        return self.source.where


def find_clean(suite: Suite, data: Path | None, corrupted: Path | None = None) -> CleanImages:
    """Open a suite's clean test images.

    Args:
        suite: The suite, which declares the usual folder names and the classes.
        data: The user's folder or file, or None to look in the usual places.
        corrupted: Folder or file of the corrupted images, which is left out of the search.

    Raises:
        InputError: They are not found, have no labels, or labels or class folders beyond the
            suite's classes.
    """
    if data is not None and not data.is_dir() and data != corrupted:
        return _labelled(suite, open_images(data, TEST))
    problem: InputError | None = None
    for folder in candidates(data, suite.clean.folders):
        if folder == corrupted or (data is None and _holds_sets(folder)):
            continue
        try:
            return _labelled(suite, _open(suite, folder))
        except InputError as error:
            # the first folder is the likeliest: its fault is the one to report
            problem = problem or error
    if data is not None and problem is not None:
        raise problem
    raise InputError(f"suite {suite.name}: expected images, got none. {places_searched(data)}")


def _holds_sets(folder: Path) -> bool:
    """Whether a usual place holds data sets, and is no test set itself: it may be huge."""
    if folder not in data_folders():
        return False
    splits = any((folder / name).is_dir() for name in SPLIT_FOLDERS[TEST])
    return not splits and not any(path.is_file() for path in folder.iterdir())


def _open(suite: Suite, folder: Path) -> ImageSource:
    if suite.clean.arrays:
        images, labels = (folder / name for name in suite.clean.arrays)
        return checked_source(images, open_array(images), open_array(labels))
    return open_images(folder, TEST)


def _labelled(suite: Suite, source: ImageSource) -> CleanImages:
    if source.labels is None:
        raise InputError(
            f"{source.where}: expected labelled test images (class folders), got plain images."
        )
    labels, names, warnings = source.labels, None, []
    if source.classes is not None:
        labels = class_numbers(source.classes, suite, source.where)[labels]
        names = _names(source)
    highest = class_count(suite) - 1
    if labels.min() < 0 or labels.max() > highest:
        raise InputError(
            f"suite {suite.name}: expected labels 0 to {highest}, got {labels.min()} to "
            f"{labels.max()}. Is {source.where} another data set?"
        )
    classes = len(np.unique(labels))
    if classes <= highest:
        warnings.append(f"{source.where}: {classes:,} of the {highest + 1:,} classes have images.")
    if suite.clean.images and len(source) != suite.clean.images:
        warnings.append(
            f"{source.where}: {len(source):,} images, where the published set has "
            f"{suite.clean.images:,}."
        )
    return CleanImages(source=source, labels=labels, names=names, warnings=tuple(warnings))


def _names(source: ImageSource) -> tuple[str, ...] | None:
    if isinstance(source, FileSource):
        files = [path.name for path in source.paths]
    elif isinstance(source, TarSource):
        files = [name.rpartition("/")[2] for name in source.names]
    else:
        return None
    assert source.classes is not None
    assert source.labels is not None
    folders = (source.classes[label] for label in source.labels)
    return tuple(f"{folder}/{file}" for folder, file in zip(folders, files, strict=True))
