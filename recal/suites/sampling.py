"""Which of a suite's images are used: all, those that it lists, or a seeded sample."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recal.data.sampling import even_over_classes
from recal.errors import InputError
from recal.resources import data_folders, shipped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

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
    """Return the indices of the images that are used, rising, int64 (n,).

    Args:
        suite: May name the images, or their number.
        labels: Of all images, (N,).
        names: `<class folder>/<file>` of all images, or None where they have none.
        where: For messages.
        limit: Of those that the suite uses, a stratified sample of so many.
        seed: Of that sample.

    Raises:
        InputError: The suite's list cannot be found, or names images that are not there; or the
            suite wants the first images, and files in class folders have no such order.
    """
    if suite.names:
        chosen = _listed(suite, names, where)
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
    """Return the indices of `limit` images, as even over the classes as can be, in order.

    Files often come sorted by class, so the first ones would not do.
    """
    if limit is None:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(even_over_classes(order, labels, limit))


def _listed(suite: Suite, names: Sequence[str] | None, where: Path) -> NDArray[np.int64]:
    if names is None:
        raise InputError(
            f"{where}: expected files in class folders, of which suite {suite.name} names some, "
            "got arrays."
        )
    path = _find_list(suite)
    wanted = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    places = {_stem(name): index for index, name in enumerate(names)}
    missing = [name for name in wanted if name and _stem(name) not in places]
    if missing:
        raise InputError(
            f"{where}: expected the images of {path.name}, got a set without '{missing[0]}'"
            + (f" and {len(missing) - 1:,} others." if len(missing) > 1 else ".")
        )
    return np.array(sorted({places[_stem(name)] for name in wanted if name}), np.int64)


def _find_list(suite: Suite) -> Path:
    """Return the suite's list: beside its file, among the data, or in RobustBench's package."""
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
