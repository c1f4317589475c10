"""The summary of a run as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping


def percent(value: float | None) -> str:
    """Format a fraction for people."""
    return "-" if value is None else f"{100 * value:.2f}"


def points(difference: Mapping[str, float] | None) -> str:
    """Format a difference of fractions with its interval, in percentage points."""
    if difference is None:
        return ""
    low, value, high = (100 * difference[key] for key in ("low", "value", "high"))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def extent(document: Mapping[str, Any]) -> str:
    """Say on how much of a suite a run's numbers rest."""
    done, whole = document["cells_done"], document["cells_of_suite"]
    cells = f"{done} of {whole} cells" if done < whole else f"{done} cell{'s' * (done > 1)}"
    return f"{document['images']:,} images, {cells}"


def summary_table(document: Mapping[str, Any]) -> Table:
    """Lay out a run's summary: accuracies in percent, differences from the first target."""
    rows = document["summary"]
    versus = f"vs {rows[0]['label']} [95 %]"
    has_corrupted = any(row["corrupted_accuracy"] is not None for row in rows)
    several = len(rows) > 1
    title = f"{document['title']} ({extent(document)})"
    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    table.add_column("target")
    table.add_column("clean", justify="right")
    if several:
        table.add_column(versus, justify="right")
    if has_corrupted:
        table.add_column("corrupted", justify="right")
        if several:
            table.add_column(versus, justify="right")
    for row in rows:
        cells = [row["label"], percent(row["clean_accuracy"])]
        if several:
            cells.append(points(row["clean_difference"]))
        if has_corrupted:
            cells.append(percent(row["corrupted_accuracy"]))
            if several:
                cells.append(points(row["corrupted_difference"]))
        table.add_row(*cells)
    return table


def corruption_table(document: Mapping[str, Any]) -> Table:
    """Lay out the accuracy per corruption, the mean over severities, in percent."""
    table = Table(box=None, pad_edge=False)
    table.add_column("corruption")
    for row in document["summary"]:
        table.add_column(row["label"], justify="right")
    for name, means in mean_accuracies(document).items():
        table.add_row(name, *(percent(mean) for mean in means))
    return table


def mean_accuracies(document: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Return for each corruption every target's accuracy, the mean over severities."""
    targets = [row["target"] for row in document["summary"]]
    accuracies: dict[str, dict[str, list[float]]] = {}
    for cell in document["cells"]:
        if cell["corruption"] is not None:
            of_targets = accuracies.setdefault(cell["corruption"], {})
            of_targets.setdefault(cell["target"], []).append(cell["accuracy"])
    return {
        name: [sum(v) / len(v) if (v := of_targets.get(t)) else None for t in targets]
        for name, of_targets in accuracies.items()
    }
