"""The accuracy-robustness trade-off as a picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Okabe and Ito's colours, which people with any colour vision can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def trade_off_figure(document: Mapping[str, Any]) -> Figure:
    """Draw clean against corrupted accuracy, one point a target.

    Bars are the 95 % intervals of the differences from the first target, on the same images.

    Args:
        document: A run's summary with clean and corrupted accuracies.
    """
    rows = [row for row in document["summary"] if _has_both(row)]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for i, row in enumerate(rows):
        x, y = 100 * row["clean_accuracy"], 100 * row["corrupted_accuracy"]
        axes.errorbar(
            x, y,
            xerr=_bar(row["clean_difference"]), yerr=_bar(row["corrupted_difference"]),
            fmt=MARKERS[i % len(MARKERS)], color=COLOURS[i % len(COLOURS)], markersize=8,
            elinewidth=1, capsize=3, label=row["label"],
        )  # fmt: skip
    axes.margins(0.15)
    axes.set_xlabel("clean accuracy, %")
    axes.set_ylabel("corrupted accuracy, mean over cells, %")
    axes.set_title(document["title"], loc="left", fontsize=10)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    if len(rows) > 1:
        note = f"bars: 95 % intervals of the difference from {rows[0]['label']}, same images"
        axes.annotate(
            note, (0, 0), (0, -38), xycoords="axes fraction", textcoords="offset points",
            fontsize=8, color="#555555", va="top",
        )  # fmt: skip
    return figure


def has_trade_off(document: Mapping[str, Any]) -> bool:
    """Tell whether any target has both a clean and a corrupted accuracy."""
    return any(_has_both(row) for row in document["summary"])


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure for a README."""
    figure.savefig(path, dpi=150, metadata={"Software": None})


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG, the same text for the same figure."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "recal", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _has_both(row: Mapping[str, Any]) -> bool:
    return row["clean_accuracy"] is not None and row["corrupted_accuracy"] is not None


def _bar(difference: Mapping[str, float] | None) -> list[list[float]] | None:
    if difference is None:
        return None
    low = difference["value"] - difference["low"]
    high = difference["high"] - difference["value"]
    return [[100 * max(low, 0.0)], [100 * max(high, 0.0)]]
