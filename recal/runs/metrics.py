"""Per-image scores of a batch of logits, and the metrics of a cell computed from them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from recal.schema import Record

ECE_BINS = 15


class Metrics(Record, frozen=True, kw_only=True):
    """Metrics over a set of images.

    Attributes:
        accuracy: Share of images whose label is the prediction.
        top5_accuracy: Share of images whose label is among the five largest logits.
        nll: Mean negative log-likelihood of the labels, in nats.
        brier: Mean Brier score, summed over classes, 0 to 2.
        ece: Expected calibration error, in [0, 1].
    """

    accuracy: float
    top5_accuracy: float
    nll: float
    brier: float
    ece: float


METRICS = Metrics.__struct_fields__


def score(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
    """Reduce logits to columns from which every metric can be computed.

    Args:
        logits: (N, K), finite.
        labels: (N,), 0 to K - 1.

    Returns:
        Columns of length N: `prediction` (the first of the largest logits), `rank` (rank of the
        label; 0 is top-1), `confidence` (softmax of the prediction), `nll` (negative log-likelihood
        of the label, in nats), `sum_p2` (sum of the squared probabilities).
    """
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    log_p = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    prediction = values.argmax(axis=1)
    of_label = values[rows, labels][:, None]
    # ties go to the lower class, as in argmax
    before = (values == of_label) & (np.arange(values.shape[1]) < labels[:, None])
    return {
        "prediction": prediction.astype(np.int32),
        "rank": ((values > of_label) | before).sum(axis=1).astype(np.int32),
        "confidence": np.exp(log_p[rows, prediction]).astype(np.float32),
        "nll": -log_p[rows, labels].astype(np.float32),
        "sum_p2": np.exp(2 * log_p).sum(axis=1).astype(np.float32),
    }


def metrics_of(columns: Mapping[str, NDArray[np.generic]]) -> Metrics:
    """Compute the metrics of columns as `score` returns them."""
    accuracy, top5_accuracy, nll, brier = per_image(columns).mean(axis=0).tolist()
    gap = np.bincount(confidence_bins(columns), weights=confidence_gaps(columns))
    ece = float(np.abs(gap).sum() / len(columns["rank"]))
    return Metrics(accuracy=accuracy, top5_accuracy=top5_accuracy, nll=nll, brier=brier, ece=ece)


def per_image(columns: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
    """Return the values whose means are the first four of METRICS, float64 (N, 4)."""
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
