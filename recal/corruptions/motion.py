"""Motion blur, as ImageMagick does it.

Source: Hendrycks and Dietterich (arXiv 1903.12261); ImageMagick's `MotionBlurImage`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recal.compiled import compiled
from recal.corruptions.filters import add_shifted, pad
from recal.corruptions.streams import Draws, first_uniforms

if TYPE_CHECKING:
    from numpy.typing import NDArray


def motion_blur(
    images: NDArray[np.uint8], scale: float, draws: Draws, radius: float, sigma: float
) -> NDArray[np.uint8]:
    """Smear each image towards one side, at an angle drawn from U(-45, 45) degrees."""
    angles = 90 * first_uniforms(draws) - 45
    return smear(images, angles, max(1, round(scale * radius)), scale * sigma)


def smear(
    images: NDArray[np.uint8], angles: NDArray[np.float64], radius: int, sigma: float
) -> NDArray[np.uint8]:
    """Motion-blur as ImageMagick does.

    Its kernel is one side of a Gaussian, 2 radius + 1 wide, laid along a line of whole pixels;
    beyond an edge the edge's own values go on. ImageMagick rounds to 16 bits; this rounds to 8,
    where its release 6.9.11 truncates when it writes 8-bit files: half a level darker on average.

    Args:
        images: uint8 (N, H, W, C).
        angles: float64 (N,), degrees.
        radius: In pixels.
        sigma: Standard deviation in pixels.

    Returns:
        uint8 (N, H, W, C), rounded.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    turns = np.deg2rad(angles)[:, None]
    columns = np.ceil(steps * np.cos(turns) - 0.5).astype(np.int64)
    rows = np.ceil(steps * np.sin(turns) - 0.5).astype(np.int64)
    out = np.empty_like(images)
    _filter_clamped(images, rows, columns, weights, out)
    return out


@compiled
def _filter_clamped(
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    weights: NDArray[np.float32],
    out: NDArray[np.uint8],
) -> None:
    count, height, width, channels = images.shape
    margin = weights.size
    padded = np.empty((height + 2 * margin, (width + 2 * margin) * channels), np.float32)
    total = np.empty((height, width * channels), np.float32)
    for i in range(count):
        pad(images[i], margin, False, padded)
        add_shifted(padded, rows[i] + margin, (columns[i] + margin) * channels, weights, total)
        result = out[i].reshape((height, width * channels))
        for y in range(height):
            for j in range(width * channels):
                result[y, j] = np.uint8(total[y, j] + np.float32(0.5))
