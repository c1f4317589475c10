"""Pooled moments are those of all values together, whatever the partition and the order."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recal.bn.moments import Moments


def moments_of(array):
    return Moments.of(torch.from_numpy(array))


@st.composite
def partitioned_values(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    shift = draw(st.sampled_from([0.0, 3.0, -40.0]))
    parts = [rng.normal(shift, rng.uniform(0.1, 3), (n, 3, 2, 2)).astype(np.float32) for n in sizes]
    return parts, draw(st.permutations(range(len(sizes))))


@settings(deadline=None)
@given(partitioned_values())
def test_merging_any_partition_in_any_order_gives_the_moments_of_all_values(case):
    parts, order = case
    values = np.concatenate(parts).astype(np.float64)
    merged = moments_of(parts[order[0]])
    for i in order[1:]:
        merged = merged.merge(moments_of(parts[i]))
    mean, variance = values.mean((0, 2, 3)), values.var((0, 2, 3))
    assert merged.count == values.size // 3
    np.testing.assert_allclose(merged.mean, mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(merged.variance, variance, rtol=2e-5)


def test_merge_is_exact_in_float64():
    rng = np.random.default_rng(0)
    a, b = rng.normal(5, 1, 70), rng.normal(-2, 3, 30)

    def exact(x):
        mean = torch.tensor([x.mean()])
        return Moments(len(x), mean, torch.tensor([((x - x.mean()) ** 2).sum()]))

    both = np.concatenate([a, b])
    merged = exact(a).merge(exact(b))
    np.testing.assert_allclose(merged.mean, [both.mean()], rtol=1e-13)
    np.testing.assert_allclose(merged.variance, [both.var()], rtol=1e-13)


def test_a_large_mean_costs_the_variance_no_digits():
    # float32 E[x^2] - mean^2 gives a negative variance here
    values = np.random.default_rng(0).normal(1000, 0.1, (64, 1, 8, 8)).astype(np.float32)
    expected = values.astype(np.float64).var()
    np.testing.assert_allclose(moments_of(values).variance, [expected], rtol=1e-4)
