"""The quantities of a run, by name: each is a weighted sum of the metrics of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from recal.runs.metrics import METRICS, Measured
from recal.runs.statistics import Interval, normal_interval, percentile_interval, wilson_interval
from recal.runs.store import SavedRun
from recal.suites.suite import Cell

ECE = METRICS.index("ece")
# metrics that are a share of the images
SHARES = (METRICS.index("accuracy"), METRICS.index("top5_accuracy"))


@dataclass(frozen=True, eq=False)
class Quantity:
    """A weighted sum of the metrics of C cells, in the order of METRICS, (C, 5), and a constant."""

    weights: NDArray[np.float64]
    constant: float = 0.0

    def of(self, measured: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the quantity for metrics of cells, (R, C, 5) to (R,)."""
        # sums only over the cells that count: most quantities are of a few
        cells = np.flatnonzero(self.weights.any(axis=1))
        total = np.tensordot(measured[:, cells], self.weights[cells], axes=2)
        return np.asarray(total) + self.constant

    def interval(self, measured: Measured) -> Interval:
        """Return its 95 % interval for a target.

        The accuracy in a single cell has Wilson's interval. A sum that holds a calibration error
        has 1.96 standard errors of the bootstrap on each side. Everything else has the bootstrap's
        percentiles.
        """
        found = float(self.of(measured.value)[0])
        if self.weights[:, ECE].any():
            low, high = normal_interval(found, self.of(measured.resampled))
            # no metric is below 0
            never_negative = self.constant >= 0 and bool((self.weights >= 0).all())
            return (max(low, 0.0), high) if never_negative else (low, high)
        used = np.flatnonzero(self.weights)
        if len(used) == 1 and used[0] % len(METRICS) in SHARES:
            scale = float(self.weights.flat[used[0]])
            count = measured.images[used[0] // len(METRICS)]
            ends = wilson_interval((found - self.constant) / scale, count)
            low, high = sorted(self.constant + scale * end for end in ends)
            return low, high
        return percentile_interval(self.of(measured.resampled))

    def difference(
        self, value: NDArray[np.float64], resampled: NDArray[np.float64]
    ) -> tuple[float, Interval]:
        """Return a difference between two targets, with the 95 % interval of a paired bootstrap.

        It is computed from the differences of the cells' metrics, (1, C, 5), and those in each
        bootstrap resample, (R, C, 5).
        """
        linear = Quantity(self.weights)  # constants cancel
        found, drawn = float(linear.of(value)[0]), linear.of(resampled)
        has_ece = self.weights[:, ECE].any()
        return found, normal_interval(found, drawn) if has_ece else percentile_interval(drawn)

    def __add__(self, other: Quantity | float) -> Quantity:
        if isinstance(other, Quantity):
            return Quantity(self.weights + other.weights, self.constant + other.constant)
        return Quantity(self.weights, self.constant + other)

    __radd__ = __add__

    def __sub__(self, other: Quantity | float) -> Quantity:
        return self + other * -1.0

    def __rsub__(self, other: float) -> Quantity:
        return -self + other

    def __mul__(self, factor: float) -> Quantity:
        if not isinstance(factor, float):
            return NotImplemented
        return Quantity(self.weights * factor, self.constant * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Quantity:
        return self * (1 / divisor) if isinstance(divisor, float) else NotImplemented

    def __neg__(self) -> Quantity:
        return self * -1.0


@dataclass(frozen=True)
class CellGroup:
    """Cells of a run that a mean is taken over.

    Attributes:
        name: `clean`, `corrupted`, a corruption, a kind of corruptions, or such as `severity_3`.
        by: What the cells have in common: clean, corrupted, corruption, group or severity.
    """

    name: str
    by: str
    cells: tuple[Cell, ...]


def cell_groups(run: SavedRun, cells: Sequence[Cell]) -> list[CellGroup]:
    """Return the groups that these cells form, without empty ones.

    `corrupted`, kinds and severities are over the corruptions that the suite's mean is over; other
    corruptions form only groups of their own.
    """
    standard = [cell for cell in cells if cell in run.standard]
    names = list(dict.fromkeys(cell.corruption for cell in cells if cell.corruption is not None))
    severities = sorted({cell.severity for cell in standard if cell.severity is not None})
    groups = [
        ("clean", "clean", [c for c in cells if c.corruption is None]),
        ("corrupted", "corrupted", standard),
        *((name, "corruption", [c for c in cells if c.corruption == name]) for name in names),
        *(
            (kind, "group", [c for c in standard if c.corruption in members])
            for kind, members in CORRUPTION_KINDS.items()
            if kind not in names
        ),
        *(
            (f"severity_{s}", "severity", [c for c in standard if c.severity == s])
            for s in severities
        ),
    ]
    return [CellGroup(name, by, tuple(found)) for name, by, found in groups if found]


def cell_metric(cells: Sequence[Cell], of: Sequence[Cell], metric: str) -> Quantity:
    """Return the mean of one of METRICS over some of the cells that quantities are of."""
    weights = np.zeros((len(cells), len(METRICS)))
    weights[[cells.index(cell) for cell in of], METRICS.index(metric)] = 1 / len(of)
    return Quantity(weights)


def quantities_of(run: SavedRun, cells: Sequence[Cell]) -> dict[str, Quantity]:
    """Return every quantity that the cells allow.

    `<group>_<metric>` is a metric's mean over the cells of a group, such as `clean_accuracy` or
    `fog_nll`. A whole suite has `mean_corruption_error`, and with reference errors also `mce` and
    `relative_mce`:

        mce = mean over corruptions c of (sum_s E_sc / sum_s Eref_sc)
        relative_mce = mean over c of (sum_s (E_sc - E_clean) / sum_s (Eref_sc - Eref_clean))

    Source: Hendrycks and Dietterich, arXiv 1903.12261, section 4.
    """
    found = {
        f"{group.name}_{metric}": cell_metric(cells, group.cells, metric)
        for group in cell_groups(run, cells)
        for metric in METRICS
    }
    if run.standard and set(run.standard) <= set(cells):
        found["mean_corruption_error"] = 1.0 - found["corrupted_accuracy"]
        found |= _relative_to_reference(run, found)
    return found


def _relative_to_reference(run: SavedRun, found: Mapping[str, Quantity]) -> dict[str, Quantity]:
    if run.record.reference is None:
        return {}
    names = list(dict.fromkeys(cell.corruption or "" for cell in run.standard))
    errors = {name: 1.0 - found[f"{name}_accuracy"] for name in names}
    reference, share = run.record.reference.errors, 1 / len(names)
    whole = {"mce": reduce(add, (errors[name] * (share / reference[name]) for name in names))}
    clean = run.record.reference.clean_error
    if clean is None or "clean_accuracy" not in found:
        return whole
    lost = {name: errors[name] - (1.0 - found["clean_accuracy"]) for name in names}
    shares = {name: share / (reference[name] - clean) for name in names}
    return whole | {"relative_mce": reduce(add, (lost[name] * shares[name] for name in names))}


# Source: Hendrycks and Dietterich, arXiv 1903.12261, section 3 and appendix B.
CORRUPTION_KINDS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
    "weather": ("snow", "frost", "fog", "brightness", "spatter"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate"),
}
