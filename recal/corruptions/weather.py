"""Snow, fog, brightness and spatter; frost, which needs textures, has a module of its own.

Source: Hendrycks and Dietterich (arXiv 1903.12261) and their generators; fog's fractal is Fournier,
Fussell and Carpenter's diamond-square algorithm (1982).
"""

from functools import lru_cache

import numpy as np

from recal.corruptions.blur import ZOOMABLE, check_side, smear, zoom_places
from recal.corruptions.filters import gaussian_taps, smooth
from recal.corruptions.random import Draws, fill_normals, random_words, uniform, uniforms
from recal.kernels import F32, F64, I64, U8, U32, compiled

Places = tuple[I64, F32, I64, F32]
LEVELS = 256
ROUGHNESS = 100.0
WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)


def snow(
    images: U8,
    scale: float,
    draws: Draws,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    kept: float,
) -> U8:
    """Whiten each image and add flakes, blurred by motion at an angle of U(-135, -45) degrees.

    The flakes are normal noise of `mean` and `deviation`, enlarged by `zoom`, where it is above
    `threshold`; their motion blur has `radius` and `sigma`. `kept` is the weight of the image that
    is not whitened.
    """
    check_side(images, ZOOMABLE, "snow")
    (rows, row_shares), (columns, column_shares) = (
        zoom_places(side, zoom) for side in images.shape[1:3]
    )
    flakes = np.empty((*images.shape[:3], 1), np.uint8)
    # a zoom uses only the middle of the noise, so that only this is drawn
    places = (rows - rows[0], row_shares, columns - columns[0], column_shares)
    _draw_flakes(flakes, places, mean, deviation, threshold, draws)
    angles = 90 * uniforms(draws, 1, 1)[:, 0] - 135
    blown = smear(flakes, angles, max(1, round(scale * radius)), scale * sigma)
    out = np.empty_like(images)
    _lay_snow(images, blown, np.float32(kept), out)
    return out


@compiled
def _draw_flakes(
    flakes: U8, places: Places, mean: float, deviation: float, threshold: float, draws: Draws
) -> None:
    rows, row_shares, columns, column_shares = places
    count, height, width, _ = flakes.shape
    noise = np.empty((rows[-1] + 2, columns[-1] + 2))
    for i in range(count):
        fill_normals(noise, mean, deviation, draws, i)
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
def _lay_snow(images: U8, flakes: U8, kept: np.float32, out: U8) -> None:
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


def fog(images: U8, _scale: float, draws: Draws, amount: float, decay: float) -> U8:
    """Add a fractal of 0 to `amount` to each image, then darken it to its former maximum.

    `decay` divides the fractal's roughness from one scale to the next finer one.
    """
    side = 1 << (max(images.shape[1:3]) - 1).bit_length()
    out = np.empty_like(images)
    _lay_fog(images, side, amount, decay, draws, out)
    return out


@compiled
def _lay_fog(images: U8, side: int, amount: float, decay: float, draws: Draws, out: U8) -> None:
    count, height, width, channels = images.shape
    plasma = np.empty((side, side))
    for i in range(count):
        _fill_plasma(plasma, decay, random_words(side * side, draws, i))
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
def _fill_plasma(plasma: F64, decay: float, words: U32) -> None:
    """Fill a map, float64 (S, S), S a power of two, by the diamond-square algorithm.

    The map is periodic at its edges. Of the words, S * S - 1 are used.
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


def brightness(images: U8, _scale: float, _draws: Draws, amount: float) -> U8:
    """Add `amount` to the value of HSV, clipped to 1."""
    out = np.empty_like(images)
    _look_up_by_largest(images, _brightness_table(amount), out)
    return out


@lru_cache(maxsize=16)
def _brightness_table(amount: float) -> U8:
    """Return the new level of each level c in a pixel of maximum m, uint8 (256 for m, 256 for c).

    Hue and saturation are unchanged: a pixel's values keep their ratios. Black becomes grey.
    """
    levels = np.arange(LEVELS) / 255
    value = np.clip(levels + amount, 0, 1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(levels[:, None] > 0, levels / levels[:, None], 1)
    return (np.clip(value * ratio, 0, 1) * 255).astype(np.uint8)


@compiled
def _look_up_by_largest(images: U8, table: U8, out: U8) -> None:
    count, height, width, _ = images.shape
    for i in range(count):
        for y in range(height):
            for x in range(width):
                r, g, b = images[i, y, x, 0], images[i, y, x, 1], images[i, y, x, 2]
                row = table[max(r, g, b)]
                out[i, y, x, 0], out[i, y, x, 1], out[i, y, x, 2] = row[r], row[g], row[b]


def spatter(
    images: U8,
    scale: float,
    draws: Draws,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: float,
) -> U8:
    """Splash water, or mud, on each image.

    The drops are normal noise of `mean` and `deviation`, smoothed by a Gaussian of `sigma` pixels,
    where it is above `threshold`. `strength` is the brightness of the water's light, or with `mud`
    the standard deviation of the Gaussian that smooths the drops' rims, in pixels.
    """
    liquid = np.empty(images.shape[:3])
    _draw_liquid(liquid, mean, deviation, gaussian_taps(scale * sigma), draws)
    out = np.empty_like(images)
    if mud:
        _throw_mud(images, liquid, threshold, gaussian_taps(scale * strength), out)
        return out
    for image, layer, result in zip(images, liquid, out, strict=True):
        light = _water_light(np.where(layer < threshold, 0, layer)) * np.float32(strength)
        value = image + light[..., None] * (255 * np.array(WATER, np.float32))
        result[:] = np.minimum(value, 255)
    return out


@compiled
def _draw_liquid(liquid: F64, mean: float, deviation: float, taps: F64, draws: Draws) -> None:
    noise = np.empty(liquid.shape[1:])
    for i in range(len(liquid)):
        fill_normals(noise, mean, deviation, draws, i)
        smooth(noise, 1, taps, liquid[i])


def _water_light(layer: F64) -> F32:
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
def _throw_mud(images: U8, liquid: F64, threshold: float, taps: F64, out: U8) -> None:
    count, height, width, channels = images.shape
    drops, cover = np.empty((height, width)), np.empty((height, width))
    for i in range(count):
        for y in range(height):
            for x in range(width):
                drops[y, x] = 1.0 if liquid[i, y, x] > threshold else 0.0
        smooth(drops, 1, taps, cover)
        for y in range(height):
            for x in range(width):
                share = 0.0 if cover[y, x] < 0.8 else cover[y, x]
                for c in range(channels):
                    value = images[i, y, x, c] * (1.0 - share) + 255.0 * MUD[c] * share
                    out[i, y, x, c] = np.uint8(min(value, 255.0))
