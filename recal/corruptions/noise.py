"""Gaussian, shot, impulse and speckle noise, drawn exactly and without arithmetic on pixels.

Each of them treats all values of all pixels alike and independently, and gives one of 256 levels.
It is therefore a 256 x 256 matrix of the probability of each output level for each input level. The
alias method draws from one of its rows with one random word and one look-up.

Source: Hendrycks and Dietterich (arXiv 1903.12261) for the noises; Walker, "An efficient method for
generating discrete random variables with general distributions" (1977), and Vose (1991).
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy import special

from recal.corruptions.random import BLOCK, Draws, fill_words
from recal.kernels import F64, I64, U8, U32, compiled

LEVELS = 256
CHUNK = 4096
_KEEP_BITS = np.uint32(8)
_COLUMN = np.uint32(LEVELS - 1)


def gaussian_noise(images: U8, _scale: float, draws: Draws, sigma: float) -> U8:
    """Add normal noise of standard deviation `sigma`, of the range [0, 1]."""
    return _send(images, draws, gaussian_channel, sigma)


def speckle_noise(images: U8, _scale: float, draws: Draws, sigma: float) -> U8:
    """Add normal noise of standard deviation `sigma` times the value."""
    return _send(images, draws, speckle_channel, sigma)


def shot_noise(images: U8, _scale: float, draws: Draws, photons: float) -> U8:
    """Replace each value by a Poisson count, `photons` at full brightness."""
    return _send(images, draws, shot_channel, photons)


def impulse_noise(images: U8, _scale: float, draws: Draws, amount: float) -> U8:
    """Set a fraction `amount` of the values to 0 or 255, each with the same probability."""
    return _send(images, draws, impulse_channel, amount)


def gaussian_channel(sigma: float) -> F64:
    """Return P(out | in) of Gaussian noise, (256, 256)."""
    return _normal_channel(np.full(LEVELS, 255 * sigma))


def speckle_channel(sigma: float) -> F64:
    """Return P(out | in) of speckle noise, (256, 256); black stays black."""
    channel = np.zeros((LEVELS, LEVELS))
    channel[0, 0] = 1
    channel[1:] = _normal_channel(np.arange(LEVELS, dtype=np.float64) * sigma)[1:]
    return channel


def _normal_channel(deviations: F64) -> F64:
    # the generators truncate: level k covers [k, k + 1), and 255 everything from 255 on
    edges = np.arange(1, LEVELS)
    with np.errstate(divide="ignore"):
        below = special.ndtr((edges - np.arange(LEVELS)[:, None]) / deviations[:, None])
    return np.diff(below, axis=1, prepend=0, append=1)


def shot_channel(photons: float) -> F64:
    """Return P(out | in) of shot noise, (256, 256)."""
    mean = np.arange(LEVELS)[:, None] / 255 * photons
    counts = np.arange(int(photons))
    # more counts than `photons` are white
    share = np.diff(special.pdtr(counts, mean), axis=1, prepend=0, append=1)
    levels = np.append((counts / photons * 255).astype(np.int64), LEVELS - 1)
    # several counts may give one level
    return np.asarray(share @ np.eye(LEVELS)[levels])


def impulse_channel(amount: float) -> F64:
    """Return P(out | in) of impulse noise, (256, 256)."""
    channel = (1 - amount) * np.eye(LEVELS)
    channel[:, [0, -1]] += amount / 2
    return channel


def _send(images: U8, draws: Draws, channel: Callable[[float], F64], parameter: float) -> U8:
    flat = images.reshape(len(images), math.prod(images.shape[1:]))
    out = np.empty_like(flat)
    _draw_levels(flat, _alias_table(channel, parameter), draws.key, draws.indices, out)
    return out.reshape(images.shape)


@lru_cache(maxsize=64)
def _alias_table(channel: Callable[[float], F64], parameter: float) -> U32:
    table = np.empty((LEVELS, LEVELS), np.uint32)
    _fill_alias_table(channel(parameter), table)
    return table


@compiled
def _fill_alias_table(channel: F64, table: U32) -> None:
    """Pack, for every level in and column, a 24-bit threshold over the 8-bit other level.

    A column is chosen with probability 1/256. It gives its own level below the threshold, and the
    other one from the threshold on. Rounding changes each probability by less than 2^-24.
    """
    small = np.empty(LEVELS, np.int64)
    large = np.empty(LEVELS, np.int64)
    for row in range(LEVELS):
        weight = channel[row] * LEVELS
        smalls = larges = 0
        for level in range(LEVELS):
            if weight[level] < 1:
                small[smalls] = level
                smalls += 1
            else:
                large[larges] = level
                larges += 1
            table[row, level] = level
        while smalls > 0 and larges > 0:
            smalls -= 1
            poor = small[smalls]
            rich = large[larges - 1]
            threshold = np.uint32(weight[poor] * 2.0**24)
            table[row, poor] = (threshold << _KEEP_BITS) | np.uint32(rich)
            weight[rich] -= 1 - weight[poor]
            if weight[rich] < 1:
                larges -= 1
                small[smalls] = rich
                smalls += 1


@compiled
def _draw_levels(images: U8, table: U32, key: U32, indices: I64, out: U8) -> None:
    words = np.empty(CHUNK, np.uint32)
    count, size = images.shape
    for i in range(count):
        for start in range(0, size, CHUNK):
            fill_words(words, key, indices[i], 0, start // BLOCK)
            stop = min(size, start + CHUNK)
            part, result = images[i, start:stop], out[i, start:stop]
            for j in range(stop - start):
                column = words[j] & _COLUMN
                entry = table[part[j], column]
                kept = (words[j] >> _KEEP_BITS) < (entry >> _KEEP_BITS)
                result[j] = column if kept else entry & _COLUMN
