"""The published corrupted images of a suite: in folders, .npy files, or tar files of either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from recal.data.archives import TAR_SUFFIX
from recal.data.finding import candidates
from recal.suites.published_arrays import find_arrays, find_tarred_arrays
from recal.suites.published_folders import find_folders, find_tarred_folders

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from recal.data.sources import ImageSource
    from recal.suites.suite import Cell, Suite


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
