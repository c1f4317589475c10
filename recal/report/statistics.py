"""BatchNorm statistics as tables, sentences and rows: inspected, and estimated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recal.errors import listed
from recal.networks.feeding import describe_input
from recal.policies.prepared import USED_WHOLE
from recal.report.blocks import Block, Facts, Grid
from recal.variant.statistics import Bound, BranchStatistics, EstimatedStatistics

if TYPE_CHECKING:
    from recal.calibration.feeding import Feeding
    from recal.inspection.distances import BranchReport, Inspection
    from recal.inspection.scores import BranchScore
    from recal.variant.variant import Variant


BAR = 20


def inspection_blocks(
    inspection: Inspection, scores: Sequence[BranchScore] = (), feeding: Feeding | None = None
) -> list[Block]:
    """Return the facts, the distances between branches, and how well each branch does."""
    blocks: list[Block] = [_facts(inspection)]
    finite = [d.symmetric_kl for b in inspection.branches for d in b.distances]
    largest = max((value for value in finite if math.isfinite(value)), default=0.0)
    blocks += [_distances(branch, largest) for branch in inspection.branches if branch.distances]
    if len(blocks) > 1:
        blocks.append(
            "mean: shift in standard deviations; log var: log-variance ratio; affine: relative "
            "distance; sym. KL: symmetric KL divergence in nats."
        )
    if feeding is not None:
        blocks += _fits(feeding)
    if scores:
        blocks.append(_scores(scores))
    if not inspection.findings:
        blocks.append("No warnings.")
    return blocks


def inspection_document(
    inspection: Inspection, scores: Sequence[BranchScore] = (), feeding: Feeding | None = None
) -> dict[str, Any]:
    """Return the content of `recal inspect --json`."""
    warnings = [finding.sentence for finding in inspection.findings]
    document = {**asdict(inspection), "warnings": warnings}
    if feeding is not None:
        document["fits"] = asdict(feeding)
    by_name = {score.branch: score for score in scores}
    for branch in document["branches"]:
        if branch["name"] in by_name:
            score = by_name[branch["name"]]
            branch["score"] = {
                ("furthest_layer" if key == "furthest" else key): value
                for key, value in asdict(score).items()
                if key != "branch"
            }
    return document


def distance_rows(inspection: Inspection) -> list[dict[str, object]]:
    """Return one row for each layer of each auxiliary branch, for CSV."""
    return [
        {"branch": branch.name, **asdict(distance)}
        for branch in inspection.branches
        for distance in branch.distances
    ]


def _facts(inspection: Inspection) -> Facts:
    main = inspection.branches[0]
    rows = {
        "file": inspection.path,
        "layout": inspection.layout + (f" ({inspection.writer})" if inspection.writer else ""),
        "architecture": inspection.architecture or "unknown; pass --arch to build it",
        **({"input": inspection.feeding} if inspection.feeding else {}),
        "branches": ", ".join(branch.name for branch in inspection.branches),
        "roles": inspection.roles,
        "BatchNorm": f"{main.layers} layers, {main.channels:,} channels",
        "other weights": f"{inspection.parameters:,}, sha256 {inspection.weights_sha256[:12]}",
    }
    return Facts((*rows.items(), *(("note", text) for text in inspection.notes)))


def _distances(branch: BranchReport, largest: float) -> Grid:
    rows = []
    for d in branch.distances:
        share = d.symmetric_kl / largest if largest else 0.0
        bar = "█" * math.ceil(BAR * share) if math.isfinite(share) else ""
        affine = "-" if d.affine_distance is None else f"{d.affine_distance:.3f}"
        numbers = (f"{value:.3f}" for value in (d.mean_shift, d.log_variance_ratio))
        rows.append((d.layer, *numbers, affine, f"{d.symmetric_kl:.3f}", bar.ljust(BAR)))
    header = ("layer", "mean", "log var", "affine", "sym. KL", "")
    return Grid(f"{branch.name} against main", header, tuple(rows))


def _fits(feeding: Feeding) -> list[Block]:
    """Return how well the stored statistics fit images under the usual normalisations."""
    if not feeding.fits:
        return [feeding.verdict]
    names = tuple(feeding.fits[0].distances)
    rows = [
        (fit.what, describe_input(fit.normalisation), *(f"{fit.distances[n]:.4f}" for n in names))
        for fit in feeding.fits
    ]
    title = f"input: statistics of {feeding.layer} against {feeding.images:,} images"
    return [
        Grid(title, ("normalisation", "numbers", *names), tuple(rows), left=(0, 1)),
        f"{feeding.verdict[0].upper()}{feeding.verdict[1:]} Values are squared Hellinger "
        "distances, from 0 to 1.",
    ]


def _scores(scores: Sequence[BranchScore]) -> Facts:
    rows = []
    for score in scores:
        accuracy = "" if score.accuracy is None else f"accuracy {score.accuracy:.2%}, "
        rows.append(
            f"{score.branch}: {accuracy}statistics {score.data_distance:.4f} nats from those of "
            f"the images (median over layers; {score.furthest_distance:.4f} at {score.furthest})"
        )
    best = min(scores, key=lambda score: (-(score.accuracy or 0.0), score.data_distance))
    if best.branch != "main":
        rows.append(f"{best.branch} fits clean images better than main; see --roles")
    return Facts(tuple(("", row) for row in rows), f"on {scores[0].images:,} clean images")


BOUNDS: tuple[Bound, ...] = ("mean_bound", "log_variance_bound")


def variant_row(file: Path, variant: Variant) -> dict[str, object]:
    """Return what is in a variant's file, for CSV and JSON; bounds are None if they are unknown."""
    found = variant.statistics
    estimated = found if isinstance(found, EstimatedStatistics) else None
    known = estimated if estimated and estimated.errors else None
    return {
        "file": str(file),
        "label": variant.label,
        "affine": variant.affine,
        "layers": len(variant.layers),
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
        f"Statistics of {_which(variant)} from {statistics.images:,} images "
        f"({_method(statistics)}).",
        bounds,
        *_stopped([variant], tolerance),
    ]


def _which(variant: Variant) -> str:
    estimated, count = variant.estimated, len(variant.layers)
    chosen = estimated.layers or variant.layers
    seen = [layer for layer in chosen if layer not in estimated.layers_without_data]
    named = f" ({listed(seen)})" if estimated.layers else ""
    return f"{len(seen)} of {count} layers{named}" if len(seen) < count else f"{count} layers"


def matrix_blocks(variants: Mapping[Path, Variant], tolerance: float | None) -> list[Block]:
    """Return one table of the variants of a matrix, and how their statistics were estimated."""
    rows = []
    for file, variant in variants.items():
        statistics = variant.statistics
        cells: tuple[str, ...] = ("", "", "", "")
        if isinstance(statistics, EstimatedStatistics):
            bounds = (f"{statistics.largest(name)[0]:.4f}" for name in BOUNDS)
            cells = (f"{statistics.policy} images", f"{statistics.images:,}", *bounds)
        elif isinstance(statistics, BranchStatistics):
            cells = (f"stored in {statistics.branch}", "", "", "")
        rows.append((file.name, variant.affine, *cells))
    header = ("variant", "affine", "statistics", "images", "95 % bound, mean", "variance")
    estimated = _estimated(variants.values())
    return [
        Grid("", header, tuple(rows), left=(0, 1, 2)),
        f"{_method(estimated[0].estimated)}. Bounds are those of the least precise layer: of the "
        "mean in standard deviations, of the variance relative.",
        *_stopped(estimated, tolerance),
    ]


def calibration_warnings(variants: Sequence[Variant], tolerance: float | None) -> list[str]:
    """Return warnings about images, layers without data, and a tolerance out of reach."""
    variants = _estimated(variants)
    if not variants:
        return []
    statistics, found, warnings = variants[0].estimated, _largest(variants), []
    if any(variant.estimated.whole for variant in variants):
        warnings.append(USED_WHOLE)
    if skipped := statistics.skipped:
        warnings.append(
            f"{len(skipped):,} images cannot be decoded and were left out: {listed(skipped)}."
        )
    warnings += [
        f"layer {layer} keeps its stored statistics: it saw no data, or does not normalise by them."
        for layer in statistics.layers_without_data
    ]
    if tolerance is not None and found > tolerance:
        warnings.append(
            f"tolerance {tolerance:g} is not reached: all {statistics.images:,} images give a "
            f"bound of {found:.4f}. Raise --samples, or give more images."
        )
    return warnings


def _estimated(variants: Iterable[Variant]) -> list[Variant]:
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
    several = "es" * (statistics.passes > 1)
    passes = f", {statistics.passes} pass{several}" if statistics.estimator == "consistent" else ""
    batches = f"batches of {statistics.batch_size}, seed {statistics.seed}"
    return f"{statistics.estimator}, {batches}{passes}"
