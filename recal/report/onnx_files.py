"""What is printed about ONNX files: timings and predictions, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recal.report.blocks import Grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recal.onnx_file.bench import Timing
    from recal.onnx_file.predict import Prediction
    from recal.report.blocks import Block


def timing_blocks(timings: Sequence[Timing]) -> list[Block]:
    """Return one table of timings."""
    rows = [
        (
            str(t.model), str(t.threads or "all"), str(t.batch), f"{t.p50:.2f}", f"{t.p90:.2f}",
            f"{t.p99:.2f}", f"{t.throughput:,.0f}", f"{t.ratio:.2f}",
        )
        for t in timings
    ]  # fmt: skip
    header = ("model", "threads", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "ratio")
    return [Grid("", header, tuple(rows))]


def prediction_sentence(prediction: Prediction) -> str:
    """Return the classes of an image, the most probable first."""
    pairs = zip(prediction.names, prediction.probabilities, strict=True)
    return f"{prediction.image}: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in pairs)


def prediction_rows(prediction: Prediction) -> list[dict[str, object]]:
    """Return one row for each class of an image, the most probable first."""
    triples = zip(prediction.indices, prediction.names, prediction.probabilities, strict=True)
    return [
        {
            "image": str(prediction.image),
            "rank": rank,
            "index": index,
            "name": name,
            "probability": probability,
        }
        for rank, (index, name, probability) in enumerate(triples, start=1)
    ]


def prediction_document(prediction: Prediction) -> dict[str, object]:
    """Return an image and its classes for JSON."""
    keys = ("index", "name", "probability")
    classes = [{key: row[key] for key in keys} for row in prediction_rows(prediction)]
    return {"image": str(prediction.image), "classes": classes}
