"""The images of a suite to use: all, those that it lists, or a seeded sample."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recal.data.sampling import even_over_classes
from recal.errors import InputError
from recal.files import read_text
from recal.resources import data_folders, shipped
from recal.wording import listed

if TYPE_CHECKING:
    from recal.suites.suite import Suite


def choose_images(
    suite: Suite,
    labels: NDArray[np.int64],
    names: Sequence[str] | None,
    where: Path,
    *,
    limit: int | None,
    seed: int,
) -> NDArray[np.int64]:
    """Return the indices of the images to use, rising, int64 (n,).

    Args:
        suite: The suite, which may list the images, or give their number.
        labels: Labels of all images, (N,).
        names: `<class folder>/<file>` of all images, or None if they are rows of arrays.
        where: The folder or file of the images, for messages.
        limit: Size of a stratified sample of the suite's images; None uses all of them.
        seed: Seed of that sample.

    Raises:
        InputError: The suite's list is not found, or names missing images; or the suite uses the
            first images, and files in class folders have no such order.
    """
    if suite.names:
        chosen = _in_list(suite, names, where)
    elif suite.first:
        if names is not None:
            raise InputError(
                f"{where}: expected arrays in the published order, of which suite {suite.name} "
                f"takes the first {suite.first:,}, got files in class folders."
            )
        chosen = np.arange(min(suite.first, len(labels)))
    else:
        chosen = np.arange(len(labels))
    return chosen[stratified_sample(labels[chosen], limit, seed)]


def stratified_sample(labels: NDArray[np.int64], limit: int | None, seed: int) -> NDArray[np.int64]:
    """Return the indices of `limit` images, spread evenly over the classes, in rising order."""
    if limit is None:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(even_over_classes(order, labels, limit))


def _in_list(suite: Suite, names: Sequence[str] | None, where: Path) -> NDArray[np.int64]:
    if names is None:
        raise InputError(
            f"{where}: expected files in class folders, of which suite {suite.name} names some, "
            "got arrays."
        )
    path = _find_list(suite)
    wanted = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    numbers = {_stem(name): index for index, name in enumerate(names)}
    missing = [f"'{name}'" for name in wanted if _stem(name) not in numbers]
    if missing:
        raise InputError(
            f"{where}: expected the images of {path.name}, got a set without {listed(missing, 1)}."
        )
    return np.array(sorted({numbers[_stem(name)] for name in wanted}), np.int64)


def _find_list(suite: Suite) -> Path:
    """Return the path of the suite's list: shipped, among the data, or in RobustBench's package."""
    folders = [shipped("evals"), Path(), *data_folders()]
    spec = importlib.util.find_spec("robustbench")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "helper_files")
    for folder in folders:
        if (folder / suite.names).is_file():
            return folder / suite.names
    raise InputError(
        f"suite {suite.name}: expected the list {suite.names}, got none in "
        f"{', '.join(str(folder) for folder in folders)}. RobustBench's package holds its own, in "
        "robustbench/helper_files/."
    )


def _stem(name: str) -> str:
    """Return a name without its suffix: the same image may be .JPEG here and .png there."""
    return name.rpartition(".")[0] or name
