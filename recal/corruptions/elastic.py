"""The elastic transform: a random affine map, then a smooth random displacement.

Source: Hendrycks and Dietterich (arXiv 1903.12261); Simard, Steinkraus and Platt, "Best practices
for convolutional neural networks applied to visual document analysis" (2003).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recal.corruptions.blur import too_small
from recal.corruptions.filters import gaussian_taps, mirror
from recal.corruptions.random import BLOCK, Draws, fill_words, uniform
from recal.kernels import compiled

if TYPE_CHECKING:
    _Level = np.uint8 | np.float32


POINTS = 3
TRUNCATE = 3.0


def elastic_transform(
    images: NDArray[np.uint8],
    scale: float,
    draws: Draws,
    strength: float,
    sigma: float,
    reach: float,
) -> NDArray[np.uint8]:
    """Apply a random affine map, then a small random displacement of every pixel.

    Args:
        images: uint8 (N, H, W, 3).
        scale: Factor applied to all lengths in pixels.
        draws: Key of the random draws and indices of the images.
        strength: Factor from smoothed noise of U(-1, 1) to displacements, in pixels.
        sigma: Standard deviation of the Gaussian that smooths the noise, in pixels; it is cut off
            at 3 sigma.
        reach: Largest move of the three points that define the affine map, in pixels.
    """
    height, width = images.shape[1:3]
    if min(height, width) < POINTS:
        raise too_small("elastic_transform", images, POINTS)
    maps = _affine_maps(draws, height, width, scale * reach)
    down, across = (_smoothing_band(side, scale * sigma) for side in (height, width))
    out = np.empty_like(images)
    _warp(images, maps, scale * strength, *down, *across, draws.key, draws.indices, out)
    return out


def _affine_maps(draws: Draws, height: int, width: int, reach: float) -> NDArray[np.float64]:
    """Return the affine map of each image, from target to source pixels, (N, 2, 3)."""
    centre = np.array([width, height]) // 2
    size = min(height, width) // POINTS
    points = centre + size * np.array([[1, 1], [1, -1], [-1, -1]])
    moves = np.empty((len(draws.indices), 2 * POINTS))
    _fill_uniforms(draws.key, draws.indices, 2, moves)
    moved = points + reach * (2 * moves.reshape(-1, POINTS, 2) - 1)
    ones = np.ones((len(moved), POINTS, 1))
    return np.ascontiguousarray(
        np.linalg.solve(
            np.concatenate([moved, ones], axis=2), points[None].astype(np.float64)
        ).transpose(0, 2, 1)
    )


@compiled
def _fill_uniforms(
    key: NDArray[np.uint32], indices: NDArray[np.int64], part: int, out: NDArray[np.float64]
) -> None:
    words = np.empty(-(-out.shape[1] // BLOCK) * BLOCK, np.uint32)
    for i in range(len(indices)):
        fill_words(words, key, indices[i], part, 0)
        for j in range(out.shape[1]):
            out[i, j] = uniform(words[j])


@lru_cache(maxsize=32)
def _smoothing_band(side: int, sigma: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the matrix of a Gaussian that mirrors at the edges, row by row without its zeros.

    The Gaussian may be wider than the image, and is then mirrored several times. As a matrix it
    costs no more than the image's side.

    Returns:
        int64 (side,) with the first column of each row, float32 (side, band) with its weights.
    """
    taps = gaussian_taps(sigma, TRUNCATE)
    radius = len(taps) - 1
    matrix = np.zeros((side, side))
    for offset in range(-radius, radius + 1):
        place = (np.arange(side) + offset) % (2 * side)
        place = np.where(place >= side, 2 * side - 1 - place, place)
        matrix[np.arange(side), place] += taps[abs(offset)]
    band = min(side, 2 * radius + 1)
    starts = np.clip(np.arange(side) - radius, 0, side - band)
    columns = starts[:, None] + np.arange(band)
    return starts, np.take_along_axis(matrix, columns, axis=1).astype(np.float32)


@compiled
def _warp(
    images: NDArray[np.uint8],
    maps: NDArray[np.float64],
    strength: float,
    row_starts: NDArray[np.int64],
    row_bands: NDArray[np.float32],
    column_starts: NDArray[np.int64],
    column_bands: NDArray[np.float32],
    key: NDArray[np.uint32],
    indices: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    count, height, width, channels = images.shape
    turned = np.empty((height, width, channels), np.float32)
    noise, half = np.empty((width, height), np.float32), np.empty((width, height), np.float32)
    half_upright = np.empty((height, width), np.float32)
    fields = np.zeros((2, height, width), np.float32)
    flat = noise.reshape(noise.size)
    words = np.empty(-(-noise.size // BLOCK) * BLOCK, np.uint32)
    for i in range(count):
        _map_affine(images[i], maps[i], turned)
        # the first severity for small images has only the affine map
        for axis in range(2 if strength > 0 else 0):
            fill_words(words, key, indices[i], axis, 0)
            for j in range(flat.size):
                flat[j] = strength * (2.0 * uniform(words[j]) - 1.0)
            _smooth_columns(noise, column_starts, column_bands, half)
            for y in range(height):
                for x in range(width):
                    half_upright[y, x] = half[x, y]
            _smooth_columns(half_upright, row_starts, row_bands, fields[axis])
        _displace(turned, fields[0], fields[1], out[i])


@compiled
def _smooth_columns(
    values: NDArray[np.float32],
    starts: NDArray[np.int64],
    bands: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Multiply a banded matrix by `values`, float32 (A, B), along the first axis."""
    for y in range(len(starts)):
        result = out[y]
        result[:] = np.float32(0)
        for k in range(bands.shape[1]):
            row, weight = values[starts[y] + k], bands[y, k]
            for x in range(values.shape[1]):
                result[x] += row[x] * weight


@compiled
def _map_affine(
    image: NDArray[np.uint8], affine: NDArray[np.float64], out: NDArray[np.float32]
) -> None:
    """Sample an image linearly under an affine map, mirrored at the edges (`cb|abcd|cb`)."""
    height, width, channels = image.shape
    for y in range(height):
        for x in range(width):
            from_x = affine[0, 0] * x + affine[0, 1] * y + affine[0, 2]
            from_y = affine[1, 0] * x + affine[1, 1] * y + affine[1, 2]
            left, top = int(np.floor(from_x)), int(np.floor(from_y))
            right_share, low_share = np.float32(from_x - left), np.float32(from_y - top)
            upper, lower = image[mirror(top, height)], image[mirror(top + 1, height)]
            left, right = mirror(left, width), mirror(left + 1, width)
            for c in range(channels):
                out[y, x, c] = _between(
                    _between(upper[left, c], upper[right, c], right_share),
                    _between(lower[left, c], lower[right, c], right_share),
                    low_share,
                )


@compiled
def _displace(
    image: NDArray[np.float32],
    move_x: NDArray[np.float32],
    move_y: NDArray[np.float32],
    out: NDArray[np.uint8],
) -> None:
    """Sample an image linearly at displaced pixels, mirrored with the edge (`ba|abcd|dc`)."""
    height, width, channels = image.shape
    for y in range(height):
        for x in range(width):
            from_x, from_y = x + move_x[y, x], y + move_y[y, x]
            left, top = int(np.floor(from_x)), int(np.floor(from_y))
            right_share, low_share = np.float32(from_x - left), np.float32(from_y - top)
            upper, lower = image[_fold(top, height)], image[_fold(top + 1, height)]
            left, right = _fold(left, width), _fold(left + 1, width)
            for c in range(channels):
                value = _between(
                    _between(upper[left, c], upper[right, c], right_share),
                    _between(lower[left, c], lower[right, c], right_share),
                    low_share,
                )
                out[y, x, c] = np.uint8(min(value, np.float32(255)))


@compiled
def _between(first: _Level, second: _Level, share: np.float32) -> np.float32:
    return (np.float32(1) - share) * np.float32(first) + share * np.float32(second)


@compiled
def _fold(place: int, size: int) -> int:
    if 0 <= place < size:
        return place
    place %= 2 * size
    return 2 * size - 1 - place if place >= size else place
