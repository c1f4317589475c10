"""The summary of a run as tables, sentences and rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recal.report.blocks import Block, Grid
from recal.report.numbers import points, value_of, verdict

if TYPE_CHECKING:
    from recal.runs.summary import Summary


def summary_blocks(summary: Summary) -> list[Block]:
    """Return the tables and sentences of `recal eval`."""
    grids = [summary_table(summary), calibration_table(summary), part_table(summary, "corruption")]
    notes = [
        *verdicts(summary),
        "Accuracies and ECE in percent, NLL in nats; ± half the width of the 95 % interval. "
        f"Computed by {summary.execution}.",
    ]
    if summary.provenance:
        notes.append(f"Corrupted images: {summary.provenance}.")
    return [*(grid for grid in grids if grid.rows), *notes]


def extent(summary: Summary) -> str:
    """Return on how much of a suite the numbers are based."""
    done, whole = summary.cells_done, summary.cells_of_suite
    cells = f"{done} of {whole} cells" if done < whole else f"{done} cell{'s' * (done > 1)}"
    return f"{summary.images:,} images, {cells}"


def summary_table(summary: Summary) -> Grid:
    """Return accuracies and mCE in percent with half the width of their intervals.

    Differences are from the first target, in percentage points. The title says where the targets
    saw test data.
    """
    rows = summary.targets
    several = len(rows) > 1
    header, columns = ["target"], [[row.label for row in rows]]
    for part in ("clean", "corrupted"):
        if part == "corrupted" and all(row.corrupted_accuracy is None for row in rows):
            continue
        header.append(part)
        columns.append([value_of(row, f"{part}_accuracy") for row in rows])
        if several:
            header.append(f"vs {rows[0].label} [95 %]")
            columns.append([points(getattr(row, f"{part}_difference")) for row in rows])
    for name, title in (("mce", "mCE"), ("relative_mce", "relative mCE")):
        if any(getattr(row, name) is not None for row in rows):
            header.append(title)
            columns.append([value_of(row, name) for row in rows])
    adapted = sorted({row.adaptation for row in rows if row.adaptation is not None})
    mark = f"; saw test data: {', '.join(adapted)}" if adapted else ""
    title = f"{summary.title} ({extent(summary)}{mark})"
    return Grid(title, tuple(header), tuple(zip(*columns, strict=True)))


def calibration_table(summary: Summary) -> Grid:
    """Return how well calibrated probabilities are: ECE in percent, NLL in nats, Brier score."""
    titles = {
        f"{part}_{metric}": f"{part} {title}"
        for part in ("clean", "corrupted")
        for metric, title in (("ece", "ECE"), ("nll", "NLL"), ("brier", "Brier"))
        if any(getattr(row, f"{part}_{metric}") is not None for row in summary.targets)
    }
    rows = [(row.label, *(value_of(row, name) for name in titles)) for row in summary.targets]
    return Grid("", ("target", *titles.values()), tuple(rows))


def part_table(summary: Summary, by: str) -> Grid:
    """Return accuracies in percent, a column for each target.

    Args:
        summary: The summary.
        by: What the rows are: `corruption`, `group` (kind of corruptions) or `severity`.
    """
    found: dict[str, dict[str, str]] = {}
    for row in summary.parts:
        if row.by == by:
            name = row.part.replace("severity_", "severity ")
            found.setdefault(name, {})[row.target] = value_of(row, "accuracy")
    rows = [
        (name, *(of.get(row.target, "-") for row in summary.targets)) for name, of in found.items()
    ]
    return Grid("", (by, *(row.label for row in summary.targets)), tuple(rows))


def verdicts(summary: Summary) -> list[str]:
    """Return a sentence for every target but the first: whether it differs beyond noise."""
    first, *others = summary.targets
    sentences = []
    for row in others:
        differences = {"clean": row.clean_difference, "corrupted": row.corrupted_difference}
        words = [f"{part} {verdict(found)}" for part, found in differences.items() if found]
        if words:
            sentences.append(f"{row.label} against {first.label}: {', '.join(words)}.")
    return sentences
