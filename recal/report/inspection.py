"""What an inspection of a checkpoint found, as facts, tables and sentences."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from recal.report.blocks import Facts, Grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recal.inspection.distances import BranchReport, Inspection
    from recal.inspection.scores import BranchScore
    from recal.report.blocks import Block

BAR = 20


def inspection_blocks(inspection: Inspection, scores: Sequence[BranchScore] = ()) -> list[Block]:
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
    blocks += _scores(scores)
    if not inspection.findings:
        blocks.append("No warnings.")
    return blocks


def inspection_document(
    inspection: Inspection, scores: Sequence[BranchScore] = ()
) -> dict[str, Any]:
    """Return the content of `recal inspect --json`."""
    warnings = [finding.sentence for finding in inspection.findings]
    document = {**asdict(inspection), "warnings": warnings}
    by_name = {score.branch: score for score in scores}
    for branch in document["branches"]:
        if branch["name"] in by_name:
            score = by_name[branch["name"]]
            branch["score"] = {
                "images": score.images,
                "accuracy": score.accuracy,
                "data_distance": score.data_distance,
                "furthest_layer": score.furthest,
                "furthest_distance": score.furthest_distance,
            }
    return document


def distance_rows(inspection: Inspection) -> list[dict[str, object]]:
    """Return one row for each layer of each auxiliary branch, for CSV."""
    return [
        {
            "branch": branch.name,
            "layer": d.layer,
            "mean_shift": d.mean_shift,
            "log_variance_ratio": d.log_variance_ratio,
            "symmetric_kl": d.symmetric_kl,
            "affine_distance": d.affine_distance,
        }
        for branch in inspection.branches
        for d in branch.distances
    ]


def _facts(inspection: Inspection) -> Facts:
    main = inspection.branches[0]
    writer = f" ({inspection.writer})" if inspection.writer else ""
    weights = f"{inspection.parameters:,}, sha256 {inspection.weights_sha256[:12]}"
    return Facts(
        (
            ("file", inspection.path),
            ("layout", f"{inspection.layout}{writer}"),
            ("architecture", inspection.architecture or "unknown; pass --arch to build it"),
            ("branches", ", ".join(branch.name for branch in inspection.branches)),
            ("roles", inspection.roles),
            ("BatchNorm", f"{main.layers} layers, {main.channels:,} channels"),
            ("other weights", weights),
            *(("note", text) for text in inspection.notes),
        )
    )


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


def _scores(scores: Sequence[BranchScore]) -> list[Block]:
    if not scores:
        return []
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
    title = f"on {scores[0].images:,} clean images"
    return [Facts(tuple(("", row) for row in rows), title)]
