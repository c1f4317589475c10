"""Outputs on noise that any program can repeat, in any language, kept in the record of a file.

Number i of the noise, in the order of memory, is a hash of i in 32-bit arithmetic. The hash is the
function `lowbias32`. docs/engines.md gives it in other languages.

Source: Wellons, "Prospecting for hash functions" (2018),
https://nullprogram.com/blog/2018/07/31/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from recal.schema import Record

IMAGES = 2
KEPT = 8
Count = Annotated[int, Meta(ge=1)]


class Probe(Record, frozen=True, kw_only=True):
    """Outputs on noise, which tell whether another engine or device computes the same.

    Attributes:
        shape: Shape of the noise, as the file takes it: (N, C, H, W), or (N, H, W, C) of pixels.
        largest: Largest absolute output.
        outputs: First outputs of each of the first images, of each variant in the file.
    """

    shape: tuple[Count, Count, Count, Count]
    largest: float
    outputs: tuple[tuple[tuple[float, ...], ...], ...]

    def deviation(self, other: Probe) -> Deviation:
        """Return the largest distance of another probe's outputs from these, and its place."""
        if self.shape != other.shape or _lengths(self) != _lengths(other):
            return Deviation(relative=float("inf"))
        own, others = (np.array(probe.outputs, np.float64) for probe in (self, other))
        distance = np.abs(own - others)
        variant, image, output = np.unravel_index(distance.argmax(), distance.shape)
        return Deviation(
            relative=float(distance.max() / max(1.0, self.largest)),
            place=(int(variant), int(image), int(output)),
            recorded=float(own[variant, image, output]),
            found=float(others[variant, image, output]),
        )


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """The output that is farthest from the recorded one.

    Attributes:
        relative: Its distance, relative to max(1, the largest output recorded); infinite if the
            shapes differ, NaN if an output is.
        place: Numbers of the variant, the image and the output, from 0; None if shapes differ.
        recorded: The output as recorded.
        found: The output as found.
    """

    relative: float
    place: tuple[int, int, int] | None = None
    recorded: float = 0.0
    found: float = 0.0


def repeatable_noise(shape: Sequence[int], *, pixels: bool) -> NDArray[Any]:
    """Return noise that any program can repeat.

    Args:
        shape: Shape of the result, of at most 2^32 numbers.
        pixels: Whether to return the bytes themselves, uint8 in 0 to 255. Otherwise each byte b
            becomes (b - 127.5) / 64, which float16 and float32 hold exactly: mean 0, standard
            deviation 1.15.

    Returns:
        uint8 or float32 of `shape`.
    """
    words = np.arange(np.prod(shape), dtype=np.uint32)
    words ^= words >> 16
    words *= np.uint32(0x7FEB352D)
    words ^= words >> 15
    words *= np.uint32(0x846CA68B)
    words ^= words >> 16
    levels = (words >> 24).astype(np.uint8).reshape(shape)
    return levels if pixels else (levels.astype(np.float32) - np.float32(127.5)) / np.float32(64)


def probe_of(inputs: NDArray[Any], outputs: Sequence[NDArray[np.floating]]) -> Probe:
    """Return the probe of a file from its outputs (N, K) on noise, one array for each variant."""
    return Probe(
        shape=inputs.shape,
        largest=float(f"{max(np.abs(rows).max() for rows in outputs):.4g}"),
        outputs=tuple(
            tuple(tuple(float(f"{value:.6g}") for value in row[:KEPT]) for row in rows[:IMAGES])
            for rows in outputs
        ),
    )


def _lengths(probe: Probe) -> list[list[int]]:
    return [[len(row) for row in rows] for rows in probe.outputs]
