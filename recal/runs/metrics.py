"""Per-image scores of a batch of logits, and the metrics of a cell computed from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


ECE_BINS = 15
METRICS = ("accuracy", "top5_accuracy", "nll", "brier", "ece")


def score(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
    """Reduce logits to what every metric can be computed from.

    Args:
        logits: (N, K), finite.
        labels: (N,), 0 to K - 1.

    Returns:
        Columns of length N: `prediction` (the first of the largest logits), `rank` (of the label: 0
        is top-1), `confidence` (softmax of the prediction), `nll` (negative log-likelihood of the
        label, in nats), `sum_p2` (sum of the squared probabilities).
    """
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    log_p = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    prediction = values.argmax(axis=1)
    of_label = values[rows, labels][:, None]
    # ties go to the lower class, as argmax has it
    before = (values == of_label) & (np.arange(values.shape[1]) < labels[:, None])
    return {
        "prediction": prediction.astype(np.int32),
        "rank": ((values > of_label) | before).sum(axis=1).astype(np.int32),
        "confidence": np.exp(log_p[rows, prediction]).astype(np.float32),
        "nll": -log_p[rows, labels].astype(np.float32),
        "sum_p2": np.exp(2 * log_p).sum(axis=1).astype(np.float32),
    }


def summarise(columns: Mapping[str, NDArray[np.generic]]) -> dict[str, float]:
    """Compute the metrics of one cell.

    Returns:
        `accuracy`, `top5_accuracy`, `nll`, `brier` (sum over classes, 0 to 2) and `ece`, all but
        nll and brier fractions in [0, 1].
    """
    means = per_image(columns).mean(axis=0)
    gap = np.bincount(confidence_bins(columns), weights=confidence_gaps(columns))
    ece = np.abs(gap).sum() / len(columns["rank"])
    return dict(zip(METRICS, [*means.tolist(), float(ece)], strict=True))


def per_image(columns: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
    """Return what all metrics but the calibration error are means of: (N, 4), in their order."""
    rank, nll = columns["rank"].astype(np.int64), columns["nll"].astype(np.float64)
    brier = columns["sum_p2"].astype(np.float64) - 2 * np.exp(-nll) + 1
    return np.stack([rank == 0, rank < 5, nll, brier], axis=1)


def confidence_bins(columns: Mapping[str, NDArray[np.generic]]) -> NDArray[np.int64]:
    """Return each image's bin of confidence: 15 of equal width, (lo, hi]."""
    confidence = columns["confidence"].astype(np.float64)
    return np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)


def confidence_gaps(columns: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
    """Return each image's confidence, less 1 where it is right.

    The expected calibration error is the sum over bins of the absolute sum of these, divided by N.

    Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 2.
    """
    correct = (columns["rank"] == 0).astype(np.float64)
    gaps: NDArray[np.float64] = columns["confidence"].astype(np.float64) - correct
    return gaps
