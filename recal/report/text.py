"""What the commands print: tables in the layout that is asked for, and sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recal.report.tables import (
    calibration_table,
    comparison_table,
    conclusion,
    corruption_table,
    other_metrics_table,
    selection_sentences,
    selection_table,
    summary_table,
    verdicts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recal.report.tables import Layout


def run_text(document: Mapping[str, Any], layout: Layout) -> str:
    """Return a run's summary."""
    grids = [summary_table(document), calibration_table(document), corruption_table(document)]
    notes = [
        *verdicts(document),
        f"Accuracies and ECE in percent, NLL in nats; ± half the width of the 95 % interval. "
        f"By {document['execution']}.",
    ]
    return _joined([layout.table(grid) for grid in grids if grid.rows], notes, document, layout)


def comparison_text(document: Mapping[str, Any], layout: Layout) -> str:
    """Return what a comparison found."""
    blocks = []
    for pair in document["pairs"]:
        blocks += [
            layout.table(comparison_table(document, pair)),
            layout.table(other_metrics_table(pair)),
        ]
    notes = [
        *(conclusion(pair) for pair in document["pairs"]),
        "Differences in percentage points with 95 % intervals of a paired bootstrap over images; "
        "beyond noise at 5 %: McNemar's exact test for one cell, Student's for each image's mean "
        "over several, corrected by Holm.",
    ]
    return _joined(blocks, notes, document, layout)


def selection_text(document: Mapping[str, Any], layout: Layout) -> str:
    """Return what was chosen."""
    return _joined(
        [layout.table(selection_table(document))], selection_sentences(document), document, layout
    )


def _joined(
    blocks: list[str], notes: list[str], document: Mapping[str, Any], layout: Layout
) -> str:
    if document["provenance"]:
        notes = [*notes, f"Corrupted images: {document['provenance']}."]
    return "\n\n".join([*blocks, "\n".join(layout.bullet + note for note in notes)])
