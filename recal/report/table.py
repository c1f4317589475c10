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


def summary_table(document: Mapping[str, Any]) -> Table:
    """Lay out a run's summary: accuracies in percent, differences from the first target."""
    rows = document["summary"]
    has_corrupted = any(row["corrupted_accuracy"] is not None for row in rows)
    several = len(rows) > 1
    table = Table(title=document["title"], title_justify="left", box=None, pad_edge=False)
    table.add_column("target")
    table.add_column("clean", justify="right")
    if several:
        table.add_column("difference [95 %]", justify="right")
    if has_corrupted:
        table.add_column("corrupted", justify="right")
        if several:
            table.add_column("difference [95 %]", justify="right")
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
    targets = [row["target"] for row in document["summary"]]
    table = Table(box=None, pad_edge=False)
    table.add_column("corruption")
    for row in document["summary"]:
        table.add_column(row["label"], justify="right")
    names = dict.fromkeys(c["corruption"] for c in document["cells"] if c["corruption"] is not None)
    for name in names:
        means = []
        for target in targets:
            values = [
                cell["accuracy"]
                for cell in document["cells"]
                if cell["target"] == target and cell["corruption"] == name
            ]
            means.append(sum(values) / len(values) if values else None)
        table.add_row(name, *(percent(mean) for mean in means))
    return table
