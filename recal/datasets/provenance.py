"""The record of a regenerated data set: everything that its bytes depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from recal.files import write_whole
from recal.schema import Record, read_json_file, to_json

PROVENANCE = "PROVENANCE.json"
REGENERATED = "regenerated: not comparable digit for digit with the published set"


class Provenance(Record, frozen=True, kw_only=True):
    """The content of PROVENANCE.json in a folder of regenerated data.

    Attributes:
        label: The label that results made from the folder must show.
        set: Name of the published set.
        family: Name of the corruption parameters.
        side: Side of the images, in pixels.
        severities: Severities of each corruption.
        seed: Seed of the random draws.
        images: Number of clean images.
        source_sha256: Hash of the clean images' names, contents and labels.
        jpeg_quality: Quality of the JPEG files; None for arrays.
        versions: Versions of recal, Python and the libraries that compute the images.
        corruptions: The corruptions that are, or were going to be, in the folder.
        complete: Whether all of them are there.
    """

    label: str = REGENERATED
    set: str
    family: str
    side: Annotated[int, Meta(ge=1)]
    severities: tuple[int, ...]
    seed: int
    images: Annotated[int, Meta(ge=0)]
    source_sha256: str
    jpeg_quality: int | None
    versions: dict[str, str]
    corruptions: tuple[str, ...] = ()
    complete: bool = False


class _Labelled(msgspec.Struct):
    """The one field that every record of regenerated data has, whoever wrote it."""

    label: str


def read_provenance(folder: Path) -> Provenance | None:
    """Return the record of a folder of regenerated data, or None if there is none.

    Raises:
        InputError: The record cannot be read.
    """
    path = folder / PROVENANCE
    return read_json_file(path, Provenance) if path.is_file() else None


def write_provenance(folder: Path, record: Provenance) -> None:
    """Write the record of a folder, whole or not at all."""
    write_whole(folder / PROVENANCE, to_json(record, indent=1) + "\n")


def label_of(folder: Path) -> str | None:
    """Return the label that results made from a folder must show, or None for published data.

    Raises:
        InputError: The folder has a record that cannot be read.
    """
    path = folder / PROVENANCE
    return read_json_file(path, _Labelled).label if path.is_file() else None
