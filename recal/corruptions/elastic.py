"""The elastic transform: a random affine map, then a smooth random displacement.

Source: Hendrycks and Dietterich (arXiv 1903.12261); Simard, Steinkraus and Platt, "Best practices
for convolutional neural networks applied to visual document analysis" (2003).
"""

from functools import lru_cache

import numpy as np

from recal.corruptions.blur import check_side
from recal.corruptions.filters import gaussian_taps, mirror
from recal.corruptions.random import Draws, random_words, uniform, uniforms
from recal.kernels import F32, F64, I64, U8, compiled

Level = np.uint8 | np.float32
Band = tuple[I64, F32]
POINTS = 3
TRUNCATE = 3.0


def elastic_transform(
    images: U8, scale: float, draws: Draws, strength: float, sigma: float, reach: float
) -> U8:
    """Apply a random affine map, then a small random displacement of every pixel.

    The displacements, in pixels, are noise of U(-1, 1) times `strength`, smoothed by a Gaussian of
    `sigma` pixels that is cut off at 3 sigma. The three points that define the affine map move by
    at most `reach` pixels.
    """
    height, width = images.shape[1:3]
    check_side(images, POINTS, "elastic_transform")
    maps = _affine_maps(draws, height, width, scale * reach)
    down, across = (_smoothing_band(side, scale * sigma) for side in (height, width))
    out = np.empty_like(images)
    _warp(images, maps, scale * strength, down, across, draws, out)
    return out


def _affine_maps(draws: Draws, height: int, width: int, reach: float) -> F64:
    """Return the affine map of each image, from target to source pixels, (N, 2, 3)."""
    centre = np.array([width, height]) // 2
    size = min(height, width) // POINTS
    points = centre + size * np.array([[1, 1], [1, -1], [-1, -1]])
    moves = uniforms(draws, 2 * POINTS, 2).reshape(-1, POINTS, 2)
    moved = points + reach * (2 * moves - 1)
    corners = np.concatenate([moved, np.ones((len(moved), POINTS, 1))], axis=2)
    maps = np.linalg.solve(corners, points[None].astype(np.float64))
    return np.ascontiguousarray(maps.transpose(0, 2, 1))


@lru_cache(maxsize=32)
def _smoothing_band(side: int, sigma: float) -> Band:
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
    images: U8, maps: F64, strength: float, down: Band, across: Band, draws: Draws, out: U8
) -> None:
    count, height, width, channels = images.shape
    turned = np.empty((height, width, channels), np.float32)
    noise, half = np.empty((width, height), np.float32), np.empty((width, height), np.float32)
    half_upright = np.empty((height, width), np.float32)
    fields = np.zeros((2, height, width), np.float32)
    flat = noise.reshape(noise.size)
    for i in range(count):
        _map_affine(images[i], maps[i], turned)
        # the first severity for small images has only the affine map
        for axis in range(2 if strength > 0 else 0):
            words = random_words(noise.size, draws, i, axis)
            for j in range(flat.size):
                flat[j] = strength * (2.0 * uniform(words[j]) - 1.0)
            _smooth_columns(noise, across, half)
            for y in range(height):
                for x in range(width):
                    half_upright[y, x] = half[x, y]
            _smooth_columns(half_upright, down, fields[axis])
        _displace(turned, fields[0], fields[1], out[i])


@compiled
def _smooth_columns(values: F32, band: Band, out: F32) -> None:
    """Multiply a banded matrix by `values`, float32 (A, B), along the first axis."""
    starts, weights = band
    for y in range(len(starts)):
        result = out[y]
        result[:] = np.float32(0)
        for k in range(weights.shape[1]):
            row, weight = values[starts[y] + k], weights[y, k]
            for x in range(values.shape[1]):
                result[x] += row[x] * weight


@compiled
def _map_affine(image: U8, affine: F64, out: F32) -> None:
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
def _displace(image: F32, move_x: F32, move_y: F32, out: U8) -> None:
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
def _between(first: Level, second: Level, share: np.float32) -> np.float32:
    return (np.float32(1) - share) * np.float32(first) + share * np.float32(second)


@compiled
def _fold(place: int, size: int) -> int:
    if 0 <= place < size:
        return place
    place %= 2 * size
    return 2 * size - 1 - place if place >= size else place
