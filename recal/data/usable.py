"""Which images of a source statistics are estimated on, in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recal.data.broken import without_broken
from recal.data.draws import in_batches, seeded_batches
from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from recal.data.sources import ImageSource

# fewer images say next to nothing of a channel's variance
MIN_IMAGES = 8


def usable_batches(
    source: ImageSource,
    samples: int | None,
    batch_size: int,
    seed: int,
    *,
    min_images: int = MIN_IMAGES,
    skip_broken: bool = False,
    ask_once: Callable[[Callable[[], Any]], Any] = lambda ask: ask(),
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """Draw images and cut them into batches.

    Args:
        source: The images.
        samples: How many at most; None for all.
        batch_size: Images a batch.
        seed: Of the draw.
        min_images: Fewer are refused.
        skip_broken: Whether those that cannot be decoded are left out; else they are used, and fail
            when they are read.
        ask_once: Gives every process of a job the answer of one.
        progress: Called with images tried and in total, where broken ones are looked for.

    Returns:
        The indices of each batch, and the names of the images left out, below the source's place.

    Raises:
        InputError: There are too few.
    """
    broken: list[str] = []
    batches = seeded_batches(len(source), samples or len(source), batch_size, seed)
    if skip_broken and batches:
        order = np.concatenate(batches)
        kept, broken = ask_once(lambda: without_broken(source, order, progress))
        batches = in_batches(kept, batch_size)
    count = sum(map(len, batches))
    if count < max(1, min_images):
        raise InputError(
            f"{source.where}: expected at least {min_images} images, got {count}. Give more, or "
            "lower --min-images."
        )
    # a variant's record says nothing of this machine's folders
    return batches, tuple(name.removeprefix(str(source.where)).lstrip("/: ") for name in broken)
