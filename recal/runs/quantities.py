"""The quantities of a run, by name: each is a weighted sum of the metrics of its cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recal.runs.metrics import METRICS
from recal.runs.statistics import normal_interval, percentile_interval, wilson_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from recal.runs.statistics import Interval
    from recal.runs.store import SavedRun
    from recal.suites.suite import Cell


ACCURACY, ECE = METRICS.index("accuracy"), METRICS.index("ece")


@dataclass(frozen=True, eq=False)
class Quantity:
    """A weighted sum of the metrics of cells, and a constant.

    Attributes:
        weights: (C, 5), of each cell's metrics in the order of METRICS.
        constant: Added to the sum.
    """

    weights: NDArray[np.float64]
    constant: float = 0.0

    def of(self, measured: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the quantity for metrics of cells, (R, C, 5) to (R,)."""
        # sums over no cell more than are needed: most quantities are of a few
        cells = np.flatnonzero(self.weights.any(axis=1))
        total = np.tensordot(measured[:, cells], self.weights[cells], axes=2)
        return np.asarray(total) + self.constant

    def interval(
        self, value: NDArray[np.float64], resampled: NDArray[np.float64], images: Sequence[int]
    ) -> Interval:
        """Return its 95 % interval.

        The share of images that are right in a single cell has Wilson's, what holds a calibration
        error the bootstrap's standard error, everything else its percentiles.

        Args:
            value: Metrics of the cells, (1, C, 5).
            resampled: The same in each bootstrap resample, (R, C, 5).
            images: How many images each cell has.
        """
        found = float(self.of(value)[0])
        drawn = self.of(resampled)
        if self.weights[:, ECE].any():
            low, high = normal_interval(found, drawn)
            # no metric is below 0
            never_negative = self.constant >= 0 and bool((self.weights >= 0).all())
            return (max(low, 0.0), high) if never_negative else (low, high)
        used = np.flatnonzero(self.weights)
        if len(used) == 1 and used[0] % len(METRICS) < 2:
            scale = float(self.weights.flat[used[0]])
            count = images[used[0] // len(METRICS)]
            ends = wilson_interval((found - self.constant) / scale, count)
            low, high = sorted(self.constant + scale * end for end in ends)
            return low, high
        return percentile_interval(drawn)

    def difference(
        self, value: NDArray[np.float64], resampled: NDArray[np.float64]
    ) -> tuple[float, Interval]:
        """Return its difference between two targets, with the 95 % interval of a paired bootstrap.

        Args:
            value: Differences of the cells' metrics, (1, C, 5).
            resampled: The same in each bootstrap resample, (R, C, 5).
        """
        proportional = Quantity(self.weights)
        found = float(proportional.of(value)[0])
        drawn = proportional.of(resampled)
        if self.weights[:, ECE].any():
            return found, normal_interval(found, drawn)
        return found, percentile_interval(drawn)

    def __add__(self, other: Quantity) -> Quantity:
        return Quantity(self.weights + other.weights, self.constant + other.constant)

    def __sub__(self, other: Quantity) -> Quantity:
        return self + other * -1.0

    def __mul__(self, factor: float) -> Quantity:
        return Quantity(self.weights * factor, self.constant * factor)


@dataclass(frozen=True)
class Part:
    """Some cells of a run that are looked at together.

    Attributes:
        name: `clean`, `corrupted`, a corruption, a group of corruptions, or such as `severity_3`.
        by: What the name is one of: clean, corrupted, corruption, group, severity.
        cells: Whose mean is taken.
    """

    name: str
    by: str
    cells: tuple[Cell, ...]


def parts_of(run: SavedRun, cells: Sequence[Cell]) -> list[Part]:
    """Return the parts of the cells that there are.

    `corrupted`, groups and severities are over the corruptions that the suite's mean is over: extra
    ones stand for themselves alone.
    """
    standard = [cell for cell in cells if cell in run.standard]
    corruptions = {cell.corruption: None for cell in cells if cell.corruption is not None}
    parts = [
        Part("clean", "clean", tuple(cell for cell in cells if cell.corruption is None)),
        Part("corrupted", "corrupted", tuple(standard)),
        *(
            Part(name, "corruption", tuple(cell for cell in cells if cell.corruption == name))
            for name in corruptions
        ),
        *(
            Part(group, "group", tuple(cell for cell in standard if cell.corruption in names))
            for group, names in GROUPS.items()
            if group not in corruptions
        ),
        *(
            Part(f"severity_{s}", "severity", tuple(c for c in standard if c.severity == s))
            for s in sorted({cell.severity for cell in standard if cell.severity is not None})
        ),
    ]
    return [part for part in parts if part.cells]


def quantities_of(run: SavedRun, cells: Sequence[Cell]) -> dict[str, Quantity]:
    """Return every quantity that the cells allow.

    `<part>_<metric>` is a metric's mean over the cells of a part, such as `clean_accuracy` or
    `fog_nll`. `mean_corruption_error` is there for a whole suite, `mce` and `relative_mce` besides
    where it declares reference errors:

        mce = mean over corruptions c of (sum_s E_sc / sum_s Eref_sc)
        relative_mce = mean over c of (sum_s (E_sc - E_clean) / sum_s (Eref_sc - Eref_clean))

    Source: Hendrycks and Dietterich, arXiv 1903.12261, section 4.
    """
    place = {cell: i for i, cell in enumerate(cells)}
    found: dict[str, Quantity] = {}
    for part in parts_of(run, cells):
        for k, metric in enumerate(METRICS):
            weights = np.zeros((len(cells), len(METRICS)))
            weights[[place[cell] for cell in part.cells], k] = 1 / len(part.cells)
            found[f"{part.name}_{metric}"] = Quantity(weights)
    if run.standard and set(run.standard) <= set(cells):
        found["mean_corruption_error"] = _error(found["corrupted_accuracy"])
        found |= _relative_to_reference(run, found)
    return found


def _relative_to_reference(run: SavedRun, found: Mapping[str, Quantity]) -> dict[str, Quantity]:
    if run.reference is None:
        return {}
    names = list(dict.fromkeys(cell.corruption or "" for cell in run.standard))
    errors = {name: _error(found[f"{name}_accuracy"]) for name in names}
    reference, share = run.reference.errors, 1 / len(names)
    whole = {"mce": _sum([errors[name] * (share / reference[name]) for name in names])}
    clean = run.reference.clean_error
    if clean is None or "clean_accuracy" not in found:
        return whole
    at_first = _error(found["clean_accuracy"])
    lost = [(errors[name] - at_first) * (share / (reference[name] - clean)) for name in names]
    return {**whole, "relative_mce": _sum(lost)}


def _error(accuracy: Quantity) -> Quantity:
    return Quantity(-accuracy.weights, 1.0 - accuracy.constant)


def _sum(quantities: Sequence[Quantity]) -> Quantity:
    total = quantities[0]
    for quantity in quantities[1:]:
        total = total + quantity
    return total


# Source: Hendrycks and Dietterich, arXiv 1903.12261, section 3 and appendix B.
GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
    "weather": ("snow", "frost", "fog", "brightness", "spatter"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate"),
}
