"""Intervals, and tests of whether two targets differ on the same images."""

from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
RESAMPLES = 2000
MOST_GROUPS = 2000

Interval = tuple[float, float]


def wilson_interval(share: float, n: float) -> Interval:
    """Return Wilson's score interval of a share, in [0, 1], of n independent cases, 1 or more.

    Source: Wilson, J. Am. Stat. Assoc. 22 (1927), 209-212.
    """
    z = Z
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # exact where rounding would leave out a share of 0 or 1
    low = 0.0 if share == 0 else max(0.0, float(middle - half))
    high = 1.0 if share == 1 else min(1.0, float(middle + half))
    return low, high


def bounded_mean_interval(values: NDArray[np.float64]) -> Interval:
    """Return the interval of a mean of independent values in [0, 1].

    It is Wilson's interval for the number of yes-or-no cases that would have the observed variance.
    For values of 0 and 1 that is their number. An image's mean over several cells varies less and
    counts for more, with a correction for the uncertainty of the variance of few images. Values
    without any spread count once each.

    Source: the effective sample size of Korn and Graubard, Survey Methodology 24 (1998), 193-201.
    """
    share, n = float(values.mean()), len(values)
    variance = float(values.var())
    size = float(n)
    if variance > 0 and not np.isin(values, (0, 1)).all():
        uncertain = Z / _student(n - 1)
        size = n * share * (1 - share) / variance * uncertain**2
    return wilson_interval(min(max(share, 0.0), 1.0), size)


def mean_interval(values: NDArray[np.float64]) -> Interval:
    """Return Student's interval of a mean of independent values; that of one value is the value."""
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, mean
    half = float(_student(n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean - half, mean + half


@cache
def _student(degrees: int) -> float:
    """Return the quantile of Student's distribution that bounds the interval."""
    from scipy import special

    return float(special.stdtrit(degrees, (1 + LEVEL) / 2))


def deal(n: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return a group number for each of n images: as many groups as images, but at most 2,000.

    The bootstrap resamples groups. Groups of independent images are independent too: intervals are
    those of single images, at a cost that does not grow with their number.
    """
    groups = min(n, MOST_GROUPS)
    return np.random.default_rng(seed).permutation(np.arange(n) % groups)


def bootstrap_counts(groups: int, *, seed: Sequence[int]) -> NDArray[np.float64]:
    """Return how often each group is drawn in each resample, (R, groups); rows sum to `groups`.

    Equal arguments give equal counts: values that are computed from them for several targets are
    paired.
    """
    drawn = np.random.default_rng(seed).integers(0, groups, (RESAMPLES, groups))
    drawn += np.arange(RESAMPLES)[:, None] * groups
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * groups)
    return counts.reshape(RESAMPLES, groups).astype(np.float64)


def percentile_interval(resampled: NDArray[np.float64]) -> Interval:
    """Return the percentiles of a bootstrap distribution, (R,)."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def normal_interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    """Return the interval of a biased statistic, such as the calibration error.

    Resamples have the bias of the sample once more, which percentiles would count twice. The
    interval is 1.96 standard errors on each side of the value: it covers the average over runs of
    as many images.
    """
    half = float(Z * resampled.std(ddof=1))
    return value - half, value + half


ALPHA = 0.05


def mcnemar(only_first: NDArray[np.int64], only_second: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the two-sided p-values of McNemar's test, by the exact binomial distribution.

    The arguments are the numbers of images on which only one of the targets is right, int64 (P,).
    The exact test keeps its level far in the tail, where Holm's correction needs it. The mid-p
    variant is a little more powerful there, but does not guarantee its level.

    Source: McNemar, Psychometrika 12 (1947), 153-157; on mid-p, Fagerland, Lydersen and Laake, BMC
    Medical Research Methodology 13 (2013), 91.
    """
    # 60 MB and most of a second, which evaluation does not need
    from scipy import stats

    tail = stats.binom.cdf(np.minimum(only_first, only_second), only_first + only_second, 0.5)
    return np.asarray(np.minimum(2 * tail, 1.0))


def paired_mean(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of no difference, from each image's difference.

    It is Student's test, bounded below by the smallest p-value of a sign test over the images that
    differ: means of few images are not normally distributed.
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
    """Return p-values adjusted for several tests, which bounds the chance of any false finding.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted
