"""Snow, brightness and spatter; fog and frost have modules of their own.

Source: Hendrycks and Dietterich (arXiv 1903.12261) and their generators.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from recal.corruptions.blur import ZOOMABLE, smear, too_small, zoom_places
from recal.corruptions.filters import gaussian_taps, smooth
from recal.corruptions.random import BLOCK, Draws, fill_words, first_uniforms, normal, uniform
from recal.kernels import compiled

LEVELS = 256
WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)


def snow(
    images: NDArray[np.uint8],
    scale: float,
    draws: Draws,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    kept: float,
) -> NDArray[np.uint8]:
    """Whiten each image and add flakes, blurred by motion at an angle of U(-135, -45) degrees.

    Args:
        images: uint8 (N, H, W, 3).
        scale: Factor applied to all lengths in pixels.
        draws: Key of the random draws and indices of the images.
        mean: Mean of the normal noise that the flakes are cut from.
        deviation: Standard deviation of that noise.
        zoom: Factor by which the noise is enlarged.
        threshold: Level of the noise below which there is no flake.
        radius: Radius of the flakes' motion blur, in pixels.
        sigma: Standard deviation of the flakes' motion blur, in pixels.
        kept: Weight of the image that is not whitened.
    """
    if min(images.shape[1:3]) < ZOOMABLE:
        raise too_small("snow", images, ZOOMABLE)
    (rows, row_shares), (columns, column_shares) = (
        zoom_places(side, zoom) for side in images.shape[1:3]
    )
    flakes = np.empty((*images.shape[:3], 1), np.uint8)
    # a zoom uses only the middle of the noise, so that only this is drawn
    places = (rows - rows[0], row_shares, columns - columns[0], column_shares)
    _draw_flakes(flakes, *places, mean, deviation, threshold, draws.key, draws.indices)
    angles = 90 * first_uniforms(draws, part=1) - 135
    blown = smear(flakes, angles, max(1, round(scale * radius)), scale * sigma)
    out = np.empty_like(images)
    _lay_snow(images, blown, np.float32(kept), out)
    return out


@compiled
def _draw_flakes(
    flakes: NDArray[np.uint8],
    rows: NDArray[np.int64],
    row_shares: NDArray[np.float32],
    columns: NDArray[np.int64],
    column_shares: NDArray[np.float32],
    mean: float,
    deviation: float,
    threshold: float,
    key: NDArray[np.uint32],
    indices: NDArray[np.int64],
) -> None:
    count, height, width, _ = flakes.shape
    noise = np.empty((rows[-1] + 2, columns[-1] + 2))
    flat = noise.reshape(noise.size)
    words = np.empty(-(-noise.size // BLOCK) * BLOCK, np.uint32)
    for i in range(count):
        fill_words(words, key, indices[i], 0, 0)
        for j in range(flat.size):
            flat[j] = mean + deviation * normal(uniform(words[j]))
        for y in range(height):
            upper, lower, down = noise[rows[y]], noise[rows[y] + 1], row_shares[y]
            for x in range(width):
                left, right = columns[x], column_shares[x]
                above = (1 - right) * upper[left] + right * upper[left + 1]
                below = (1 - right) * lower[left] + right * lower[left + 1]
                value = (1 - down) * above + down * below
                value = 0.0 if value < threshold else min(max(value, 0.0), 1.0)
                flakes[i, y, x, 0] = np.uint8(value * 255.0)


@compiled
def _lay_snow(
    images: NDArray[np.uint8], flakes: NDArray[np.uint8], kept: np.float32, out: NDArray[np.uint8]
) -> None:
    red, green, blue = np.float32(0.299), np.float32(0.587), np.float32(0.114)
    one_and_a_half, half_white, white = np.float32(1.5), np.float32(127.5), np.float32(255)
    whitened = np.float32(1) - kept
    count, height, width, channels = images.shape
    for i in range(count):
        for y in range(height):
            for x in range(width):
                pixel = images[i, y, x]
                grey = red * pixel[0] + green * pixel[1] + blue * pixel[2]
                bright = grey * one_and_a_half + half_white
                # the same flakes once more, rotated by half a circle
                fallen = np.float32(flakes[i, y, x, 0])
                fallen += np.float32(flakes[i, height - 1 - y, width - 1 - x, 0])
                for c in range(channels):
                    value = np.float32(pixel[c])
                    value = kept * value + whitened * max(value, bright) + fallen
                    out[i, y, x, c] = np.uint8(min(value, white))


def brightness(
    images: NDArray[np.uint8], _scale: float, _draws: Draws, amount: float
) -> NDArray[np.uint8]:
    """Add `amount` to the value of HSV, clipped to 1."""
    out = np.empty_like(images)
    _look_up_by_largest(images, _brightness_table(amount), out)
    return out


@lru_cache(maxsize=16)
def _brightness_table(amount: float) -> NDArray[np.uint8]:
    """Return the new level of each level c in a pixel of maximum m, uint8 (256 for m, 256 for c).

    Hue and saturation are unchanged: a pixel's values keep their ratios. Black becomes grey.
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


def spatter(
    images: NDArray[np.uint8],
    scale: float,
    draws: Draws,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: float,
) -> NDArray[np.uint8]:
    """Splash water, or mud, on each image.

    Args:
        images: uint8 (N, H, W, 3).
        scale: Factor applied to all lengths in pixels.
        draws: Key of the random draws and indices of the images.
        mean: Mean of the normal noise that the drops are cut from.
        deviation: Standard deviation of that noise, before it is smoothed.
        sigma: Standard deviation of the Gaussian that smooths the noise, in pixels.
        threshold: Level of the noise below which there is no drop.
        strength: Brightness of the water's light; for mud, the standard deviation of the Gaussian
            that smooths the drops' rims, in pixels.
        mud: 0 for water, 1 for mud.
    """
    liquid = np.empty(images.shape[:3])
    taps = gaussian_taps(scale * sigma)
    _draw_liquid(liquid, mean, deviation, taps, draws.key, draws.indices)
    out = np.empty_like(images)
    if mud:
        _throw_mud(images, liquid, threshold, gaussian_taps(scale * strength), np.array(MUD), out)
        return out
    for image, layer, result in zip(images, liquid, out, strict=True):
        light = _water_light(np.where(layer < threshold, 0, layer)) * np.float32(strength)
        value = image + light[..., None] * (255 * np.array(WATER, np.float32))
        result[:] = np.minimum(value, 255)
    return out


@compiled
def _draw_liquid(
    liquid: NDArray[np.float64],
    mean: float,
    deviation: float,
    taps: NDArray[np.float64],
    key: NDArray[np.uint32],
    indices: NDArray[np.int64],
) -> None:
    count, height, width = liquid.shape
    noise = np.empty((height, width))
    flat = noise.reshape(noise.size)
    words = np.empty(-(-noise.size // BLOCK) * BLOCK, np.uint32)
    scratch = np.empty(width + 2 * (taps.size - 1))
    for i in range(count):
        fill_words(words, key, indices[i], 0, 0)
        for j in range(flat.size):
            flat[j] = mean + deviation * normal(uniform(words[j]))
        smooth(noise, 1, taps, scratch, liquid[i])


def _water_light(layer: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the light that the drops reflect, float32 (H, W), at most 1.

    It calls the same functions of OpenCV as the generators, because they define it.
    """
    import cv2

    drops = (layer * 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    embossed = cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, relief)
    light = drops * cv2.blur(embossed, (3, 3)).astype(np.float32)
    brightest = light.max()
    # without a drop the generators divide zero by zero and give a black image; here it is unchanged
    return np.asarray(light / brightest if brightest > 0 else light, np.float32)


@compiled
def _throw_mud(
    images: NDArray[np.uint8],
    liquid: NDArray[np.float64],
    threshold: float,
    taps: NDArray[np.float64],
    colour: NDArray[np.float64],
    out: NDArray[np.uint8],
) -> None:
    count, height, width, channels = images.shape
    drops, cover = np.empty((height, width)), np.empty((height, width))
    scratch = np.empty(width + 2 * (taps.size - 1))
    for i in range(count):
        for y in range(height):
            for x in range(width):
                drops[y, x] = 1.0 if liquid[i, y, x] > threshold else 0.0
        smooth(drops, 1, taps, scratch, cover)
        for y in range(height):
            for x in range(width):
                share = 0.0 if cover[y, x] < 0.8 else cover[y, x]
                for c in range(channels):
                    value = images[i, y, x, c] * (1.0 - share) + 255.0 * colour[c] * share
                    out[i, y, x, c] = np.uint8(min(value, 255.0))
