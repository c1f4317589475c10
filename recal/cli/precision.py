"""What a variant's record says of its precision, in words; needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

BOUNDS = ("mean_bound", "log_variance_bound")
NAMED = 3


def largest(statistics: Mapping[str, Any], kind: str) -> tuple[float, str]:
    """Return the largest of the layers' errors of a kind, and the layer's path."""
    return max((layer[kind], name) for name, layer in statistics["errors"].items())


def precision(statistics: Mapping[str, Any]) -> str:
    """Return a sentence on the least precise layers."""
    (mean, mean_layer), (variance, variance_layer) = (largest(statistics, b) for b in BOUNDS)
    return (
        f"95 % error bounds: means within {mean:.4f} standard deviations ({mean_layer}), "
        f"variances within {variance:.2%} ({variance_layer}); other layers are more precise."
    )


def doubts(statistics: Mapping[str, Any]) -> list[str]:
    """Return sentences on images that were left out, and on layers that saw none."""
    skipped = statistics["skipped"]
    more = " and more" if len(skipped) > NAMED else ""
    left_out = (
        f"{len(skipped):,} images cannot be decoded and were left out: "
        f"{', '.join(skipped[:NAMED])}{more}."
    )
    return [left_out] * bool(skipped) + [
        f"layer {layer} saw no data and keeps its stored statistics."
        for layer in statistics["layers_without_data"]
    ]
