"""Finding a data set's folder: where the user says, else in the usual places."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from recal.data.layouts import open_images
from recal.errors import InputError
from recal.resources import cache_folder, data_folders

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from recal.data.sources import ImageSource


def candidates(data: Path | None, names: Sequence[str]) -> list[Path]:
    """Return the folders that may hold a data set, the likeliest first.

    Args:
        data: The user's choice; with it nowhere else is looked.
        names: The data set's usual folder names, looked for below each place.
    """
    places = [data] if data is not None else data_folders()
    named = [place / name for place in places for name in names]
    return [folder for folder in (*named, *places) if folder.is_dir()]


def find_images(
    data: Path | None, names: Sequence[str], split: str, *, classes: int | None, what: str
) -> ImageSource:
    """Open the images of a data set.

    Args:
        data: The user's choice, or None to look in the usual places.
        names: The data set's usual folder names.
        split: `train` or `test`.
        classes: The number of classes that labelled class folders must have, or None for any. A
            folder that the user did not name is passed over where it has another number.
        what: What is looked for, for the message.

    Raises:
        InputError: They are nowhere, or malformed where the user said.
    """
    if data is not None and not data.is_dir():  # a file, or nothing
        return open_images(data, split)  # says what is wrong with it
    problem = None
    for folder in candidates(data, names):
        # a place for data sets may hold archives of any: only those of a named folder are meant
        named = data is not None or folder.name in names
        try:
            source = open_images(folder, split, archives=named)
        except InputError as error:
            problem = error
            continue
        if classes is None or source.classes is None or len(source.classes) == classes:
            return source
        problem = InputError(
            f"{folder}: expected {classes} class folders, got {len(source.classes)}."
        )
    if data is not None and problem is not None:
        raise problem
    raise InputError(f"{what}: expected images, got none. {places_searched(data)}")


def places_searched(data: Path | None) -> str:
    """Return a sentence on where data were looked for and how to name another place."""
    if data is not None:
        return f"Looked in {data}."
    environment = os.environ.get("RECAL_DATA")
    return (
        f"Looked in --data (not given), recal.toml ([data] data: not given), $RECAL_DATA "
        f"({environment or 'not set'}), ./data and {cache_folder() / 'data'}. "
        "Put the data set into one of these, or name its folder with --data."
    )
