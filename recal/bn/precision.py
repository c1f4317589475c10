"""How precise estimated statistics are, and how many images would do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from recal.bn.estimators import Estimate

# a 95 % interval is this many standard errors to either side
Z = 1.96
DIGITS = 4


@dataclass(frozen=True)
class LayerError:
    """The standard errors of one layer's statistics, root mean squares over its channels.

    They are conditional on the statistics of earlier layers, with images as independent draws.

    Attributes:
        mean: Of the mean, in units of the channel's standard deviation.
        log_variance: Of the logarithm of the variance, which is the variance's relative error.
    """

    mean: float
    log_variance: float

    @property
    def larger(self) -> float:
        """The larger of the two."""
        return max(self.mean, self.log_variance)


def layer_errors(layers: Mapping[str, Estimate]) -> dict[str, LayerError]:
    """Return the standard errors of every layer, by path, rounded to four digits."""
    return {
        name: LayerError(*(_round(_rms(e)) for e in estimate.moments.standard_errors()))
        for name, estimate in layers.items()
    }


def bound(errors: Mapping[str, LayerError]) -> float:
    """Return the half width of the 95 % interval of the least precise layer; what tolerances bound.

    So the actual error, a root mean square over the layer's channels, is below it in 95 of 100
    draws of the images even if all channels err together.
    """
    return Z * max((error.larger for error in errors.values()), default=math.inf)


def images_needed(images: int, reached: float, tolerance: float) -> int:
    """Return how many images a tolerance takes, where so many have `reached` this error.

    Errors fall with the square root of the number.
    """
    if not math.isfinite(reached):
        return 2 * images
    return math.ceil(images * (reached / tolerance) ** 2)


def _rms(errors: torch.Tensor) -> float:
    return float(errors.square().mean().sqrt())


def _round(value: float) -> float:
    # beyond these digits the order of summation would show in the variant's bytes
    return float(f"{value:.{DIGITS}g}")
