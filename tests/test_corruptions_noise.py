"""The noises are the generators' distributions, exactly."""

import numpy as np
import pytest

from recal.corruptions import corrupt
from recal.corruptions.noise import (
    _alias_table,
    gaussian_channel,
    impulse_channel,
    shot_channel,
    speckle_channel,
)
from recal.corruptions.parameters import PARAMETER_SETS

CHANNELS = {
    "gaussian_noise": gaussian_channel,
    "shot_noise": shot_channel,
    "impulse_noise": impulse_channel,
    "speckle_noise": speckle_channel,
}
LEVEL_PROBES = (0, 1, 17, 128, 240, 255)


def formula(name, values, parameter, rng):
    """The published formula, with NumPy's own generator, on values in [0, 1]."""
    if name == "gaussian_noise":
        noisy = values + rng.normal(size=values.shape, scale=parameter)
    elif name == "speckle_noise":
        noisy = values + values * rng.normal(size=values.shape, scale=parameter)
    elif name == "shot_noise":
        noisy = rng.poisson(values * parameter) / parameter
    else:
        dice = rng.random(values.shape)
        noisy = np.where(dice < parameter / 2, 0, np.where(dice < parameter, 1, values))
    return (np.clip(noisy, 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("family", sorted(PARAMETER_SETS))
@pytest.mark.parametrize("name", CHANNELS)
def test_channel_rows_are_the_formulas_distribution(name, family):
    """Each row of a channel is a distribution, and the formula's draws fit it (chi-square)."""
    rng = np.random.default_rng(0)
    for (parameter,) in PARAMETER_SETS[family].severities[name]:
        channel = CHANNELS[name](parameter)
        assert channel.min() >= 0
        np.testing.assert_allclose(channel.sum(axis=1), 1, atol=1e-12)
        for level in LEVEL_PROBES:
            drawn = formula(name, np.full(20_000, level / 255), parameter, rng)
            assert_fits(np.bincount(drawn, minlength=256), channel[level])


@pytest.mark.parametrize("name", CHANNELS)
def test_noise_draws_fit_its_channel(name):
    """What `corrupt` draws fits the channel, and so the formula."""
    parameter = PARAMETER_SETS["imagenet"].severities[name][2][0]
    channel = CHANNELS[name](parameter)
    for level in LEVEL_PROBES:
        images = np.full((1, 224, 224, 3), level, np.uint8)
        drawn = corrupt(images, name, 3, family="imagenet", seed=level)
        assert_fits(np.bincount(drawn.ravel(), minlength=256), channel[level])


@pytest.mark.parametrize("name", CHANNELS)
def test_alias_table_holds_the_channel(name):
    """Summed over its columns, a packed table gives back the probabilities to 2^-24."""
    parameter = PARAMETER_SETS["cifar"].severities[name][4][0]
    table = _alias_table(CHANNELS[name], parameter)
    threshold, other = (table >> 8) / 2**24, table & 255
    for row in range(256):
        found = threshold[row] / 256
        np.add.at(found, other[row], (1 - threshold[row]) / 256)
        np.testing.assert_allclose(found, CHANNELS[name](parameter)[row], atol=2**-24)


def assert_fits(counts, probabilities):
    """Chi-square over the levels expected at least 5 times; 6 deviations of slack."""
    expected = counts.sum() * probabilities
    common = expected >= 5
    rare = counts[~common].sum()
    assert rare <= expected[~common].sum() + 6 * np.sqrt(expected[~common].sum()) + 6
    statistic = ((counts[common] - expected[common]) ** 2 / expected[common]).sum()
    freedom = common.sum()
    assert statistic <= freedom + 6 * np.sqrt(2 * freedom) + 6
