"""Finding a suite's images, and checking them before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recal.data.folders import named_places, places_searched
from recal.datasets.catalogue import catalogue
from recal.errors import InputError
from recal.suites.clean import CleanImages, find_clean
from recal.suites.images import ChosenImages, SuiteImages
from recal.suites.published import Published, find_published
from recal.suites.sampling import choose_images
from recal.suites.suite import Cell, CleanSet, CorruptedSet, Suite


@dataclass(frozen=True, kw_only=True)
class SuiteLocation:
    """The places of a suite's images.

    Attributes:
        clean: Folder or tar file of the clean images, or None.
        corrupted: Folder or tar file of the published corrupted images, or None.
        ready: Whether the suite can be evaluated.
        missing: How to get missing images, in a few words; empty if nothing is missing.
    """

    clean: Path | None
    corrupted: Path | None
    ready: bool
    missing: str


def locate_suite(suite: Suite, data: Path | None = None) -> SuiteLocation:
    """Look for a suite's images by the names of folders and tar files, without opening them.

    Args:
        suite: The suite.
        data: A folder that holds them, or bears their name; None for the usual places.
    """
    corrupted = suite.corrupted
    clean_place = next(iter(named_places(data, suite.clean.folders)), None)
    corrupted_place = next(iter(named_places(data, corrupted.folders)), None)
    ways = []
    if corrupted.folders and corrupted_place is None:
        ways.append(how_to_get(corrupted))
    if clean_place is None and suite.clean.folders:
        ways.append(how_to_get(suite.clean))
    made = clean_place if corrupted.parameters or not corrupted.corruptions else None
    return SuiteLocation(
        clean=clean_place,
        corrupted=corrupted_place,
        ready=(corrupted_place or made) is not None,
        missing=" or ".join(dict.fromkeys(ways)),
    )


def how_to_get(images: CleanSet | CorruptedSet) -> str:
    """Return how to get images, in a few words: a folder and a command."""
    folder = f"{images.folders[0]}/" if images.folders else "class folders"
    if not images.data:
        return folder
    known = catalogue()[images.data]
    way = f"`recal data fetch {images.data}`" if known.downloads else f"from {known.page}"
    return f"{folder}, {way}"


def open_suite_images(
    suite: Suite,
    data: Path | None,
    size: int,
    cells: Sequence[Cell],
    *,
    limit: int | None = None,
    seed: int = 0,
    threads: int = 1,
) -> SuiteImages:
    """Open the images of a suite, and check that they are what the suite declares.

    Args:
        suite: The suite.
        data: The user's folder or file, or None to look in the usual places.
        size: Side of the network's input, in pixels.
        cells: The corrupted cells to open; published files must hold all of them.
        limit: Size of a stratified sample of the images; None uses all of them.
        seed: Seed of that sample, and of corruptions made on the fly.
        threads: Number of threads that read and corrupt.

    Raises:
        InputError: There are neither clean images nor published files, labels are missing or beyond
            the classes, or files are malformed.
    """
    published = find_published(suite, data, cells)
    clean: CleanImages | None = None
    warnings: list[str] = []
    try:
        clean = find_clean(suite, data, None if published is None else published.where)
        of_clean = _choose(suite, clean, limit, seed)
        warnings += clean.warnings
    except InputError as error:
        if published is None:
            raise _none_found(suite, data, error) from error
        if clean is not None:
            warnings.append(f"No clean cell: {error}")
        clean = of_clean = None
    of_corrupted = of_clean if cells else None
    if published is not None:
        of_corrupted = _choose(suite, published, limit, seed)
        if clean is not None and not _alike(clean, published):
            warnings.append(
                f"{clean.source.where}: the clean images differ from those of {published.where}, "
                "or are in another order: clean and corrupted cells are not paired."
            )
    elif cells and not suite.corrupted.parameters:
        raise _none_found(suite, data, None)
    return SuiteImages(
        suite,
        clean,
        published,
        size=size,
        seed=seed,
        of_clean=of_clean,
        of_corrupted=of_corrupted,
        threads=threads,
        warnings=tuple(warnings),
    )


def check_pixels(images: SuiteImages, cells: Sequence[Cell]) -> None:
    """Read one image of each cell.

    Raises:
        InputError: It cannot be decoded, or has another size. The message names the cell and image.
    """
    corrupted = [cell for cell in cells if cell.corruption is not None]
    # cells that are corrupted here are made of the same clean images
    for cell in cells if images.published is not None else [*cells[:1], *corrupted[:1]]:
        images.check(cell)


def _choose(
    suite: Suite, images: CleanImages | Published, limit: int | None, seed: int
) -> ChosenImages:
    where = images.where
    indices = choose_images(suite, images.labels, images.names, where, limit=limit, seed=seed)
    return ChosenImages(labels=images.labels, indices=indices)


def _alike(clean: CleanImages, published: Published) -> bool:
    """Whether the n-th clean image is the n-th corrupted one."""
    if not np.array_equal(clean.labels, published.labels):
        return False
    if clean.names is None or published.names is None:
        # rows of arrays in the order of the test set; files have an order of their own
        return clean.names is None and published.names is None
    return all(
        a.rpartition(".")[0] == b.rpartition(".")[0]
        for a, b in zip(clean.names, published.names, strict=True)
    )


def _none_found(suite: Suite, data: Path | None, error: InputError | None) -> InputError:
    corrupted = suite.corrupted
    ways = []
    if corrupted.corruptions and corrupted.folders:
        ways.append(f"the published images ({how_to_get(corrupted)})")
    if corrupted.parameters or not corrupted.corruptions:
        purpose = " to regenerate them from" if corrupted.corruptions else ""
        ways.append(f"clean test images{purpose} ({how_to_get(suite.clean)})")
    reason = f"({error})" if data is not None and error is not None else places_searched(data)
    return InputError(f"suite {suite.name}: expected {', or '.join(ways)}, got none. {reason}")
