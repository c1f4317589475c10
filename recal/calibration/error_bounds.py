"""Error bounds of estimated statistics, and the number of images that a tolerance needs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from recal.variant.statistics import LayerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from recal.calibration.estimators import Estimate
    from recal.calibration.moments import Moments


DIGITS = 4
# the 95 % quantile of the normal distribution
NORMAL_95 = 1.6449


def layer_errors(layers: Mapping[str, Estimate]) -> dict[str, LayerError]:
    """Return the errors of every layer by path, rounded to four digits.

    Layers that saw a single image are left out, because their errors are unknown.
    """
    moments = {name: estimate.moments for name, estimate in layers.items()}
    return {name: layer_error(found) for name, found in moments.items() if found.images > 1}


def layer_error(moments: Moments) -> LayerError:
    """Return the errors of one layer, rounded to four digits.

    The 95 % quantile of a root mean square over channels is near its expectation if the errors of
    channels are independent, and 1.96 times as large if they are equal. It is taken from the
    chi-square distribution with as many degrees of freedom as there are independent channels.
    """
    errors = [float(error.square().mean().sqrt()) for error in moments.standard_errors()]
    return with_bounds(errors, moments.independent_channels())


def with_bounds(errors: Sequence[float], degrees: Sequence[float]) -> LayerError:
    """Return a layer's standard errors with their bounds, rounded to four digits.

    Args:
        errors: Root mean squares over channels: of the errors of the mean, and of the log-variance.
        degrees: Numbers of independent channels: for the mean, and for the log-variance.
    """
    bounds = [e * quantile_factor(d) for e, d in zip(errors, degrees, strict=True)]
    # further digits depend on the order of summation, and variants should have equal bytes
    rounded = [float(f"{value:.{DIGITS}g}") for value in (*errors, *bounds)]
    return LayerError(
        mean=rounded[0],
        log_variance=rounded[1],
        mean_bound=rounded[2],
        log_variance_bound=rounded[3],
    )


def quantile_factor(degrees: float) -> float:
    """Return the 95 % quantile of sqrt(chi-square / degrees).

    Source: Wilson and Hilferty, "The distribution of chi-square", PNAS 17, 1931; within 2 % from
    one degree of freedom on.
    """
    spread = 2 / (9 * degrees)
    return float((1 - spread + NORMAL_95 * math.sqrt(spread)) ** 1.5)


def bound(errors: Mapping[str, LayerError]) -> float:
    """Return the bound of the least precise layer, which is compared with a tolerance."""
    return max((max(e.mean_bound, e.log_variance_bound) for e in errors.values()), default=math.inf)


def images_needed(images: int, reached: float, tolerance: float) -> int:
    """Return how many images a tolerance needs, if `images` of them have the bound `reached`.

    Errors fall with the square root of the number of images.
    """
    if not math.isfinite(reached):
        return 2 * images
    return math.ceil(images * (reached / tolerance) ** 2)
