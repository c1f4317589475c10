"""Images that cannot be decoded: found before a long run, named, counted, and left out if asked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from recal.data.sources import ArraySource
from recal.errors import BrokenImageError
from recal.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from recal.data.sources import ImageSource

BLOCK = 512
NAMED = 3


def without_broken(
    source: ImageSource,
    indices: NDArray[np.int64],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[NDArray[np.int64], list[str]]:
    """Decode images once and leave out those that cannot be.

    Args:
        source: The images.
        indices: Those that are meant to be used, int64 (n,).
        progress: Called with images tried and in total.

    Returns:
        The others' indices in the order given, int64, and the names of the broken ones.
    """
    if isinstance(source, ArraySource):  # nothing to decode
        return indices, []
    kept = np.ones(len(indices), bool)
    with ThreadPoolExecutor(min(available_cores(), 16)) as pool:
        for start in range(0, len(indices), BLOCK):
            block = indices[start : start + BLOCK].tolist()
            kept[start : start + BLOCK] = list(pool.map(lambda i: _decodes(source, i), block))
            progress(start + len(block), len(indices))
    return indices[kept], [source.name(index) for index in indices[~kept].tolist()]


@contextmanager
def counting_broken(
    source: ImageSource,
    indices: NDArray[np.int64],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Iterator[None]:
    """Where the block meets a broken image, look for all of them before it ends.

    Args:
        source: The images.
        indices: Those that the block reads, int64 (n,).
        progress: Called with images looked at and in total.

    Raises:
        BrokenImageError: It names the first few and counts them.
    """
    try:
        yield
    except BrokenImageError as error:
        _, broken = without_broken(source, indices, progress)
        names = ", ".join(broken[:NAMED])
        more = f" and {len(broken) - NAMED:,} more" if len(broken) > NAMED else ""
        raise BrokenImageError(
            f"{source.where}: expected images, got {len(broken):,} out of {len(indices):,} that "
            f"cannot be decoded: {names}{more}. Replace or remove them, or leave them out with "
            "--skip-broken."
        ) from error


def _decodes(source: ImageSource, index: int) -> bool:
    try:
        source[index]
    except BrokenImageError:
        return False
    return True
