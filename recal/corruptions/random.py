"""Random numbers as a function of (seed, corruption, severity, image, position), on any machine.

Philox4x32-10 turns a key and a counter into four random words. It keeps no state between calls, so
that an image's draws do not depend on its batch, its order or its thread.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np

from recal.kernels import F64, I64, U32, compiled

BLOCK = 4
ROUNDS = 10
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


class Draws(NamedTuple):
    """The key of the random draws of a batch of images.

    Attributes:
        key: Key derived from the seed, the corruption and the severity, uint32 (2,).
        indices: Numbers of the images in their data set, not negative, int64 (N,).
    """

    key: U32
    indices: I64


def derive_key(seed: int, corruption: str, severity: int) -> U32:
    """Return the key, uint32 (2,), of one corruption at one severity."""
    text = f"{seed}/{corruption}/{severity}".encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=8).digest(), "<u4").astype(np.uint32)


@compiled
def fill_words(words: U32, key: U32, image: int, part: int, first: int) -> None:
    """Fill `words` with random bits, from n / 4 consecutive blocks of four words.

    Args:
        words: Result, uint32 (n,), with n a multiple of 4. Word l of block `first` + b is written
            to index l n/4 + b: with the four words of a block side by side, the loop is not
            vectorised and takes six times as long.
        key: Key of the draws, uint32 (2,).
        image: Number of the image, below 2^63.
        part: Number of an independent stream of the image, below 2^32.
        first: Number of the first block, below 2^32.
    """
    low = np.uint32(np.uint64(image) & _LOW)
    high = np.uint32(np.uint64(image) >> _HALF)
    blocks = words.size // BLOCK
    words_0, words_1 = words[:blocks], words[blocks : 2 * blocks]
    words_2, words_3 = words[2 * blocks : 3 * blocks], words[3 * blocks :]
    for block in range(blocks):
        c0, c1, c2, c3 = np.uint32(first + block), np.uint32(part), low, high
        k0, k1 = key[0], key[1]
        for _ in range(ROUNDS):
            product_0 = np.uint64(c0) * _MULTIPLIER_0
            product_1 = np.uint64(c2) * _MULTIPLIER_1
            c0 = np.uint32(product_1 >> _HALF) ^ c1 ^ k0
            c2 = np.uint32(product_0 >> _HALF) ^ c3 ^ k1
            c1 = np.uint32(product_1 & _LOW)
            c3 = np.uint32(product_0 & _LOW)
            k0 = np.uint32(k0 + _WEYL_0)
            k1 = np.uint32(k1 + _WEYL_1)
        words_0[block] = c0
        words_1[block] = c1
        words_2[block] = c2
        words_3[block] = c3


@compiled
def uniform(word: np.uint32) -> float:
    """Return a float64 in (0, 1): the middle of one of 2^32 equal parts."""
    return (np.float64(word) + 0.5) * 2.0**-32


@compiled
def random_words(count: int, draws: Draws, i: int, part: int = 0) -> U32:
    """Return the words of one part of image i of a batch, uint32 (`count` rounded up to 4 n,)."""
    words = np.empty(-(-count // BLOCK) * BLOCK, np.uint32)
    fill_words(words, draws.key, draws.indices[i], part, 0)
    return words


@compiled
def uniforms(draws: Draws, count: int, part: int = 0) -> F64:
    """Return `count` numbers in (0, 1) for each image, float64 (N, count)."""
    out = np.empty((draws.indices.size, count))
    for i in range(len(out)):
        words = random_words(count, draws, i, part)
        for j in range(count):
            out[i, j] = uniform(words[j])
    return out


@compiled
def fill_normals(out: F64, mean: float, deviation: float, draws: Draws, i: int) -> None:
    """Fill a contiguous array with normal draws of image i."""
    words, flat = random_words(out.size, draws, i), out.reshape(out.size)
    for j in range(flat.size):
        flat[j] = mean + deviation * normal(uniform(words[j]))


@compiled
def normal(share: float) -> float:
    """Return the standard normal quantile of a number in (0, 1), relative error below 1e-6.

    Source: Wichura, algorithm AS 241, "The percentage points of the normal distribution" (1988),
    PPND7.
    """
    q = share - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        above = ((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179
        below = ((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1.0
        return q * above / below
    r = math.sqrt(-math.log(min(share, 1.0 - share)))
    if r <= 5.0:
        r -= 1.6
        above = ((0.17023821103 * r + 1.3067284816) * r + 2.7568153900) * r + 1.4234372777
        below = (0.12021132975 * r + 0.73700164250) * r + 1.0
    else:
        r -= 5.0
        above = ((0.017337203997 * r + 0.42868294337) * r + 3.0812263860) * r + 6.6579051150
        below = (0.012258202635 * r + 0.24197894225) * r + 1.0
    return math.copysign(above / below, q)
