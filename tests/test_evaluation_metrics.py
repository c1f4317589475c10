"""Metrics against independent float64 NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recal.evaluation.comparison import paired_difference
from recal.evaluation.metrics import score, summarise


def reference(logits, labels):
    """The definitions, written as plainly as can be."""
    p = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(1, keepdims=True)
    n, k = p.shape
    onehot = np.eye(k)[labels]
    order = np.argsort(-logits, axis=1, kind="stable")
    ranks = np.array([list(order[i]).index(labels[i]) for i in range(n)])
    confidence, right = p.max(1), order[:, 0] == labels
    ece = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return {
        "accuracy": (ranks == 0).mean(),
        "top5_accuracy": (ranks < 5).mean(),
        "nll": -np.log(p[np.arange(n), labels]).mean(),
        "brier": ((p - onehot) ** 2).sum(1).mean(),
        "ece": ece,
    }


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 12), st.floats(0.1, 20))
def test_metrics_match_their_definitions(seed, n, k, scale):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (n, k)).astype(np.float32)
    labels = rng.integers(0, k, n)
    found = summarise(score(logits, labels))
    for name, value in reference(logits, labels).items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=2e-6), name


def test_ties_go_to_the_lower_class():
    columns = score(np.zeros((2, 3), np.float32), np.array([0, 2]))
    assert columns["prediction"].tolist() == [0, 0]
    assert columns["rank"].tolist() == [0, 2]


def test_huge_logits_overflow_nothing():
    columns = score(np.array([[1e30, 0.0]], np.float32), np.array([0]))
    assert columns["confidence"][0] == 1
    assert summarise(columns)["brier"] == 0


def test_paired_interval_agrees_with_the_normal_one():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 4000)) < np.array([0.7, 0.75])[:, None, None]
    found = paired_difference(list(a), list(b))
    difference = b.mean(0) - a.mean(0)
    half = 1.96 * difference.std() / np.sqrt(4000)
    assert found.value == pytest.approx(difference.mean())
    assert found.low == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.1 * half)
    assert found.beyond_noise


def test_interval_covers_no_difference_in_about_95_of_100_cases():
    rng = np.random.default_rng(1)
    covered = sum(
        not paired_difference(*[[c] for c in rng.random((2, 200)) < 0.8], seed=i).beyond_noise
        for i in range(300)
    )
    # binomial(300, 0.95): standard deviation 3.8
    assert 270 <= covered <= 298


def test_equal_targets_have_no_difference():
    right = [np.array([True, False, True])]
    found = paired_difference(right, right)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert not found.beyond_noise
