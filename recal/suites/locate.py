"""Finding a suite's images, and checking them before any work."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recal.data.folders import named_places, places_searched
from recal.data.sampling import stratified_sample
from recal.datasets.catalogue import catalogue
from recal.errors import InputError, listed
from recal.files import data_folders, read_text, shipped
from recal.networks.spec import ModelSpec
from recal.policies.policy import load_policy
from recal.suites.clean import CleanImages, find_clean
from recal.suites.images import ChosenImages, SuiteImages
from recal.suites.published import Published, find_published
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

    They are searched in `data`, or in the usual places if it is None.
    """
    clean = next(iter(named_places(data, suite.clean.folders)), None)
    corrupted = next(iter(named_places(data, suite.corrupted.folders)), None)
    ways = []
    if corrupted is None and suite.corrupted.folders:
        ways.append(how_to_get(suite.corrupted))
    if clean is None and suite.clean.folders:
        ways.append(how_to_get(suite.clean))
    made = clean if suite.corrupted.parameters or not suite.corrupted.corruptions else None
    return SuiteLocation(
        clean=clean,
        corrupted=corrupted,
        ready=(corrupted or made) is not None,
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
    spec: ModelSpec,
    cells: Sequence[Cell],
    *,
    limit: int | None = None,
    seed: int = 0,
    threads: int = 1,
) -> SuiteImages:
    """Open the images of a suite; what the suite does not declare is an `InputError`.

    Args:
        suite: The suite.
        data: The user's folder or file, or None to look in the usual places.
        spec: The networks' preparation; what a suite declares for its clean images overrides it.
        cells: The corrupted cells to open; published files must hold all of them.
        limit: Size of a stratified sample of the images; None uses all of them.
        seed: Seed of that sample, and of corruptions made on the fly.
        threads: Number of threads that read and corrupt.
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
    own = spec.clean_policy if spec.policy else load_policy(suite.family, "clean")
    return SuiteImages(
        suite=suite,
        clean=clean,
        published=published,
        network=spec.preparation,
        policy=suite.policy or own,
        seed=seed,
        of_clean=of_clean,
        of_corrupted=of_corrupted,
        threads=threads,
        warnings=tuple(warnings),
    )


def check_pixels(images: SuiteImages, cells: Sequence[Cell]) -> None:
    """Read one image of each cell, or raise an error that names the cell and image.

    Warnings are added about images that are used in another way than a user may expect.
    """
    corrupted = [cell for cell in cells if cell.corruption is not None]
    # cells that are corrupted here are made of the same clean images
    for cell in cells if images.published is not None else [*cells[:1], *corrupted[:1]]:
        images.check(cell)
    images.warnings = (*images.warnings, *images.resizings(cells))


def _choose(
    suite: Suite, images: CleanImages | Published, limit: int | None, seed: int
) -> ChosenImages:
    where = images.where
    indices = choose_images(suite, images.labels, images.names, where, limit=limit, seed=seed)
    answers = images.answers if isinstance(images, CleanImages) else None
    return ChosenImages(labels=images.labels, indices=indices, answers=answers)


def choose_images(
    suite: Suite,
    labels: NDArray[np.int64],
    names: Sequence[str] | None,
    where: Path,
    *,
    limit: int | None,
    seed: int,
) -> NDArray[np.int64]:
    """Return the indices of the images to use, int64 (n,), rising.

    They are all images of the suite's classes, the first ones or those that the suite lists, or a
    stratified sample of `limit` of these. `names` are `<class folder>/<file>` of all, or None for
    rows of arrays.
    """
    if suite.names:
        chosen = _in_list(suite, names, where)
    elif suite.first:
        if names is not None:
            raise InputError(
                f"{where}: expected arrays in the published order, of which suite {suite.name} "
                f"takes the first {suite.first:,}, got files in class folders."
            )
        chosen = np.arange(min(suite.first, len(labels)))
    else:
        chosen = np.arange(len(labels))
    chosen = chosen[labels[chosen] >= 0]
    if not len(chosen):
        raise InputError(
            f"{where}: expected images of the classes of suite {suite.name}, got none."
        )
    return chosen[stratified_sample(labels[chosen], limit, seed)]


def _in_list(suite: Suite, names: Sequence[str] | None, where: Path) -> NDArray[np.int64]:
    if names is None:
        raise InputError(
            f"{where}: expected files in class folders, of which suite {suite.name} names some, "
            "got arrays."
        )
    path = _find_list(suite)
    wanted = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    numbers = {_stem(name): index for index, name in enumerate(names)}
    missing = [f"'{name}'" for name in wanted if _stem(name) not in numbers]
    if missing:
        raise InputError(
            f"{where}: expected the images of {path.name}, got a set without {listed(missing, 1)}."
        )
    return np.array(sorted({numbers[_stem(name)] for name in wanted}), np.int64)


def _find_list(suite: Suite) -> Path:
    """Return the path of the suite's list: shipped, among the data, or in RobustBench's package."""
    folders = [shipped("evals"), Path(), *data_folders()]
    spec = importlib.util.find_spec("robustbench")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "helper_files")
    for folder in folders:
        if (folder / suite.names).is_file():
            return folder / suite.names
    raise InputError(
        f"suite {suite.name}: expected the list {suite.names}, got none in "
        f"{', '.join(map(str, folders))}. RobustBench's package holds its own, in "
        "robustbench/helper_files/."
    )


def _stem(name: str) -> str:
    """Return a name without its suffix: the same image may be .JPEG here and .png there."""
    return name.rpartition(".")[0] or name


def _alike(clean: CleanImages, published: Published) -> bool:
    """Whether the n-th clean image is the n-th corrupted one."""
    if not np.array_equal(clean.labels, published.labels):
        return False
    if clean.names is None or published.names is None:
        # rows of arrays in the order of the test set; files have an order of their own
        return clean.names is None and published.names is None
    return [*map(_stem, clean.names)] == [*map(_stem, published.names)]


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
