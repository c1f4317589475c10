"""Moments are those of all values together, whatever the partition and the order; their errors are
those of images as independent draws."""

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recal.calibration.moments import Moments


def moments_of(array):
    return Moments.of(torch.from_numpy(array))


@st.composite
def partitioned_values(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    shift = draw(st.sampled_from([0.0, 3.0, -40.0]))
    # the parts' images may be of different sizes
    sides = draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes)))
    parts = [
        rng.normal(shift, rng.uniform(0.1, 3), (n, 3, side, 2)).astype(np.float32)
        for n, side in zip(sizes, sides, strict=True)
    ]
    return parts, draw(st.permutations(range(len(sizes))))


def flat(parts):
    """All values, (values, channels), in float64."""
    rows = [part.transpose(0, 2, 3, 1).reshape(-1, 3) for part in parts]
    return np.concatenate(rows).astype(np.float64)


def reference_errors(parts):
    """Standard errors of the mean and of the log-variance, from a loop over images in float64."""
    values = flat(parts)
    mean, variance = values.mean(0), values.var(0)
    of_mean, of_variance = [], []
    for image in (image for part in parts for image in part.astype(np.float64)):
        deviations = image.reshape(3, -1) - mean[:, None]
        of_mean.append(deviations.sum(1))
        of_variance.append((np.square(deviations) - variance[:, None]).sum(1))
    n = len(of_mean)
    scale = np.sqrt(n / (n - 1)) / len(values)
    root = [np.sqrt(np.square(terms).sum(0)) * scale for terms in (of_mean, of_variance)]
    return root[0] / np.sqrt(variance), root[1] / variance


@given(partitioned_values())
def test_merging_any_partition_in_any_order_gives_the_moments_of_all_values(case):
    parts, order = case
    values = flat(parts)
    merged = reduce(Moments.merge, (moments_of(parts[i]) for i in order))
    assert merged.count == len(values)
    assert merged.images == sum(map(len, parts))
    np.testing.assert_allclose(merged.mean, values.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(merged.variance, values.var(0), rtol=2e-5, atol=1e-9)


@given(partitioned_values())
def test_standard_errors_are_those_of_images_as_independent_draws(case):
    parts, order = case
    parts = [part.astype(np.float64) for part in parts]
    merged = reduce(Moments.merge, (moments_of(parts[i]) for i in order))
    found = [error.numpy() for error in merged.standard_errors()]
    if merged.images < 2:
        assert all(np.isinf(errors).all() for errors in found)
        return
    for errors, expected in zip(found, reference_errors(parts), strict=True):
        np.testing.assert_allclose(errors, expected, rtol=1e-6, atol=1e-7)


@given(partitioned_values(), st.randoms(use_true_random=False))
def test_order_and_partition_change_the_last_digit_at_most(case, random):
    parts, order = case
    parts = [part.astype(np.float64) for part in parts]
    forth = reduce(Moments.merge, (moments_of(parts[i]) for i in order))
    # merged as a tree, as processes do, in another order
    nodes = [moments_of(part) for part in parts]
    while len(nodes) > 1:
        random.shuffle(nodes)
        nodes.append(nodes.pop().merge(nodes.pop()))
    spread = forth.variance.sqrt()
    assert ((nodes[0].mean - forth.mean).abs() <= 1e-13 * (spread + forth.mean.abs())).all()
    np.testing.assert_allclose(nodes[0].variance, forth.variance, rtol=1e-12, atol=1e-20)


def test_merge_is_exact_in_float64():
    rng = np.random.default_rng(0)
    a, b = rng.normal(5, 1, (70, 1)), rng.normal(-2, 3, (30, 1))
    both = np.concatenate([a, b])
    merged = moments_of(a).merge(moments_of(b))
    np.testing.assert_allclose(merged.mean, [both.mean()], rtol=1e-13)
    np.testing.assert_allclose(merged.variance, [both.var()], rtol=1e-13)
    np.testing.assert_allclose(merged.unbiased_variance, [both.var(ddof=1)], rtol=1e-13)


def test_a_large_mean_costs_the_variance_no_digits():
    # float32 E[x^2] - mean^2 gives a negative variance here
    values = np.random.default_rng(0).normal(1000, 0.1, (64, 1, 8, 8)).astype(np.float32)
    expected = values.astype(np.float64).var()
    np.testing.assert_allclose(moments_of(values).variance, [expected], rtol=1e-4)


@pytest.mark.slow
def test_sums_in_float32_lose_nothing_over_many_batches(monkeypatch):
    # as on a device without float64: 20,000 batches, whose plain float32 sum is off by 1e-4
    monkeypatch.setattr("recal.calibration.moments._wide", lambda _device: torch.float32)
    rng = np.random.default_rng(0)
    batches = rng.normal(0.5, 1, (64, 8, 2)).astype(np.float32)
    moments = [moments_of(batch) for batch in batches]
    merged = reduce(Moments.merge, (moments[i % 64] for i in range(20_000)))
    assert merged.sums.dtype == torch.float32
    shares = np.bincount(np.arange(20_000) % 64)
    values = batches.astype(np.float64)
    mean = np.average(values.mean(1), axis=0, weights=shares)
    variance = np.average(np.square(values - mean).mean(1), axis=0, weights=shares)
    found = merged.on_cpu()
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_is_widened_before_anything_is_summed(dtype):
    values = torch.randn(64, 2, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = values.double()
    found = Moments.of(values)
    np.testing.assert_allclose(found.mean, expected.mean((0, 2, 3)), atol=1e-7)
    np.testing.assert_allclose(found.variance, expected.var((0, 2, 3), correction=0), rtol=1e-6)


def test_a_channel_that_does_not_vary_has_no_error():
    values = np.random.default_rng(0).normal(size=(5, 2, 3, 3))
    values[:, 1] = 0.25
    mean, log_variance = moments_of(values).standard_errors()
    assert (mean[1], log_variance[1]) == (0, 0)
    assert mean[0] > 0


@pytest.mark.parametrize("shape", [(5, 16, 8, 8), (3, 7, 5, 3), (2, 1, 1, 1), (4, 20, 1, 3)])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_channels_last_images_give_the_sums_of_float64(shape, shift):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + shift
    kernel = Moments.of(values.contiguous(memory_format=torch.channels_last)).about(torch.zeros(()))
    exact = Moments.of(values.double()).about(torch.zeros(()))
    np.testing.assert_allclose(kernel.sums, exact.sums, rtol=1e-13, atol=1e-10)


def test_independent_channels_are_counted():
    rng = np.random.default_rng(0)

    def count(values):
        batches = np.split(values, 8)
        return reduce(Moments.merge, map(moments_of, batches)).independent_channels()

    images = rng.normal(size=(1024, 32, 4, 1))
    of_mean, of_variance = count(images)
    assert 26 < of_mean <= 32
    assert 26 < of_variance <= 32
    together = np.repeat(images[:, :1], 32, axis=1)
    assert count(together) == pytest.approx((1, 1), abs=0.1)
    fours = np.repeat(images[:, :4], 8, axis=1)
    assert count(fours) == pytest.approx((4, 4), rel=0.2)
