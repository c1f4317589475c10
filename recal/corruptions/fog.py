"""Fog: a plasma fractal laid over the image.

Source: Hendrycks and Dietterich (arXiv 1903.12261); the fractal is Fournier, Fussell and
Carpenter's diamond-square algorithm (1982).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recal.corruptions.random import BLOCK, Draws, fill_words, uniform
from recal.kernels import compiled

ROUGHNESS = 100.0


def fog(
    images: NDArray[np.uint8], _scale: float, draws: Draws, amount: float, decay: float
) -> NDArray[np.uint8]:
    """Add a fractal of 0 to `amount` to each image, then darken it to its former maximum.

    Args:
        images: uint8 (N, H, W, 3).
        draws: Key of the random draws and indices of the images.
        amount: Brightness of the thickest fog, in units of full brightness.
        decay: Divisor of the roughness from one scale to the next finer one.
    """
    side = 1 << (max(images.shape[1:3]) - 1).bit_length()
    out = np.empty_like(images)
    _lay_fog(images, side, amount, decay, draws.key, draws.indices, out)
    return out


@compiled
def _lay_fog(
    images: NDArray[np.uint8],
    side: int,
    amount: float,
    decay: float,
    key: NDArray[np.uint32],
    indices: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    count, height, width, channels = images.shape
    words = np.empty(max(side * side, BLOCK), np.uint32)
    plasma = np.empty((side, side))
    for i in range(count):
        fill_words(words, key, indices[i], 0, 0)
        _fill_plasma(plasma, decay, words)
        low, high = plasma.min(), plasma.max()
        thickness = amount / (high - low) if high > low else 0.0
        brightest = images[i].max() / 255.0
        share = 255.0 * brightest / (brightest + amount)
        for y in range(height):
            for x in range(width):
                veil = (plasma[y, x] - low) * thickness
                for c in range(channels):
                    value = (images[i, y, x, c] / 255.0 + veil) * share
                    out[i, y, x, c] = np.uint8(min(value, 255.0))


@compiled
def _fill_plasma(plasma: NDArray[np.float64], decay: float, words: NDArray[np.uint32]) -> None:
    """Fill a map by the diamond-square algorithm, periodic at its edges.

    Args:
        plasma: The map to fill, float64 (S, S), S a power of two.
        decay: Divisor of the roughness from one scale to the next finer one.
        words: Random bits, uint32 (S * S,), of which S * S - 1 are used.
    """
    size = len(plasma)
    plasma[0, 0] = 0.0
    step = size
    roughness = ROUGHNESS
    used = 0
    while step >= 2:
        half = step // 2
        # the generators multiply the roughness by a draw from plus or minus the roughness
        reach = 2.0 * roughness * roughness
        for y in range(0, size, step):
            upper, lower = plasma[y], plasma[(y + step) % size]
            middle = plasma[y + half]
            for x in range(0, size, step):
                right = (x + step) % size
                mean = (upper[x] + upper[right] + lower[x] + lower[right]) * 0.25
                middle[x + half] = mean + (uniform(words[used]) - 0.5) * reach
                used += 1
        for y in range(0, size, step):
            upper, lower = plasma[y], plasma[(y + step) % size]
            middle, before = plasma[y + half], plasma[(y - half) % size]
            for x in range(0, size, step):
                right, left = (x + step) % size, (x - half) % size
                centre = middle[x + half]
                mean = (centre + before[x + half] + upper[x] + upper[right]) * 0.25
                upper[x + half] = mean + (uniform(words[used]) - 0.5) * reach
                mean = (centre + middle[left] + upper[x] + lower[x]) * 0.25
                middle[x] = mean + (uniform(words[used + 1]) - 0.5) * reach
                used += 2
        step = half
        roughness /= decay
