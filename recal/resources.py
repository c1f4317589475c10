"""Where the files that ship with recal, and the user's data, are found."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped(kind: str) -> Path:
    """Return the folder of shipped declarations.

    Args:
        kind: `policies` or `evals`.

    Returns:
        `recal/_data/<kind>` in an installed wheel, the folder beside the package in a checkout.
    """
    installed = PACKAGE / "_data" / kind
    return installed if installed.is_dir() else PACKAGE.parent / kind


def sample_folder() -> Path:
    """Return the folder of the bundled checkpoints and images."""
    return PACKAGE / "sample"


def cache_folder() -> Path:
    """Return recal's folder in the user's cache (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "recal"


def data_folders() -> list[Path]:
    """Return the places where data are looked for, in order, when `--data` names none."""
    environment = os.environ.get("RECAL_DATA")
    named = [Path(environment)] if environment else []
    return [*named, Path("data"), cache_folder() / "data"]
