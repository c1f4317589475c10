"""A picture of how far the branches of a checkpoint are apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from recal.errors import UsageError
from recal.files import whole_file

if TYPE_CHECKING:
    from pathlib import Path

    from recal.checkpoint.inspection import Inspection

FORMATS = (".png", ".svg")
# told apart by people who do not see all colours (Okabe and Ito)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
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
