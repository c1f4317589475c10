"""Finding a suite's images, and saying before any work what is wrong or odd about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recal.data.finding import places_searched
from recal.errors import InputError
from recal.suites.clean import find_clean
from recal.suites.images import Chosen, SuiteImages
from recal.suites.places import how_to_get
from recal.suites.published import find_published
from recal.suites.sampling import choose_images

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from recal.suites.clean import CleanImages
    from recal.suites.published import Published
    from recal.suites.suite import Cell, Suite


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
