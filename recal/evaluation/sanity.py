"""What is not wrong in itself but hardly meant: said, not refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recal.suites.classes import class_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from recal.evaluation.cells import Work
    from recal.evaluation.targets import Target
    from recal.runs.store import Columns
    from recal.suites.images import SuiteImages
    from recal.suites.suite import Cell


LOOKED_AT = 64
# of normalised pixels: natural images of the set that mean and std are of come near (0, 1)
LARGEST_MEAN, SMALLEST_STD, LARGEST_STD = 0.6, 0.6, 1.6
# mean and std that networks are trained with whatever the images: as they are, and -1 to 1
CONVENTIONS = ((0.0, 1.0), (0.5, 0.5))
# standard deviations above guessing
CLEARLY = 3.0


def odd_preparation(
    images: SuiteImages, cells: Sequence[Cell], targets: Sequence[Target]
) -> list[str]:
    """Say which targets' mean and std do not fit the clean images."""
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


def odd_results(work: Work, columns: Mapping[tuple[str, Cell], Columns]) -> Iterator[str]:
    """Say which targets are no better than guessing on clean images, or on all the others."""
    chance = 1 / class_count(work.suite)
    for target in work.targets:
        right = [
            columns[target.name, cell]["rank"] == 0
            for cell in work.cells
            if (target.name, cell) in columns
        ]
        if not right:
            continue
        # the first cell is the clean one where there is one; else all of them together
        looked_at = right[0] if work.cells[0].corruption is None else np.concatenate(right)
        accuracy = float(looked_at.mean())
        noise = np.sqrt(chance * (1 - chance) / len(right[0]))
        if accuracy < chance + CLEARLY * noise:
            yield (
                f"{target.label}: accuracy {accuracy:.1%} is that of guessing ({chance:.1%}). "
                "Are the labels, the class order and the preprocessing right?"
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
