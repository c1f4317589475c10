"""Gaussian, defocus, glass, zoom and motion blur.

Source: Hendrycks and Dietterich (arXiv 1903.12261) and their generators.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recal.corruptions.filters import add_shifted, gaussian_taps, pad, smooth
from recal.corruptions.random import BLOCK, Draws, fill_words, first_uniforms
from recal.errors import InputError
from recal.kernels import compiled


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

    The kernel is one side of a Gaussian, 2 radius + 1 wide, laid along a line of whole pixels;
    beyond an edge the edge's own values are repeated. ImageMagick rounds to 16 bits, and release
    6.9.11 truncates when it writes 8-bit files, half a level darker on average. This rounds to 8.

    Args:
        images: uint8 (N, H, W, C).
        angles: Direction of the motion in each image, in degrees, float64 (N,).
        radius: Radius of the kernel, in pixels.
        sigma: Standard deviation of the Gaussian, in pixels.

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


CHANNELS = 3
ZOOMABLE = 8  # a crop of an image with a shorter side might have one pixel
_SHORT = np.uint32(16)
_SHORT_MASK = np.uint32(0xFFFF)


def gaussian_blur(
    images: NDArray[np.uint8], scale: float, _draws: Draws, sigma: float
) -> NDArray[np.uint8]:
    """Smooth with a Gaussian of standard deviation `sigma` pixels, cut off at 4 sigma."""
    out = np.empty_like(images)
    _smooth_levels(images, gaussian_taps(scale * sigma), out)
    return out


@compiled
def _smooth_levels(
    images: NDArray[np.uint8], taps: NDArray[np.float64], out: NDArray[np.uint8]
) -> None:
    count, height, width, channels = images.shape
    row = width * channels
    image, smoothed = np.empty((height, row)), np.empty((height, row))
    scratch = np.empty(row + 2 * (taps.size - 1) * channels)
    for i in range(count):
        _smooth_image(images[i], taps, image, scratch, smoothed, out[i])


@compiled
def _smooth_image(
    levels: NDArray[np.uint8],
    taps: NDArray[np.float64],
    image: NDArray[np.float64],
    scratch: NDArray[np.float64],
    smoothed: NDArray[np.float64],
    out: NDArray[np.uint8],
) -> None:
    height, width, channels = levels.shape
    row = width * channels
    flat, result = levels.reshape((height, row)), out.reshape((height, row))
    for y in range(height):
        for j in range(row):
            image[y, j] = flat[y, j] / 255.0
    smooth(image, channels, taps, scratch, smoothed)
    for y in range(height):
        for j in range(row):
            # truncated, not rounded, as the generators do
            result[y, j] = np.uint8(min(max(smoothed[y, j], 0.0), 1.0) * 255.0)


def glass_blur(
    images: NDArray[np.uint8], scale: float, draws: Draws, sigma: float, reach: float, passes: float
) -> NDArray[np.uint8]:
    """Smooth, copy every pixel from a random neighbour `passes` times, smooth again.

    Args:
        images: uint8 (N, H, W, 3).
        scale: Factor applied to all lengths in pixels.
        draws: Key of the random draws and indices of the images.
        sigma: Standard deviation of both Gaussians, in pixels.
        reach: Largest distance of a neighbour: -reach to reach - 1 pixels along each axis.
        passes: Number of passes over the image, from the lower right to the upper left.
    """
    reach = max(1, round(scale * reach))
    if min(images.shape[1:3]) <= 2 * reach:
        raise too_small("glass_blur", images, 2 * reach + 1)
    taps = gaussian_taps(scale * sigma)
    out = np.empty_like(images)
    _shuffle(images, taps, reach, int(passes), draws.key, draws.indices, out)
    return out


@compiled
def _shuffle(
    images: NDArray[np.uint8],
    taps: NDArray[np.float64],
    reach: int,
    passes: int,
    key: NDArray[np.uint32],
    indices: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    count, height, width, channels = images.shape
    row = width * channels
    image, smoothed = np.empty((height, row)), np.empty((height, row))
    scratch = np.empty(row + 2 * (taps.size - 1) * channels)
    levels = np.empty((height, width, channels), np.uint8)
    words = np.empty(-(-height * width // BLOCK) * BLOCK, np.uint32)
    span = np.uint32(2 * reach)
    for i in range(count):
        _smooth_image(images[i], taps, image, scratch, smoothed, levels)
        for number in range(passes):
            fill_words(words, key, indices[i], number, 0)
            for y in range(height - reach, reach, -1):
                for x in range(width - reach, reach, -1):
                    word = words[y * width + x]
                    to_x = x - reach + np.int64((word & _SHORT_MASK) * span >> _SHORT)
                    to_y = y - reach + np.int64((word >> _SHORT) * span >> _SHORT)
                    # the generators try to swap, but assign through views of one array: the first
                    # pixel takes the second's values, and the second keeps its own
                    for c in range(channels):
                        levels[y, x, c] = levels[to_y, to_x, c]
        _smooth_image(levels, taps, image, scratch, smoothed, out[i])


class Taps(NamedTuple):
    """The entries of a kernel that are not zero.

    Attributes:
        rows: Distance of each entry below the pixel, int64 (T,).
        columns: Distance of each entry to the right of the pixel, int64 (T,).
        weights: Weight of each entry, float32 (T,).
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    weights: NDArray[np.float32]


def defocus_blur(
    images: NDArray[np.uint8], scale: float, _draws: Draws, radius: float, alias: float
) -> NDArray[np.uint8]:
    """Average over a disc of `radius` pixels whose rim is smoothed by `alias`."""
    taps = _disc_taps(scale * radius, scale * alias)
    margin = int(max(np.abs(taps.rows).max(), np.abs(taps.columns).max()))
    if min(images.shape[1:3]) <= margin:
        raise too_small("defocus_blur", images, margin + 1)
    out = np.empty_like(images)
    _filter_mirrored(images, margin, *taps, out)
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
    return Taps(rows - reach, columns - reach, disc[rows, columns])


@compiled
def _filter_mirrored(
    images: NDArray[np.uint8],
    margin: int,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    weights: NDArray[np.float32],
    out: NDArray[np.uint8],
) -> None:
    count, height, width, channels = images.shape
    padded = np.empty((height + 2 * margin, (width + 2 * margin) * channels), np.float32)
    total = np.empty((height, width * channels), np.float32)
    for i in range(count):
        pad(images[i], margin, True, padded)
        add_shifted(padded, rows + margin, (columns + margin) * channels, weights, total)
        result = out[i].reshape((height, width * channels))
        for y in range(height):
            for j in range(width * channels):
                result[y, j] = np.uint8(min(total[y, j], np.float32(255)))


def zoom_blur(
    images: NDArray[np.uint8], _scale: float, _draws: Draws, stop: float, step: float
) -> NDArray[np.uint8]:
    """Average the image with itself enlarged by 1, 1 + step ... below `stop`."""
    factors = np.arange(1, stop, step)
    if min(images.shape[1:3]) < ZOOMABLE:
        raise too_small("zoom_blur", images, ZOOMABLE)
    tables = [[zoom_places(side, factor) for factor in factors] for side in images.shape[1:3]]
    (rows, row_shares), (columns, column_shares) = (
        (np.stack([t[0] for t in axis]), np.stack([t[1] for t in axis])) for axis in tables
    )
    out = np.empty_like(images)
    _sum_zooms(images, rows, row_shares, columns * CHANNELS, column_shares, out)
    return out


def zoom_places(side: int, factor: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
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
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    row_shares: NDArray[np.float32],
    columns: NDArray[np.int64],
    column_shares: NDArray[np.float32],
    out: NDArray[np.uint8],
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


def too_small(name: str, images: NDArray[np.uint8], side: int) -> InputError:
    """Return the error to raise for images that are too small for a corruption."""
    height, width = images.shape[1:3]
    return InputError(
        f"{name}: expected images of at least {side}x{side} pixels at this severity, "
        f"got {width}x{height}."
    )
