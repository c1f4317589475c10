"""Intervals against closed forms, and against simulated truths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from recal.runs.statistics import (
    RESAMPLES,
    bootstrap_counts,
    bounded_mean_interval,
    deal,
    normal_interval,
    percentile_interval,
    wilson_interval,
)


@given(st.integers(1, 100_000), st.data())
def test_interval_of_a_share_is_wilsons(n, data):
    count = data.draw(st.integers(0, n))
    expected = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(count / n, n) == pytest.approx(tuple(expected), abs=1e-12)


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_a_mean_of_yes_and_no_has_wilsons_interval(right):
    values = np.array(right, np.float64)
    expected = wilson_interval(values.mean(), len(values))
    assert bounded_mean_interval(values) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_interval_of_a_mean_holds_it_and_stays_in_its_range(values):
    low, high = bounded_mean_interval(np.array(values))
    assert 0 <= low <= np.mean(values) + 1e-12
    assert np.mean(values) - 1e-12 <= high <= 1


def test_groups_are_even_and_at_most_2000():
    assert np.bincount(deal(7)).tolist() == [1] * 7
    sizes = np.bincount(deal(10_500))
    assert len(sizes) == 2000
    assert set(sizes) == {5, 6}
    assert not np.array_equal(deal(10_500), deal(10_500, seed=1))


def test_counts_are_drawn_with_replacement_and_are_the_same_for_the_same_seed():
    counts = bootstrap_counts(50, seed=[3])
    assert counts.shape == (RESAMPLES, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert np.array_equal(counts, bootstrap_counts(50, seed=[3]))
    # multinomial: mean 1, variance 1 - 1/50
    assert counts.mean() == 1
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.02)


def test_bootstrap_of_groups_has_the_standard_error_of_images():
    values = np.random.default_rng(0).exponential(1, 9000)
    group = deal(len(values))
    sums, sizes = np.bincount(group, values), np.bincount(group)
    counts = bootstrap_counts(len(sizes), seed=[0])
    drawn = (counts @ sums) / (counts @ sizes)
    expected = values.std() / np.sqrt(len(values))
    assert drawn.std() == pytest.approx(expected, rel=0.06)
    for low, high in (percentile_interval(drawn), normal_interval(values.mean(), drawn)):
        assert low == pytest.approx(values.mean() - 1.96 * expected, abs=0.15 * expected)
        assert high == pytest.approx(values.mean() + 1.96 * expected, abs=0.15 * expected)


@pytest.mark.parametrize(("n", "share"), [(50, 0.9), (1000, 0.5), (2000, 0.97)])
def test_interval_of_a_share_covers_it(n, share):
    chances = stats.binom.pmf(np.arange(n + 1), n, share)
    ends = np.array([wilson_interval(k / n, n) for k in range(n + 1)])
    covers = (ends[:, 0] <= share) & (share <= ends[:, 1])
    # exact; counts are whole, so that it cannot be 0.95 everywhere
    assert 0.94 < chances[covers].sum() < 0.975


@pytest.mark.parametrize("n", [30, 500])
def test_interval_of_a_mean_over_cells_covers_it(n):
    rng = np.random.default_rng(1)
    chance = special.expit(rng.normal(1.0, 1.5, (2000, n, 1)))
    means = (rng.random((2000, n, 5)) < chance).mean(axis=2)
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    truth = (weights * special.expit(1.0 + 1.5 * points)).sum() / weights.sum()
    ends = np.array([bounded_mean_interval(row) for row in means])
    hits = np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))
    assert 0.93 < hits < 0.97
