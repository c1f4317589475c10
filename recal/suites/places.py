"""What of a suite is on this machine: a look at folders and files, none is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recal.data.archives import TAR_SUFFIX
from recal.data.published import PUBLISHED
from recal.resources import data_folders

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from recal.suites.suite import Suite


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
        from recal.sample_data import sample_images

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
