"""Gaussian, defocus, glass, zoom and motion blur.

Source: Hendrycks and Dietterich (arXiv 1903.12261) and their generators.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from recal.corruptions.filters import add_shifted, gaussian_taps, pad, smooth
from recal.corruptions.random import Draws, random_words, uniforms
from recal.errors import InputError
from recal.kernels import F32, F64, I64, U8, compiled

CHANNELS = 3
ZOOMABLE = 8  # a crop of an image with a shorter side might have one pixel
_SHORT = np.uint32(16)
_SHORT_MASK = np.uint32(0xFFFF)


class Taps(NamedTuple):
    """The entries of a kernel that are not zero.

    Attributes:
        rows: Distance of each entry below the pixel, int64 (N, T), or (1, T) for all images.
        columns: Distance of each entry to the right of the pixel, of the same shape.
        weights: Weight of each entry, float32 (T,).
    """

    rows: I64
    columns: I64
    weights: F32


def motion_blur(images: U8, scale: float, draws: Draws, radius: float, sigma: float) -> U8:
    """Smear each image towards one side, at an angle drawn from U(-45, 45) degrees."""
    angles = 90 * uniforms(draws, 1)[:, 0] - 45
    return smear(images, angles, max(1, round(scale * radius)), scale * sigma)


def smear(images: U8, angles: F64, radius: int, sigma: float) -> U8:
    """Motion-blur as ImageMagick does, rounding to 8 bits.

    The kernel is one side of a Gaussian, 2 radius + 1 wide, laid along a line of whole pixels;
    beyond an edge the edge's own values are repeated. ImageMagick rounds to 16 bits, and release
    6.9.11 truncates when it writes 8-bit files, half a level darker on average.

    Args:
        images: uint8 (N, H, W, C).
        angles: Direction of the motion in each image, in degrees, float64 (N,).
        radius: Radius of the kernel, in pixels.
        sigma: Standard deviation of the Gaussian, in pixels.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    turns = np.deg2rad(angles)[:, None]
    columns = np.ceil(steps * np.cos(turns) - 0.5).astype(np.int64)
    rows = np.ceil(steps * np.sin(turns) - 0.5).astype(np.int64)
    out = np.empty_like(images)
    _filter(images, Taps(rows, columns, weights), weights.size, False, np.float32(0.5), out)
    return out


@compiled
def _filter(
    images: U8, taps: Taps, margin: int, mirrored: bool, rounding: np.float32, out: U8
) -> None:
    """Sum the shifted copies of each image, surrounded by a margin as `pad` does it.

    `rounding` is added before the sum is truncated to a level.
    """
    count, height, width, channels = images.shape
    padded = np.empty((height + 2 * margin, (width + 2 * margin) * channels), np.float32)
    total = np.empty((height, width * channels), np.float32)
    for i in range(count):
        rows, columns = taps.rows[i % len(taps.rows)], taps.columns[i % len(taps.rows)]
        pad(images[i], margin, mirrored, padded)
        add_shifted(padded, rows + margin, (columns + margin) * channels, taps.weights, total)
        result = out[i].reshape((height, width * channels))
        for y in range(height):
            for j in range(width * channels):
                result[y, j] = np.uint8(min(total[y, j] + rounding, np.float32(255)))


def gaussian_blur(images: U8, scale: float, _draws: Draws, sigma: float) -> U8:
    """Smooth with a Gaussian of standard deviation `sigma` pixels, cut off at 4 sigma."""
    out = np.empty_like(images)
    _smooth_levels(images, gaussian_taps(scale * sigma), out)
    return out


@compiled
def _smooth_levels(images: U8, taps: F64, out: U8) -> None:
    count, height, width, channels = images.shape
    image = np.empty((height, width * channels))
    smoothed = np.empty_like(image)
    for i in range(count):
        _smooth_image(images[i], taps, image, smoothed, out[i])


@compiled
def _smooth_image(levels: U8, taps: F64, image: F64, smoothed: F64, out: U8) -> None:
    flat, result = levels.reshape(image.shape), out.reshape(image.shape)
    for y in range(len(image)):
        for j in range(image.shape[1]):
            image[y, j] = flat[y, j] / 255.0
    smooth(image, levels.shape[2], taps, smoothed)
    for y in range(len(image)):
        for j in range(image.shape[1]):
            # truncated, not rounded, as the generators do
            result[y, j] = np.uint8(min(max(smoothed[y, j], 0.0), 1.0) * 255.0)


def glass_blur(
    images: U8, scale: float, draws: Draws, sigma: float, reach: float, passes: float
) -> U8:
    """Smooth, copy every pixel from a random neighbour `passes` times, smooth again.

    Both Gaussians have standard deviation `sigma` pixels. A neighbour is -reach to reach - 1 pixels
    away along each axis. Each pass goes from the lower right to the upper left.
    """
    reach = max(1, round(scale * reach))
    check_side(images, 2 * reach + 1, "glass_blur")
    out = np.empty_like(images)
    _shuffle(images, gaussian_taps(scale * sigma), reach, int(passes), draws, out)
    return out


@compiled
def _shuffle(images: U8, taps: F64, reach: int, passes: int, draws: Draws, out: U8) -> None:
    count, height, width, channels = images.shape
    image = np.empty((height, width * channels))
    smoothed = np.empty_like(image)
    levels = np.empty((height, width, channels), np.uint8)
    span = np.uint32(2 * reach)
    for i in range(count):
        _smooth_image(images[i], taps, image, smoothed, levels)
        for number in range(passes):
            words = random_words(height * width, draws, i, number)
            for y in range(height - reach, reach, -1):
                for x in range(width - reach, reach, -1):
                    word = words[y * width + x]
                    to_x = x - reach + np.int64((word & _SHORT_MASK) * span >> _SHORT)
                    to_y = y - reach + np.int64((word >> _SHORT) * span >> _SHORT)
                    # the generators try to swap, but assign through views of one array: the first
                    # pixel takes the second's values, and the second keeps its own
                    for c in range(channels):
                        levels[y, x, c] = levels[to_y, to_x, c]
        _smooth_image(levels, taps, image, smoothed, out[i])


def defocus_blur(images: U8, scale: float, _draws: Draws, radius: float, alias: float) -> U8:
    """Average over a disc of `radius` pixels whose rim is smoothed by `alias`."""
    taps = _disc_taps(scale * radius, scale * alias)
    margin = int(max(np.abs(taps.rows).max(), np.abs(taps.columns).max()))
    check_side(images, margin + 1, "defocus_blur")
    out = np.empty_like(images)
    _filter(images, taps, margin, True, np.float32(0), out)
    return out


@lru_cache(maxsize=64)
def _disc_taps(radius: float, alias: float) -> Taps:
    import cv2

    reach = 8 if radius <= 8 else int(np.ceil(radius))
    window = (3, 3) if radius <= 8 else (5, 5)
    squares = np.arange(-reach, reach + 1) ** 2
    disc = (squares[:, None] + squares <= radius**2).astype(np.float32)
    # at the edge of the array OpenCV mirrors, so that a disc that touches it is no convolution
    disc = cv2.GaussianBlur(disc / disc.sum(), window, alias)
    rows, columns = np.nonzero(disc > 1e-9 * disc.max())
    return Taps(rows[None] - reach, columns[None] - reach, disc[rows, columns])


def zoom_blur(images: U8, _scale: float, _draws: Draws, stop: float, step: float) -> U8:
    """Average the image with itself enlarged by 1, 1 + step ... below `stop`."""
    check_side(images, ZOOMABLE, "zoom_blur")
    factors = np.arange(1, stop, step)
    (rows, row_shares), (columns, column_shares) = (
        map(np.stack, zip(*(zoom_places(side, factor) for factor in factors), strict=True))
        for side in images.shape[1:3]
    )
    out = np.empty_like(images)
    _sum_zooms(images, rows, row_shares, columns * CHANNELS, column_shares, out)
    return out


def zoom_places(side: int, factor: float) -> tuple[I64, F32]:
    """Return the source positions of the pixels of an enlarged and cropped axis.

    The crop is ceil(side / factor) long and its ends map to the ends of the enlarged axis, as in
    SciPy's `zoom` of order 1; only the middle is kept.

    Returns:
        int64 (side,) with the left one of two neighbours, and float32 (side,) with the weight of
        the right one.
    """
    crop = int(np.ceil(side / factor))
    enlarged = round(crop * factor)
    kept = np.arange(side) + (enlarged - side) // 2
    places = kept * ((crop - 1) / (enlarged - 1))
    left = np.minimum(places.astype(np.int64), crop - 2)
    return left + (side - crop) // 2, (places - left).astype(np.float32)


@compiled
def _sum_zooms(
    images: U8, rows: I64, row_shares: F32, columns: I64, column_shares: F32, out: U8
) -> None:
    count, height, width, channels = images.shape
    size = width * channels
    one, divisor = np.float32(1), np.float32(len(rows) + 1)
    row, total = np.empty(size, np.float32), np.empty(size, np.float32)
    for i in range(count):
        image, result = images[i].reshape((height, size)), out[i].reshape((height, size))
        for y in range(height):
            source = image[y]
            for j in range(size):
                total[j] = source[j]
            for f in range(len(rows)):
                upper, lower = image[rows[f, y]], image[rows[f, y] + 1]
                share = row_shares[f, y]
                for j in range(size):
                    row[j] = (one - share) * upper[j] + share * lower[j]
                places, shares = columns[f], column_shares[f]
                for x in range(width):
                    place, share = places[x], shares[x]
                    for c in range(channels):
                        left, right = row[place + c], row[place + channels + c]
                        total[x * channels + c] += (one - share) * left + share * right
            for j in range(size):
                result[y, j] = np.uint8(min(total[j] / divisor, np.float32(255)))


def check_side(images: U8, least: int, name: str) -> None:
    """Raise InputError if the images are too small for the corruption of this name."""
    height, width = images.shape[1:3]
    if min(height, width) < least:
        raise InputError(
            f"{name}: expected images of at least {least}x{least} pixels at this severity, "
            f"got {width}x{height}."
        )
