"""From the names of class folders to the numbers of a network's logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recal.datasets.imagenet import wnids
from recal.errors import InputError
from recal.wording import listed

if TYPE_CHECKING:
    from recal.suites.suite import Suite


def class_numbers(folders: Sequence[str], suite: Suite, where: Path) -> NDArray[np.int64]:
    """Return the class of each class folder, int64 (len(folders),).

    With a subset they are numbers within it, 0 to its number of classes - 1.

    Args:
        folders: Names of the folders, each once.
        suite: The suite, which declares the order of classes.
        where: The folder or file that holds them, for messages.

    Raises:
        InputError: A name is none of the suite's classes, or some of the sorted names are missing.
    """
    if suite.order == "sorted":
        if len(folders) != suite.classes:
            raise InputError(
                f"{where}: expected {suite.classes} class folders, got {len(folders)}."
            )
        # folders 0 to 99 are in the order of their numbers, not of their letters
        counted = all(name.isdecimal() for name in folders)
        ordered = sorted(folders, key=int) if counted else sorted(folders)
        known = {name: number for number, name in enumerate(ordered)}
    elif suite.order == "numbers":
        known = {str(number): number for number in range(suite.classes)}
    else:
        known = {wnid: n for n, wnid in enumerate(wnids(suite.subset or "imagenet"))}
    strangers = [f"'{name}'" for name in folders if name not in known]
    if strangers:
        example = next(iter(known))
        raise InputError(
            f"{where}: expected class folders such as '{example}' ({len(known)} classes of suite "
            f"{suite.name}), got {listed(strangers, 1)}."
        )
    return np.array([known[name] for name in folders], np.int64)


def kept_logits(suite: Suite) -> NDArray[np.int64] | None:
    """Return the indices of the logits that count, in order, or None for all of them.

    ImageNet-A and -R have images of 200 classes: the prediction is the largest of these 200 logits.
    """
    if not suite.subset:
        return None
    order = {wnid: number for number, wnid in enumerate(wnids("imagenet"))}
    return np.array([order[wnid] for wnid in wnids(suite.subset)], np.int64)


def class_count(suite: Suite) -> int:
    """Return the number of classes that a suite's labels can be of."""
    return len(wnids(suite.subset)) if suite.subset else suite.classes
