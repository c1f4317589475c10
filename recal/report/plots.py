"""Pictures: accuracy against robustness, differences between targets, distances of branches."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recal.errors import UsageError
from recal.files import whole_file
from recal.report.runs import accuracy_differences
from recal.runs.compare import Comparison, Difference
from recal.runs.summary import Summary, TargetRow

if TYPE_CHECKING:
    from recal.inspection.distances import Inspection


# Okabe and Ito's colours, which people with any colour vision can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
SUFFIXES = (".png", ".svg")
TALLEST = 60.0  # inches
# equal figures give equal bytes
STABLE: dict[Any, Any] = {"svg.hashsalt": "recal"}
DISTANCES = (
    ("mean_shift", "mean shift\n(standard deviations)"),
    ("log_variance_ratio", "log-variance ratio"),
    ("symmetric_kl", "symmetric KL (nats)"),
    ("affine_distance", "affine, relative distance"),
)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a .png or .svg file, whole or not at all; equal figures give equal bytes.

    Raises:
        UsageError: The name of the file ends in neither .png nor .svg.
        RecalError: The file cannot be written.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise UsageError(f"{path}: expected a name that ends in .png or .svg.")
    metadata = {"Date": None} if kind == ".svg" else {"Software": None}
    with whole_file(path) as partial, mpl.rc_context(STABLE):
        figure.savefig(partial, format=kind.removeprefix("."), dpi=150, metadata=metadata)


def to_svg(figure: Figure) -> str:
    """Return a figure as an SVG element, the same text for equal figures."""
    buffer = io.StringIO()
    with mpl.rc_context({**STABLE, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def trade_off_figure(summary: Summary) -> Figure:
    """Draw clean against corrupted accuracy, one point for each target that has both.

    Pale bars are 95 % intervals of the accuracies. Dark bars are intervals of the differences from
    the first target on the same images, which are narrower: a dark bar that does not reach the
    dashed line of the first target is a difference beyond noise, before any correction for several
    comparisons.
    """
    rows = with_both(summary)
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for i, (row, x, y) in enumerate(rows):
        axes.errorbar(
            100 * x, 100 * y, xerr=_bar(x, row.intervals["clean_accuracy"]),
            yerr=_bar(y, row.intervals["corrupted_accuracy"]),
            fmt="none", ecolor=COLOURS[i % len(COLOURS)], elinewidth=4, alpha=0.18,
        )  # fmt: skip
        axes.errorbar(
            100 * x, 100 * y, xerr=_difference_bar(row.clean_difference),
            yerr=_difference_bar(row.corrupted_difference), **_mark(i),
            markersize=7, elinewidth=1.2, capsize=3, label=row.label,
        )  # fmt: skip
    _finish(axes, summary.title, "both", ["top", "right"])
    axes.margins(0.15)
    axes.set_xlabel("clean accuracy, %")
    axes.set_ylabel("corrupted accuracy, mean over cells, %")
    axes.legend(frameon=False, fontsize=9)
    if len(rows) > 1:
        first, x, y = rows[0]
        axes.axvline(100 * x, color="#777777", linestyle="--", linewidth=0.8)
        axes.axhline(100 * y, color="#777777", linestyle="--", linewidth=0.8)
        axes.annotate(
            f"95 % intervals; dark: of the difference from {first.label}, same images; pale: of "
            "the accuracy", (0, 0), (0, -38), xycoords="axes fraction",
            textcoords="offset points", fontsize=8, color="#555555", va="top",
        )  # fmt: skip
    return figure


def difference_figure(comparison: Comparison) -> Figure:
    """Draw the differences of accuracy of a comparison, a row for each corruption.

    Filled marks are beyond noise by their own tests, corrected by Holm.
    """
    pairs = comparison.pairs
    rows = list(dict.fromkeys(name for pair in pairs for name in accuracy_differences(pair)))
    height = min(TALLEST, 1.6 + 0.19 * len(rows) * max(1.4, len(pairs)))
    figure = Figure(figsize=(6.8, height), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="#777777", linewidth=0.8)
    for i, pair in enumerate(pairs):
        mark, names = _mark(i), f"{pair.second_label} against {pair.first_label}"
        shift = 0.0 if len(pairs) == 1 else 0.6 * (i / (len(pairs) - 1) - 0.5)
        for part, found in accuracy_differences(pair).items():
            axes.errorbar(
                100 * found.value, rows.index(part) + shift, xerr=_difference_bar(found), **mark,
                markersize=5, elinewidth=1.2, capsize=2,
                markerfacecolor=mark["color"] if found.beyond_noise else "white",
            )  # fmt: skip
        axes.plot([], [], markersize=5, label=names, **mark)
    axes.set_yticks(range(len(rows)), [row.replace("_", " ") for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for row in range(0, len(rows), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f6f6f6", zorder=0)
    axes.set_xlabel(
        "difference of accuracy, percentage points\n"
        "bars: 95 % intervals, same images; filled: beyond noise after Holm's correction",
        fontsize=9,
    )
    _finish(axes, comparison.title, "x", ["top", "right", "left"])
    axes.tick_params(axis="y", length=0)
    figure.legend(frameon=False, fontsize=9, loc="outside upper left")
    return figure


def _mark(i: int) -> dict[str, Any]:
    """Return the colour and form of the i-th mark, for lines without a line."""
    colour, form = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
    return {"color": colour, "marker": form, "linestyle": ""}


def _finish(axes: Axes, title: str, grid: Literal["both", "x"], hidden: list[str]) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[hidden].set_visible(False)


def plot_inspection(inspection: Inspection, path: Path) -> None:
    """Draw the distances of every auxiliary branch from `main`, layer by layer.

    Raises:
        UsageError: The name of the file ends in neither .png nor .svg, or there is only one branch.
        RecalError: The file cannot be written.
    """
    branches = [branch for branch in inspection.branches if branch.distances]
    if not branches:
        raise UsageError("--plot: expected two branches or more, got one. There is no distance.")
    layers = [distance.layer for distance in branches[0].distances]
    height = min(TALLEST, max(2.5, 1.2 + 0.16 * len(layers) * len(branches)))
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(10, height), layout="constrained")
        axes = figure.subplots(1, len(DISTANCES), sharey=True)
        thickness = 0.8 / len(branches)
        for axis, (quantity, label) in zip(axes, DISTANCES, strict=True):
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
        save_figure(figure, path)


def with_both(summary: Summary) -> list[tuple[TargetRow, float, float]]:
    """Return the targets that have both accuracies: their rows, clean and corrupted accuracy."""
    return [
        (row, row.clean_accuracy, row.corrupted_accuracy)
        for row in summary.targets
        if row.clean_accuracy is not None and row.corrupted_accuracy is not None
    ]


def _difference_bar(found: Difference | None) -> list[list[float]] | None:
    return None if found is None else _bar(found.value, (found.low, found.high))


def _bar(value: float, interval: tuple[float, float]) -> list[list[float]]:
    low, high = interval
    return [[100 * max(value - low, 0.0)], [100 * max(high - value, 0.0)]]
