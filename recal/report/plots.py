"""A picture of how far the branches of a checkpoint are apart."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from recal.errors import UsageError
from recal.files import whole_file
from recal.report.tables import compared_parts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from recal.inspection.distances import Inspection


# Okabe and Ito's colours, which people with any colour vision can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def trade_off_figure(document: Mapping[str, Any]) -> Figure:
    """Draw clean against corrupted accuracy, one point a target.

    Pale bars are 95 % intervals of the accuracies; dark ones of the differences from the first
    target, on the same images, which are narrower: a bar that does not reach the dashed line of the
    first target is a difference beyond noise, before any correction for several comparisons.

    Args:
        document: A run's summary with clean and corrupted accuracies.
    """
    rows = [row for row in document["summary"] if _has_both(row)]
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for i, row in enumerate(rows):
        x, y = 100 * row["clean_accuracy"], 100 * row["corrupted_accuracy"]
        colour = COLOURS[i % len(COLOURS)]
        axes.errorbar(
            x, y, xerr=_own_bar(row, "clean"), yerr=_own_bar(row, "corrupted"),
            fmt="none", ecolor=colour, elinewidth=4, alpha=0.18,
        )  # fmt: skip
        axes.errorbar(
            x, y,
            xerr=_bar(row["clean_difference"]), yerr=_bar(row["corrupted_difference"]),
            fmt=MARKERS[i % len(MARKERS)], color=colour, markersize=7,
            elinewidth=1.2, capsize=3, label=row["label"],
        )  # fmt: skip
    if len(rows) > 1:
        dashed: dict[str, Any] = {"color": "#777777", "linestyle": "--", "linewidth": 0.8}
        axes.axvline(100 * rows[0]["clean_accuracy"], **dashed)
        axes.axhline(100 * rows[0]["corrupted_accuracy"], **dashed)
    axes.margins(0.15)
    axes.set_xlabel("clean accuracy, %")
    axes.set_ylabel("corrupted accuracy, mean over cells, %")
    axes.set_title(document["title"], loc="left", fontsize=10)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    if len(rows) > 1:
        note = (
            f"95 % intervals; dark: of the difference from {rows[0]['label']}, same images; "
            "pale: of the accuracy"
        )
        axes.annotate(
            note, (0, 0), (0, -38), xycoords="axes fraction", textcoords="offset points",
            fontsize=8, color="#555555", va="top",
        )  # fmt: skip
    return figure


def difference_figure(document: Mapping[str, Any]) -> Figure:
    """Draw the differences of accuracy of a comparison, a row for each part of the suite.

    Filled marks are beyond noise by their own tests, corrected by Holm.

    Args:
        document: A comparison's.
    """
    pairs = document["pairs"]
    rows = list(dict.fromkeys(name for pair in pairs for name in compared_parts(pair)))
    figure = Figure(
        figsize=(6.8, 1.6 + 0.19 * len(rows) * max(1.4, len(pairs))), layout="constrained"
    )
    axes = figure.add_subplot()
    axes.axvline(0, color="#777777", linewidth=0.8)
    for i, pair in enumerate(pairs):
        colour = COLOURS[i % len(COLOURS)]
        shift = 0.0 if len(pairs) == 1 else 0.6 * (i / (len(pairs) - 1) - 0.5)
        for part, found in compared_parts(pair).items():
            axes.errorbar(
                100 * found["value"], rows.index(part) + shift, xerr=_bar(found),
                fmt=MARKERS[i % len(MARKERS)], color=colour, markersize=5, elinewidth=1.2,
                capsize=2, markerfacecolor=colour if found["beyond_noise"] else "white",
            )  # fmt: skip
        axes.plot(
            [], [], MARKERS[i % len(MARKERS)], color=colour, markersize=5,
            label=f"{pair['second_label']} against {pair['first_label']}",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.replace("_", " ") for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for row in range(0, len(rows), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f6f6f6", zorder=0)
    axes.set_xlabel(
        "difference of accuracy, percentage points\n"
        "bars: 95 % intervals, same images; filled: beyond noise after Holm's correction",
        fontsize=9,
    )
    axes.set_title(document["title"], loc="left", fontsize=10)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(frameon=False, fontsize=9, loc="outside upper left")
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


def _own_bar(row: Mapping[str, Any], part: str) -> list[list[float]]:
    value = row[f"{part}_accuracy"]
    low, high = row["intervals"][f"{part}_accuracy"]
    return _bar({"value": value, "low": low, "high": high}) or []


def _bar(difference: Mapping[str, float] | None) -> list[list[float]] | None:
    if difference is None:
        return None
    low = difference["value"] - difference["low"]
    high = difference["high"] - difference["value"]
    return [[100 * max(low, 0.0)], [100 * max(high, 0.0)]]


FORMATS = (".png", ".svg")
# told apart by people who do not see all colours (Okabe and Ito)
QUANTITIES = (
    ("mean_shift", "mean shift\n(standard deviations)"),
    ("log_variance_ratio", "log-variance ratio"),
    ("symmetric_kl", "symmetric KL (nats)"),
    ("affine_distance", "affine, relative distance"),
)


def plot_inspection(inspection: Inspection, path: Path) -> None:
    """Draw the distances of every auxiliary branch from `main`, layer by layer.

    Equal inspections give equal bytes.

    Raises:
        UsageError: The file's name ends in neither .png nor .svg, or there is one branch only.
        RecalError: It cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot: expected a name that ends in .png or .svg, got '{path.name}'.")
    branches = [branch for branch in inspection.branches if branch.distances]
    if not branches:
        raise UsageError("--plot: expected two branches or more, got one. There is no distance.")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    layers = [distance.layer for distance in branches[0].distances]
    height = max(2.5, 1.2 + 0.16 * len(layers) * len(branches))
    with mpl.rc_context({"svg.hashsalt": "recal", "font.size": 8}):
        figure = Figure(figsize=(10, min(height, 60)), layout="constrained")
        axes = figure.subplots(1, len(QUANTITIES), sharey=True)
        thickness = 0.8 / len(branches)
        for axis, (quantity, label) in zip(axes, QUANTITIES, strict=True):
            for i, branch in enumerate(branches):
                values = [getattr(d, quantity) or 0.0 for d in branch.distances]
                axis.barh(
                    [row + i * thickness for row in range(len(layers))],
                    [value if math.isfinite(value) else 0.0 for value in values],
                    height=thickness, color=COLOURS[i % len(COLOURS)], label=branch.name,
                )  # fmt: skip
            axis.set_xlabel(label)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_yticks(range(len(layers)), layers)
        axes[0].invert_yaxis()
        axes[-1].legend(title="against main", frameon=False)
        with whole_file(path) as partial:
            kind = path.suffix.lower().removeprefix(".")
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(partial, format=kind, dpi=120, metadata=metadata)
