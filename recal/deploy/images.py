"""Images to compare networks on: the user's, else the bundled ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from recal.data.layouts import TEST, open_images
from recal.data.policies import load_policy
from recal.data.prepared import PreparedImages
from recal.errors import InputError
from recal.sample_data import sample_images

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from recal.checkpoint.spec import ModelSpec

# enough to tell branches apart, and run in a second
IMAGES = 256


def comparison_images(
    spec: ModelSpec, data: Path | None, count: int
) -> tuple[NDArray[np.uint8], str]:
    """Read images spread evenly over a data set.

    Args:
        spec: Says which preparation and size.
        data: The user's folder, or None for the bundled images, resized to the network's input.
        count: How many at most.

    Returns:
        uint8 (n, size, size, 3), and what they are, for people.
    """
    if data is None:
        source = open_images(sample_images(), TEST)
        chosen = [Image.fromarray(source[int(i)]) for i in spread(len(source), count)]
        resized = [np.asarray(image.resize((spec.size, spec.size))) for image in chosen]
        return np.stack(resized), f"{len(resized)} bundled Fashion-MNIST images"
    source = open_images(data, TEST)
    images = PreparedImages(source, load_policy(spec.family, "clean"), 0, spec.size)
    read = images.batch(spread(len(source), count))
    return read, f"{len(read)} images of {source.where}"


def spread(available: int, count: int) -> NDArray[np.int64]:
    """Return at most `count` numbers from 0 to `available` - 1, evenly apart.

    Raises:
        InputError: There is nothing to choose from.
    """
    if not available:
        raise InputError("expected images, got none.")
    return np.unique(np.linspace(0, available - 1, min(count, available)).astype(np.int64))
