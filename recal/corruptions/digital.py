"""Contrast, saturation, elastic transform, pixelation and JPEG compression.

Source: Hendrycks and Dietterich (arXiv 1903.12261) and their generators.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from recal.corruptions.blur import too_small
from recal.corruptions.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recal.corruptions.streams import Draws

LEVELS = 256


def contrast(
    images: NDArray[np.uint8], _scale: float, _draws: Draws, factor: float
) -> NDArray[np.uint8]:
    """Move each channel's values towards its mean over the image, by `factor`."""
    out = np.empty_like(images)
    _scale_around_mean(images, factor, out)
    return out


@compiled
def _scale_around_mean(images: NDArray[np.uint8], factor: float, out: NDArray[np.uint8]) -> None:
    count, height, width, channels = images.shape
    sums = np.zeros(channels, np.int64)
    table = np.empty((channels, LEVELS), np.uint8)
    for i in range(count):
        sums[:] = 0
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    sums[c] += images[i, y, x, c]
        for c in range(channels):
            mean = sums[c] / (height * width) / 255.0
            for level in range(LEVELS):
                value = (level / 255.0 - mean) * factor + mean
                table[c, level] = np.uint8(min(max(value, 0.0), 1.0) * 255.0)
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    out[i, y, x, c] = table[c, images[i, y, x, c]]


def saturate(
    images: NDArray[np.uint8], _scale: float, _draws: Draws, factor: float, offset: float
) -> NDArray[np.uint8]:
    """Map the saturation s of HSV to `factor` s + `offset`, clipped to [0, 1].

    A grey pixel has hue 0 in HSV, which is red: an offset colours it so.
    """
    out = np.empty_like(images)
    _saturate(images, factor, offset, out)
    return out


@compiled
def _saturate(
    images: NDArray[np.uint8], factor: float, offset: float, out: NDArray[np.uint8]
) -> None:
    # With s' the new saturation, a value c between the smallest m and the largest M of its pixel
    # becomes M - (M - c) s' M / (M - m). The generators' result is truncated; theirs is in floating
    # point, where a whole number may come out a hair too small or too large.
    stretch = np.zeros((LEVELS, LEVELS))
    for largest in range(1, LEVELS):
        for smallest in range(largest):
            saturation = (largest - smallest) / largest * factor + offset
            saturation = min(max(saturation, 0.0), 1.0)
            stretch[largest, smallest] = saturation * largest / (largest - smallest)
    grey = min(max(offset, 0.0), 1.0)
    count, height, width, _ = images.shape
    for i in range(count):
        for y in range(height):
            for x in range(width):
                r, g, b = images[i, y, x, 0], images[i, y, x, 1], images[i, y, x, 2]
                largest, smallest = max(r, g, b), min(r, g, b)
                if largest == smallest:
                    out[i, y, x, 0] = r
                    out[i, y, x, 1] = out[i, y, x, 2] = np.uint8(r * (1.0 - grey))
                else:
                    k = stretch[largest, smallest]
                    out[i, y, x, 0] = np.uint8(largest - k * (largest - r) + 1e-9)
                    out[i, y, x, 1] = np.uint8(largest - k * (largest - g) + 1e-9)
                    out[i, y, x, 2] = np.uint8(largest - k * (largest - b) + 1e-9)


def pixelate(
    images: NDArray[np.uint8], _scale: float, _draws: Draws, factor: float
) -> NDArray[np.uint8]:
    """Shrink to `factor` of the size and enlarge again, both with Pillow's BOX filter."""
    height, width = images.shape[1:3]
    if int(min(height, width) * factor) < 1:
        raise too_small("pixelate", images, int(np.ceil(1 / factor)))
    small = (int(width * factor), int(height * factor))
    out = np.empty_like(images)
    for image, result in zip(images, out, strict=True):
        shrunk = Image.fromarray(image).resize(small, Image.Resampling.BOX)
        result[:] = shrunk.resize((width, height), Image.Resampling.BOX)
    return out


def jpeg_compression(
    images: NDArray[np.uint8], _scale: float, _draws: Draws, quality: float
) -> NDArray[np.uint8]:
    """Encode and decode as JPEG of `quality`, with Pillow's own codec."""
    out = np.empty_like(images)
    for image, result in zip(images, out, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=int(quality))
        with Image.open(buffer) as decoded:
            result[:] = decoded
    return out
