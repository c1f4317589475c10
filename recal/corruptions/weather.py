"""Snow, frost, fog, brightness and spatter.

Source: Hendrycks and Dietterich (arXiv 1903.12261) and their generators.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from recal.corruptions.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recal.corruptions.streams import Draws

LEVELS = 256


def brightness(
    images: NDArray[np.uint8], _scale: float, _draws: Draws, amount: float
) -> NDArray[np.uint8]:
    """Add `amount` to the value of HSV, clipped to 1."""
    out = np.empty_like(images)
    _look_up_by_largest(images, _brightness_table(amount), out)
    return out


@lru_cache(maxsize=16)
def _brightness_table(amount: float) -> NDArray[np.uint8]:
    """Return what a level c becomes in a pixel whose largest is m, uint8 (256 for m, 256 for c).

    Hue and saturation stay, so that a pixel's values keep their ratios; black becomes grey.
    """
    levels = np.arange(LEVELS) / 255
    value = np.clip(levels + amount, 0, 1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(levels[:, None] > 0, levels / levels[:, None], 1)
    return (np.clip(value * ratio, 0, 1) * 255).astype(np.uint8)


@compiled
def _look_up_by_largest(
    images: NDArray[np.uint8], table: NDArray[np.uint8], out: NDArray[np.uint8]
) -> None:
    count, height, width, _ = images.shape
    for i in range(count):
        for y in range(height):
            for x in range(width):
                r, g, b = images[i, y, x, 0], images[i, y, x, 1], images[i, y, x, 2]
                row = table[max(r, g, b)]
                out[i, y, x, 0], out[i, y, x, 1], out[i, y, x, 2] = row[r], row[g], row[b]
