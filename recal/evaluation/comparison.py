"""Whether two targets differ beyond noise, on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """A difference of mean accuracies, B minus A, with its 95 % interval; fractions."""

    value: float
    low: float
    high: float

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_difference(
    a: Sequence[NDArray[np.bool_]], b: Sequence[NDArray[np.bool_]], *, seed: int = 0
) -> Difference:
    """Compare two targets over the same cells of the same images.

    Images are independent, the cells of one image are not: so each image's mean over the cells is
    one value, and images are what the bootstrap draws (percentile interval, 2,000 resamples).

    Args:
        a: For each cell, whether target A is right on each image, (N,).
        b: The same cells for target B.
        seed: Of the resampling.
    """
    difference = np.mean(np.stack(b), axis=0) - np.mean(np.stack(a), axis=0)
    value = float(difference.mean())
    if len(difference) < 2 or np.all(difference == difference[0]):
        return Difference(value, value, value)
    interval = stats.bootstrap(
        (difference,), np.mean, n_resamples=2000, batch=100, method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Difference(value, float(interval.low), float(interval.high))
