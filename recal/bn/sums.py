"""The sums over each image's values that moments are made of."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray


def image_sums(
    values: torch.Tensor, wide: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum the values of each image and channel, and their squares, as deviations from a pivot.

    Args:
        values: Activations (N, C, ...), float32 or float64.
        wide: In which type sums are given: float64 where the device has it.

    Returns:
        The pivot, (C,), which is the mean but for rounding, so that a large mean costs the squares
        no digits; sums of deviations and of their squares, each (N, C).
    """
    k = math.prod(values.shape[2:])
    if _suits_the_kernel(values):
        images = values.permute(0, 2, 3, 1).flatten(1, 2)
        sums, squares = torch.zeros((2, len(images), images.shape[2]), dtype=torch.float64)
        _kernel()(images.numpy(), sums.numpy(), squares.numpy())
        pivot = sums.mean(0) / k
        # in float64 throughout: a mean of 10,000 standard deviations costs half of the digits
        squares += pivot * (k * pivot - 2 * sums)
        return pivot, sums - k * pivot, squares
    places = tuple(range(2, values.ndim))
    sums = values.sum(places) if places else values
    pivot = (sums.to(wide).mean(0) / k).to(values.dtype)
    deviations = (values - pivot.view(1, -1, *(1 for _ in places))).square_()
    squares = (deviations.sum(places) if places else deviations).to(wide)
    return pivot.to(wide), sums.to(wide) - k * pivot.to(wide), squares


def _suits_the_kernel(values: torch.Tensor) -> bool:
    return (
        values.device.type == "cpu"
        and values.dtype == torch.float32
        and values.ndim == 4
        and values.is_contiguous(memory_format=torch.channels_last)
    )


@cache
def _kernel() -> Callable[..., Any]:
    """Return the sums of channels-last images in one reading; torch takes four."""
    from recal.compiled import compiled

    return compiled(_add_image_sums)


def _add_image_sums(
    images: NDArray[np.float32], sums: NDArray[np.float64], squares: NDArray[np.float64]
) -> None:
    """Add to (N, C) what is in (N, places, C); four places at a time, which keeps sums in reach."""
    count, places, channels = images.shape
    fours = places - places % 4
    for i in range(count):
        for p in range(0, fours, 4):
            for c in range(channels):
                # times 1.0 in float64, where a float32 sum would round
                v0, v1 = images[i, p, c] * 1.0, images[i, p + 1, c] * 1.0
                v2, v3 = images[i, p + 2, c] * 1.0, images[i, p + 3, c] * 1.0
                sums[i, c] += (v0 + v1) + (v2 + v3)
                squares[i, c] += (v0 * v0 + v1 * v1) + (v2 * v2 + v3 * v3)
        for p in range(fours, places):
            for c in range(channels):
                v = images[i, p, c] * 1.0
                sums[i, c] += v
                squares[i, c] += v * v
