"""Finding a suite's images, and saying before any work what is wrong or odd about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recal.data.folders import places_searched
from recal.data.tars import TAR_SUFFIX
from recal.datasets.catalogue import PUBLISHED
from recal.errors import InputError
from recal.resources import data_folders
from recal.suites.clean import find_clean
from recal.suites.images import Chosen, SuiteImages
from recal.suites.published import find_published
from recal.suites.sampling import choose_images

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from recal.suites.clean import CleanImages
    from recal.suites.published import Published
    from recal.suites.suite import Cell, Suite


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a suite's images are.

    Attributes:
        clean: Folder of the clean images, or None.
        corrupted: Folder or tar file of the published corrupted ones, or None.
        ready: Whether the suite can be evaluated.
        missing: What to get, in a few words; empty where nothing is missing.
    """

    clean: Path | None
    corrupted: Path | None
    ready: bool
    missing: str


def find_places(suite: Suite, data: Path | None = None) -> Places:
    """Look for a suite's images.

    Args:
        suite: The suite.
        data: A folder that holds them, or is theirs by its name; None for the usual places.
    """
    clean = _find(suite.clean.folders, data)
    if suite.family == "sample" and clean is None:
        from recal.resources import sample_images

        clean = sample_images()
    corrupted = _find(suite.folders, data) if suite.corruptions else None
    here = bool(clean if not suite.corruptions else corrupted or (suite.parameters and clean))
    ways = []
    if suite.folders and corrupted is None:
        ways.append(how_to_get(suite.data, suite.folders[0]))
    if clean is None and suite.clean.folders:
        ways.append(how_to_get(suite.clean.data, suite.clean.folders[0]))
    return Places(
        clean=clean, corrupted=corrupted, ready=here, missing=" or ".join(dict.fromkeys(ways))
    )


def how_to_get(data: str, folder: str) -> str:
    """Return how a set is got, in a few words: `CIFAR-10-C/, by recal data fetch cifar10c`."""
    if not data:
        return f"{folder}/"
    known = PUBLISHED[data]
    way = f"`recal data fetch {data}`" if known.downloads else f"from {known.page}"
    return f"{folder}/, {way}"


def _find(names: Sequence[str], data: Path | None) -> Path | None:
    if data is not None and data.name in names and data.exists():
        return data
    for place in data_folders() if data is None else [data]:
        for name in names:
            for path in (place / name, place / f"{name}{TAR_SUFFIX}"):
                if path.exists():
                    return path
    return None


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
    """Find the images of a suite, and refuse them where they are not what the suite says.

    Args:
        suite: The suite.
        data: The user's folder or file, or None to look in the usual places.
        size: Side of the network's input in pixels.
        cells: The corrupted cells wanted; published files must hold all of them.
        limit: Use a stratified sample of so many images.
        seed: Of that sample, and of corruptions made on the fly.
        threads: That read and corrupt.

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
            raise InputError(_how_to_get(suite, data, error)) from error
        if clean is not None:
            warnings.append(f"No clean cell: {error}")
        clean = of_clean = None
    of_corrupted = of_clean if cells else None
    if published is not None:
        of_corrupted = _choose(suite, published, limit, seed)
        if clean is not None and not _alike(clean, published):
            warnings.append(
                f"{clean.source.where}: the clean images are others than those of "
                f"{published.where}, or in another order: clean and corrupted cells are not paired."
            )
    elif cells and not suite.parameters:
        raise InputError(_how_to_get(suite, data, None))
    return SuiteImages(
        suite=suite, clean=clean, published=published, size=size, seed=seed, of_clean=of_clean,
        of_corrupted=of_corrupted, threads=threads, warnings=tuple(warnings),
    )  # fmt: skip


def check_pixels(images: SuiteImages, cells: Sequence[Cell]) -> None:
    """Read one image of each cell: what cannot be decoded, or is of another size, is refused.

    Raises:
        InputError: It names the cell and the image.
    """
    corrupted = [cell for cell in cells if cell.corruption is not None]
    # what is corrupted here is the same in every cell before it is
    for cell in cells if images.published is not None else [*cells[:1], *corrupted[:1]]:
        images.check(cell)


def _choose(suite: Suite, images: CleanImages | Published, limit: int | None, seed: int) -> Chosen:
    where = images.where
    indices = choose_images(suite, images.labels, images.names, where, limit=limit, seed=seed)
    return Chosen(labels=images.labels, indices=indices)


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


def _how_to_get(suite: Suite, data: Path | None, error: InputError | None) -> str:
    ways = []
    if suite.corruptions and suite.folders:
        ways.append(f"the published images ({how_to_get(suite.data, suite.folders[0])})")
    if suite.parameters or not suite.corruptions:
        purpose = " to regenerate them from" if suite.corruptions else ""
        folder = suite.clean.folders[0] if suite.clean.folders else "class folders"
        ways.append(f"clean test images{purpose} ({how_to_get(suite.clean.data, folder)})")
    reason = f"({error})" if data is not None and error is not None else places_searched(data)
    got = "neither" if len(ways) == 2 else "none"
    return f"suite {suite.name}: expected {', or '.join(ways)}, got {got}. {reason}"
