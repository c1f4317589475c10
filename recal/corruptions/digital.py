"""Contrast, saturation, elastic transform, pixelation and JPEG compression.

Source: Hendrycks and Dietterich (arXiv 1903.12261) and their generators.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image

from recal.corruptions.blur import check_side
from recal.corruptions.random import Draws
from recal.kernels import I32, I64, U8, compiled

Resampling = tuple[I64, I32, I64, I32]
LEVELS = 256
CHANNELS = 3
FIXED_POINT = 22  # bits of a weight after the point in Pillow's resampling


def contrast(images: U8, _scale: float, _draws: Draws, factor: float) -> U8:
    """Move each channel's values towards its mean over the image, by `factor`."""
    out = np.empty_like(images)
    _scale_around_mean(images, factor, out)
    return out


@compiled
def _scale_around_mean(images: U8, factor: float, out: U8) -> None:
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


def saturate(images: U8, _scale: float, _draws: Draws, factor: float, offset: float) -> U8:
    """Map the saturation s of HSV to `factor` s + `offset`, clipped to [0, 1].

    A grey pixel has hue 0 in HSV, which is red: an offset colours it so.
    """
    out = np.empty_like(images)
    _saturate(images, factor, offset, out)
    return out


@compiled
def _saturate(images: U8, factor: float, offset: float, out: U8) -> None:
    # Saturated colours are often whole numbers, where truncation depends on the last bit of a sum:
    # the operations are those of scikit-image's HSV, one by one, to get the same bits.
    count, height, width, _ = images.shape
    for i in range(count):
        for y in range(height):
            for x in range(width):
                pixel, result = images[i, y, x], out[i, y, x]
                r, g, b = pixel[0] / 255.0, pixel[1] / 255.0, pixel[2] / 255.0
                hue, saturation, value = _to_hsv(r, g, b)
                saturation = min(max(saturation * factor + offset, 0.0), 1.0)
                r, g, b = _from_hsv(hue, saturation, value)
                result[0], result[1] = np.uint8(r * 255.0), np.uint8(g * 255.0)
                result[2] = np.uint8(b * 255.0)


@compiled
def _to_hsv(r: float, g: float, b: float) -> tuple[float, float, float]:
    value = max(r, g, b)
    spread = value - min(r, g, b)
    if spread == 0:
        return 0.0, 0.0, value
    if b == value:
        hue = 4.0 + (r - g) / spread
    elif g == value:
        hue = 2.0 + (b - r) / spread
    else:
        hue = (g - b) / spread
    return (hue / 6.0) % 1.0, spread / value, value


@compiled
def _from_hsv(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    sector = int(hue * 6.0)
    past = hue * 6.0 - sector
    low = value * (1.0 - saturation)
    falling = value * (1.0 - past * saturation)
    rising = value * (1.0 - (1.0 - past) * saturation)
    if sector == 1:
        return falling, value, low
    if sector == 2:
        return low, value, rising
    if sector == 3:
        return low, falling, value
    if sector == 4:
        return rising, low, value
    if sector == 5:
        return value, low, falling
    return value, rising, low


def pixelate(images: U8, _scale: float, _draws: Draws, factor: float) -> U8:
    """Shrink to `factor` of the size and enlarge again, both with Pillow's BOX filter."""
    height, width = images.shape[1:3]
    check_side(images, int(np.ceil(1 / factor)), "pixelate")
    shrink = (*_box(width, int(width * factor)), *_box(height, int(height * factor)))
    enlarge = (*_box(int(width * factor), width), *_box(int(height * factor), height))
    out = np.empty_like(images)
    _pixelate(images, shrink, enlarge, out)
    return out


@lru_cache(maxsize=64)
def _box(size: int, new_size: int) -> tuple[I64, I32]:
    """Return the weights by which Pillow's BOX filter resamples an axis, in fixed point.

    Returns:
        int64 (new_size,) with the first source position of each result, and int32 (new_size, k)
        with the weights from there on, in units of 2^-22, padded with zeros.
    """
    ratio = size / new_size
    width = max(ratio, 1.0)
    centres = (np.arange(new_size) + 0.5) * ratio
    starts = np.maximum((centres - width / 2 + 0.5).astype(np.int64), 0)
    stops = np.minimum((centres + width / 2 + 0.5).astype(np.int64), size)
    places = starts[:, None] + np.arange((stops - starts).max())
    distances = (places - centres[:, None] + 0.5) / width
    covered = (distances > -0.5) & (distances <= 0.5) & (places < stops[:, None])
    shares = covered / covered.sum(axis=1, keepdims=True)
    return starts, (0.5 + shares * 2**FIXED_POINT).astype(np.int32)


@compiled
def _pixelate(images: U8, shrink: Resampling, enlarge: Resampling, out: U8) -> None:
    height, width = images.shape[1:3]
    low, narrow = len(shrink[2]), len(shrink[0])
    # as in Pillow, columns first and bytes in between
    shorter_rows = np.empty((height, narrow, CHANNELS), np.uint8)
    small = np.empty((low, narrow, CHANNELS), np.uint8)
    longer_rows = np.empty((low, width, CHANNELS), np.uint8)
    for i in range(len(images)):
        _resample_rows(images[i], shrink[0], shrink[1], shorter_rows)
        _resample_columns(shorter_rows, shrink[2], shrink[3], small)
        _resample_rows(small, enlarge[0], enlarge[1], longer_rows)
        _resample_columns(longer_rows, enlarge[2], enlarge[3], out[i])


@compiled
def _resample_rows(image: U8, starts: I64, weights: I32, out: U8) -> None:
    for y in range(out.shape[0]):
        row = image[y]
        for x in range(out.shape[1]):
            red = green = blue = 1 << (FIXED_POINT - 1)
            for k in range(weights.shape[1]):
                weight = np.int64(weights[x, k])
                # a weight of zero may be beyond the end
                pixel = row[min(starts[x] + k, len(row) - 1)]
                red += pixel[0] * weight
                green += pixel[1] * weight
                blue += pixel[2] * weight
            out[y, x, 0] = red >> FIXED_POINT
            out[y, x, 1] = green >> FIXED_POINT
            out[y, x, 2] = blue >> FIXED_POINT


@compiled
def _resample_columns(image: U8, starts: I64, weights: I32, out: U8) -> None:
    size = out.shape[1] * out.shape[2]
    flat, result = image.reshape((len(image), size)), out.reshape((len(out), size))
    total = np.empty(size, np.int32)
    for y in range(len(out)):
        total[:] = np.int32(1 << (FIXED_POINT - 1))
        for k in range(weights.shape[1]):
            weight = weights[y, k]
            if weight != 0:
                row = flat[starts[y] + k]
                for j in range(size):
                    total[j] += np.int32(row[j]) * weight
        for j in range(size):
            result[y, j] = total[j] >> FIXED_POINT


def jpeg_compression(images: U8, _scale: float, _draws: Draws, quality: float) -> U8:
    """Encode and decode as JPEG of `quality`, with Pillow's own codec."""
    size = (images.shape[2], images.shape[1])
    out = np.empty_like(images)
    for image, result in zip(images, out, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=int(quality))
        # Image.open would read the header in Python first, and take longer than the codec
        result[:] = Image.frombytes("RGB", size, buffer.getvalue(), "jpeg", "RGB", "")
    return out
