"""Warnings about evaluations that run, but are probably misconfigured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recal.suites.suite import Cell, Suite, class_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from recal.evaluation.targets import Target
    from recal.runs.store import Columns
    from recal.suites.images import SuiteImages


# number of images whose mean and standard deviation are computed
LOOKED_AT = 64
# of normalised pixels: natural images are near (0, 1) if mean and std are those of their data set
LARGEST_MEAN, SMALLEST_STD, LARGEST_STD = 0.6, 0.6, 1.6
# mean and std of networks that take any images as they are, or from -1 to 1
CONVENTIONS = ((0.0, 1.0), (0.5, 0.5))
# standard deviations above chance
CLEARLY = 3.0


def preparation_warnings(
    images: SuiteImages, cells: Sequence[Cell], targets: Sequence[Target]
) -> list[str]:
    """Return a warning for every target whose mean and std do not fit the clean images."""
    if images.of_clean is None or not cells:
        return []
    indices = images.of_clean.indices
    some = indices[np.linspace(0, len(indices) - 1, min(LOOKED_AT, len(indices))).astype(int)]
    pixels = images.read(cells[0], np.unique(some)) / 255.0
    mean, std = pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))
    return [
        f"{target.label}: mean {_numbers(target.spec.mean)} and std {_numbers(target.spec.std)} "
        f"do not fit these images, whose pixels have {_numbers(mean)} and {_numbers(std)}."
        for target in targets
        if not _fits(target, mean, std)
    ]


class ChanceCheck:
    """Counts right answers as cells pass, and warns of targets that are no better than chance.

    The clean cell decides where a target has one, otherwise all of its cells together.

    Args:
        suite: The benchmark, whose number of classes determines chance.
        targets: The targets.
    """

    def __init__(self, suite: Suite, targets: Sequence[Target]) -> None:
        self._chance = 1 / class_count(suite)
        self._labels = {target.name: target.label for target in targets}
        self._right = dict.fromkeys(self._labels, 0)
        self._images = dict.fromkeys(self._labels, 0)
        self._images_of_a_cell: dict[str, int] = {}
        self._has_clean: set[str] = set()

    def add(self, cell: Cell, columns: dict[str, Columns]) -> None:
        """Count the right answers of a cell; the clean cell comes first."""
        for name, of_target in columns.items():
            if name in self._has_clean:
                continue
            if cell.corruption is None:
                self._has_clean.add(name)
            self._right[name] += int((of_target["rank"] == 0).sum())
            self._images[name] += len(of_target["rank"])
            self._images_of_a_cell.setdefault(name, len(of_target["rank"]))

    def warnings(self) -> Iterator[str]:
        """Yield a warning for every target that is no better than chance."""
        for name, count in self._images_of_a_cell.items():
            accuracy = self._right[name] / self._images[name]
            noise = np.sqrt(self._chance * (1 - self._chance) / count)
            if accuracy < self._chance + CLEARLY * noise:
                yield (
                    f"{self._labels[name]}: accuracy {accuracy:.1%} is that of guessing "
                    f"({self._chance:.1%}). Are the labels, the class order and the preprocessing "
                    "right?"
                )


def _fits(target: Target, mean: NDArray[np.float64], std: NDArray[np.float64]) -> bool:
    own_mean, own_std = np.array(target.spec.mean), np.array(target.spec.std)
    for usual_mean, usual_std in CONVENTIONS:
        close = np.abs(own_mean - usual_mean).max() < 0.01
        if close and np.abs(own_std - usual_std).max() < 0.01:
            return True
    shift, scale = (mean - own_mean) / own_std, std / own_std
    return bool(
        np.abs(shift).max() <= LARGEST_MEAN
        and scale.min() >= SMALLEST_STD
        and scale.max() <= LARGEST_STD
    )


def _numbers(values: Sequence[float] | NDArray[np.float64]) -> str:
    return ",".join(f"{value:.3g}" for value in values)
