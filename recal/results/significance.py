"""Tests of whether two targets differ on the same images, and the correction for many of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALPHA = 0.05


def mcnemar(only_first: NDArray[np.int64], only_second: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the two-sided p-values of McNemar's test, by the exact binomial distribution.

    The mid-p variant is a little more powerful, but promises no level; far in the tail, where
    Holm's correction looks, only the exact one does.

    Args:
        only_first: For each pair, the images on which the first target alone is right.
        only_second: The same for the second.

    Source: McNemar, Psychometrika 12 (1947), 153-157; on mid-p, Fagerland, Lydersen and Laake, BMC
    Medical Research Methodology 13 (2013), 91.
    """
    # imported here, because it takes 60 MB and most of a second that evaluation alone need not pay
    from scipy import stats

    tail = stats.binom.cdf(np.minimum(only_first, only_second), only_first + only_second, 0.5)
    return np.asarray(np.minimum(2 * tail, 1.0))


def paired_mean(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of no difference, from each image's difference.

    Student's test; but never below what a test of signs alone could give for as many images as
    differ at all, because few of them make no normal distribution.
    """
    n, differing = len(differences), int(np.count_nonzero(differences))
    if differing == 0:
        return 1.0
    smallest = 2.0 ** (1 - min(differing, 1000))
    error = differences.std(ddof=1) / np.sqrt(n) if n > 1 else 0.0
    if error == 0:
        return smallest
    from scipy import stats

    p = float(2 * stats.t.sf(abs(differences.mean()) / error, n - 1))
    return max(p, smallest)


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values adjusted so that any false finding among them has at most their level.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted
