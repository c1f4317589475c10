"""Metrics against independent float64 NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recal.runs.metrics import metrics_of, score


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


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 12), st.floats(0.1, 20))
def test_metrics_match_their_definitions(seed, n, k, scale):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (n, k)).astype(np.float32)
    labels = rng.integers(0, k, n)
    found = metrics_of(score(logits, labels))
    for name, value in reference(logits, labels).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-5, abs=2e-6), name


def test_ties_go_to_the_lower_class():
    columns = score(np.zeros((2, 3), np.float32), np.array([0, 2]))
    assert columns["prediction"].tolist() == [0, 0]
    assert columns["rank"].tolist() == [0, 2]


def test_huge_logits_overflow_nothing():
    columns = score(np.array([[1e30, 0.0]], np.float32), np.array([0]))
    assert columns["confidence"][0] == 1
    assert metrics_of(columns).brier == 0
