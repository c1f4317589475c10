"""How precise estimated statistics are, and how many images would do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from recal.calibration.estimators import Estimate
    from recal.calibration.moments import Moments


DIGITS = 4
# the 95 % quantile of the normal distribution
NORMAL_95 = 1.6449


@dataclass(frozen=True)
class LayerError:
    """How far one layer's statistics may be off, as root mean squares over its channels.

    Conditional on the statistics of earlier layers, with images as independent draws.

    Attributes:
        mean: Standard error of the mean, in units of the channel's standard deviation.
        log_variance: Standard error of the variance's logarithm, which is its relative error.
        mean_bound: What the actual error of the mean stays below in 95 of 100 draws of the images.
        log_variance_bound: Likewise of the variance.
    """

    mean: float
    log_variance: float
    mean_bound: float
    log_variance_bound: float


def layer_errors(layers: Mapping[str, Estimate]) -> dict[str, LayerError]:
    """Return the errors of every layer, by path, rounded to four digits."""
    return {name: layer_error(estimate.moments) for name, estimate in layers.items()}


def layer_error(moments: Moments) -> LayerError:
    """Return the errors of one layer, rounded to four digits.

    A root mean square over channels is hardly ever far above its expectation where channels err
    independently, and up to 1.96 times where they err together: so its 95 % quantile is that of
    chi-square with as many degrees of freedom as there are independent channels.
    """
    errors = [float(error.square().mean().sqrt()) for error in moments.standard_errors()]
    return with_bounds(errors, moments.independent_channels())


def with_bounds(errors: Sequence[float], degrees: Sequence[float]) -> LayerError:
    """Return a layer's standard errors with their bounds, rounded to four digits.

    Args:
        errors: Root mean squares over channels, of the mean and of the log-variance.
        degrees: Of each, the number of independent channels.
    """
    bounds = [e * quantile_factor(d) for e, d in zip(errors, degrees, strict=True)]
    # beyond these digits the order of summation would show in a variant's bytes
    return LayerError(*(float(f"{value:.{DIGITS}g}") for value in (*errors, *bounds)))


def quantile_factor(degrees: float) -> float:
    """Return the 95 % quantile of sqrt(chi-square / degrees).

    Source: Wilson and Hilferty, "The distribution of chi-square", PNAS 17, 1931; within 2 % from
    one degree of freedom on.
    """
    spread = 2 / (9 * degrees)
    return float((1 - spread + NORMAL_95 * math.sqrt(spread)) ** 1.5)


def bound(errors: Mapping[str, LayerError]) -> float:
    """Return the bound of the least precise layer, which is what a tolerance is held against."""
    return max((max(e.mean_bound, e.log_variance_bound) for e in errors.values()), default=math.inf)


def images_needed(images: int, reached: float, tolerance: float) -> int:
    """Return how many images a tolerance takes, where so many have `reached` this error.

    Errors fall with the square root of the number.
    """
    if not math.isfinite(reached):
        return 2 * images
    return math.ceil(images * (reached / tolerance) ** 2)
