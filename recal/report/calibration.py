"""What an estimation of statistics found, as rows, tables and sentences, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recal.errors import listed
from recal.report.blocks import Grid
from recal.variant.statistics import BranchStatistics, EstimatedStatistics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from recal.report.blocks import Block
    from recal.variant.statistics import Bound
    from recal.variant.variant import Variant

BOUNDS: tuple[Bound, ...] = ("mean_bound", "log_variance_bound")


@dataclass(frozen=True, kw_only=True)
class WrittenVariant:
    """A variant and its file.

    Attributes:
        file: The file.
        variant: The variant.
    """

    file: Path
    variant: Variant

    @property
    def row(self) -> dict[str, object]:
        """The file and what is in it, for CSV and JSON; bounds are None if they are unknown."""
        found = self.variant.statistics
        estimated = found if isinstance(found, EstimatedStatistics) else None
        known = estimated if estimated and estimated.errors else None
        return {
            "file": str(self.file),
            "label": self.variant.label,
            "affine": self.variant.affine,
            "layers": len(self.variant.layers),
            "policy": estimated.policy if estimated else None,
            "images": estimated.images if estimated else None,
            **{name: known.largest(name)[0] if known else None for name in BOUNDS},
        }


def estimation_blocks(variant: Variant, tolerance: float | None = None) -> list[Block]:
    """Return how a variant's statistics were estimated, and how precise they are."""
    statistics = variant.estimated
    bounds = "One image gives no error bounds."
    if statistics.errors:
        (mean, mean_layer), (variance, variance_layer) = map(statistics.largest, BOUNDS)
        bounds = (
            f"95 % error bounds: means within {mean:.4f} standard deviations ({mean_layer}), "
            f"variances within {variance:.2%} ({variance_layer}); other layers are more precise."
        )
    return [
        f"Statistics of {len(variant.layers)} layers from {statistics.images:,} images "
        f"({_method(statistics)}).",
        bounds,
        *_stopped([variant], tolerance),
    ]


def matrix_blocks(written: Sequence[WrittenVariant], tolerance: float | None) -> list[Block]:
    """Return one table of the variants of a matrix, and how their statistics were estimated."""
    rows = []
    for item in written:
        statistics = item.variant.statistics
        cells: tuple[str, ...] = ("", "", "", "")
        if isinstance(statistics, EstimatedStatistics):
            bounds = (f"{statistics.largest(name)[0]:.4f}" for name in BOUNDS)
            cells = (f"{statistics.policy} images", f"{statistics.images:,}", *bounds)
        elif isinstance(statistics, BranchStatistics):
            cells = (f"stored in {statistics.branch}", "", "", "")
        rows.append((item.file.name, item.variant.affine, *cells))
    header = ("variant", "affine", "statistics", "images", "95 % bound, mean", "variance")
    estimated = _estimated([item.variant for item in written])
    return [
        Grid("", header, tuple(rows), left=(0, 1, 2)),
        f"{_method(estimated[0].estimated)}. Bounds are those of the least precise layer: of the "
        "mean in standard deviations, of the variance relative.",
        *_stopped(estimated, tolerance),
    ]


def calibration_warnings(variants: Sequence[Variant], tolerance: float | None) -> list[str]:
    """Return warnings about images left out, layers without data, and a tolerance out of reach."""
    statistics, found = variants[0].estimated, _largest(variants)
    skipped = statistics.skipped
    warnings = [
        f"layer {layer} saw no data and keeps its stored statistics."
        for layer in statistics.layers_without_data
    ]
    if skipped:
        warnings.insert(
            0, f"{len(skipped):,} images cannot be decoded and were left out: {listed(skipped)}."
        )
    if tolerance is not None and found > tolerance:
        warnings.append(
            f"tolerance {tolerance:g} is not reached: all {statistics.images:,} images give a "
            f"bound of {found:.4f}. Raise --samples, or give more images."
        )
    return warnings


def _estimated(variants: Sequence[Variant]) -> list[Variant]:
    return [v for v in variants if isinstance(v.statistics, EstimatedStatistics)]


def _stopped(variants: Sequence[Variant], tolerance: float | None) -> list[Block]:
    found = _largest(variants)
    if tolerance is None or found > tolerance:
        return []
    images = variants[0].estimated.images
    return [f"Stopped after {images:,} images: bound {found:.4f}, tolerance {tolerance:g}."]


def _largest(variants: Sequence[Variant]) -> float:
    return max(variant.estimated.largest(name)[0] for variant in variants for name in BOUNDS)


def _method(statistics: EstimatedStatistics) -> str:
    passes = ""
    if statistics.estimator == "consistent":
        passes = f", {statistics.passes} passes" if statistics.passes > 1 else ", 1 pass"
    return (
        f"{statistics.estimator}, batches of {statistics.batch_size}, seed {statistics.seed}"
        f"{passes}"
    )
