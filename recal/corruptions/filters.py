"""Linear filters over one image: sums of shifted copies, and symmetric separable smoothing.

All work on rows of W * C values, channels side by side, so that the innermost loop is contiguous.
"""

import numpy as np

from recal.kernels import F32, F64, I64, U8, compiled


def gaussian_taps(sigma: float, truncate: float = 4.0) -> F64:
    """Return the weights of a sampled normal density, from the middle outwards, float64 (r + 1,).

    Args:
        sigma: Standard deviation in pixels; 0 gives the identity.
        truncate: Number of deviations after which to cut off, r = round(truncate * sigma).
    """
    if sigma == 0:
        return np.ones(1)
    radius = int(truncate * sigma + 0.5)
    weights = np.exp(-0.5 / sigma**2 * np.arange(-radius, radius + 1) ** 2)
    one_side: F64 = (weights / weights.sum())[radius:]
    return one_side


@compiled
def smooth(image: F64, channels: int, taps: F64, out: F64) -> None:
    """Smooth along both axes with symmetric weights; beyond an edge its values are repeated.

    The sums are taken in the order of SciPy's `gaussian_filter`, outermost pair first, which gives
    its result to the last bit.

    Args:
        image: float64 (H, W * channels).
        channels: Number of values per pixel.
        taps: Weights from the middle outwards, float64 (r + 1,).
        out: Result, float64 (H, W * channels); it may share `image`'s memory only if r is 0.
    """
    height, width = image.shape
    radius = taps.size - 1
    margin = radius * channels
    scratch = np.empty(width + 2 * margin)
    middle = scratch[margin : margin + width]
    for y in range(height):
        row = image[y]
        for j in range(width):
            middle[j] = row[j] * taps[0]
        for k in range(radius, 0, -1):
            above, below = image[max(y - k, 0)], image[min(y + k, height - 1)]
            tap = taps[k]
            for j in range(width):
                middle[j] += (above[j] + below[j]) * tap
        for k in range(radius):
            for c in range(channels):
                scratch[k * channels + c] = middle[c]
                scratch[margin + width + k * channels + c] = middle[width - channels + c]
        result = out[y]
        for j in range(width):
            result[j] = middle[j] * taps[0]
        for k in range(radius, 0, -1):
            start = margin - k * channels
            left = scratch[start : start + width]
            start = margin + k * channels
            right = scratch[start : start + width]
            tap = taps[k]
            for j in range(width):
                result[j] += (left[j] + right[j]) * tap


@compiled
def add_shifted(padded: F32, rows: I64, columns: I64, weights: F32, out: F32) -> None:
    """Sum weighted copies of an image, each shifted.

    Args:
        padded: Image with margins, float32 (H + margins, (W + margins) * C).
        rows: First row of each copy in `padded`, int64 (T,).
        columns: First value of each copy in a row, a multiple of C, int64 (T,).
        weights: Weight of each copy, float32 (T,).
        out: Result, float32 (H, W * C).
    """
    height, width = out.shape
    fours = weights.size - weights.size % 4
    for y in range(height):
        result = out[y]
        result[:] = np.float32(0)
        # four at a time, so that the sum is loaded and stored a quarter as often
        for t in range(0, fours, 4):
            first = padded[y + rows[t], columns[t] : columns[t] + width]
            second = padded[y + rows[t + 1], columns[t + 1] : columns[t + 1] + width]
            third = padded[y + rows[t + 2], columns[t + 2] : columns[t + 2] + width]
            fourth = padded[y + rows[t + 3], columns[t + 3] : columns[t + 3] + width]
            a, b, c, d = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
            for j in range(width):
                result[j] += (first[j] * a + second[j] * b) + (third[j] * c + fourth[j] * d)
        for t in range(fours, weights.size):
            source, weight = padded[y + rows[t], columns[t] : columns[t] + width], weights[t]
            for j in range(width):
                result[j] += source[j] * weight


@compiled
def pad(image: U8, margin: int, mirrored: bool, padded: F32) -> None:
    """Surround an image by a margin, mirrored without the edge or filled with the edge's values.

    The result is float32 (H + 2 margin, (W + 2 margin) C).
    """
    height, width, channels = image.shape
    for y in range(-margin, height + margin):
        row = image[mirror(y, height) if mirrored else clamp(y, height)]
        target = padded[y + margin]
        for x in range(-margin, width + margin):
            source = mirror(x, width) if mirrored else clamp(x, width)
            for c in range(channels):
                target[(x + margin) * channels + c] = row[source, c]


@compiled
def mirror(place: int, size: int) -> int:
    """Return the index inside that mirrors one outside, without the edge (`dcb|abcd|cba`)."""
    if 0 <= place < size:
        return place
    period = 2 * (size - 1)
    place = abs(place) % period
    return period - place if place >= size else place


@compiled
def clamp(place: int, size: int) -> int:
    """Return the nearest index inside."""
    return min(max(place, 0), size - 1)
