"""Error bounds hold as often as they say."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from recal.calibration.moments import Moments
from recal.calibration.rounds import images_needed
from recal.variant.statistics import quantile_factor


@pytest.mark.parametrize("degrees", [1, 1.5, 3, 10, 64, 2048])
def test_quantile_factor_is_that_of_chi_square(degrees):
    expected = math.sqrt(stats.chi2.ppf(0.95, degrees) / degrees)
    assert quantile_factor(degrees) == pytest.approx(expected, rel=0.02)


def correlated_images(rng, count):
    """Images of 12 channels whose levels and contrasts go together, as those of photographs do."""
    level = rng.normal(0, 1, (count, 1, 1, 1)) + 0.5 * rng.normal(0, 1, (count, 12, 1, 1))
    contrast = np.exp(0.3 * rng.normal(0, 1, (count, 1, 1, 1)))
    return level + contrast * rng.normal(0, 1, (count, 12, 3, 3))


def test_bounds_and_intervals_cover_the_truth_in_95_of_100_draws():
    rng = np.random.default_rng(0)
    true_variance = 1.25 + math.exp(2 * 0.3**2)  # of level, and the mean square of contrast
    draws, inside, within = 400, np.zeros(2), np.zeros(2)
    for _ in range(draws):
        moments = Moments.of(torch.from_numpy(correlated_images(rng, 300)))
        actual = (
            (moments.mean / math.sqrt(true_variance)).numpy(),
            (moments.variance / true_variance).log().numpy(),
        )
        error = moments.error()
        bounds = (error.mean_bound, error.log_variance_bound)
        for i, (found, errors) in enumerate(zip(actual, moments.standard_errors(), strict=True)):
            inside[i] += (np.abs(found) <= 1.96 * errors.numpy()).mean()
            within[i] += math.sqrt(np.square(found).mean()) <= bounds[i]
    assert ((inside / draws > 0.92) & (inside / draws < 0.98)).all()
    assert ((within / draws > 0.92) & (within / draws < 0.98)).all()


def test_errors_fall_with_the_square_root_of_the_number_of_images():
    assert images_needed(1000, 0.04, 0.02) == 4000
    assert images_needed(1000, 0.02, 0.02) == 1000
    assert images_needed(1, math.inf, 0.02) == 2
