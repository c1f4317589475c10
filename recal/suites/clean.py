"""The clean test images of a suite.

Files that are malformed, or that do not match what the suite declares, are an `InputError`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recal.data.arrays import checked_source, open_array
from recal.data.folders import candidates, open_images, places_searched
from recal.data.images import ImageSource
from recal.data.labels import labelled
from recal.data.splits import TEST
from recal.datasets.catalogue import timm_file
from recal.datasets.classes import class_answers
from recal.errors import InputError
from recal.suites.suite import Suite, class_count, class_order


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
    if suite.clean.answers:
        answers_file = timm_file(f"{suite.clean.answers}_labels.json")
        source = labelled(source, labels=answers_file, classes=None)
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
    classes = len(np.unique(answers[answers >= 0]))
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
