"""The data sets: published ones, from `catalogue.toml`, and records of regenerated ones."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, field

from recal.files import data_folders, read_text, write_whole
from recal.schema import Record, read_json_file, read_toml, to_json

SUMS = "SHA256SUMS"
PROVENANCE = "PROVENANCE.json"
REGENERATED = "regenerated: not comparable digit for digit with the published set"


@dataclass(frozen=True)
class Download:
    """One file of a data set.

    Attributes:
        url: Address of the file.
        md5: Published checksum of its content, in hexadecimal.
    """

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.split("?")[0].rsplit("/", 1)[-1]

    @property
    def is_archive(self) -> bool:
        """Whether it is unpacked."""
        return self.name.endswith((".tar", ".tar.gz", ".tgz"))


class PublishedSet(Record, frozen=True, kw_only=True):
    """A published data set.

    Attributes:
        title: Name for people.
        folder: Usual name of its folder; a folder of this name at the top of an archive becomes it.
        gigabytes: Approximate size on disk, unpacked.
        downloads: MD5 checksum of each file, by address. A set without published checksums has no
            downloads, because they could not be verified.
        page: Address of the page to get a set without downloads from.
    """

    title: str
    folder: str
    gigabytes: Annotated[float, Meta(gt=0)]
    downloads: dict[str, str] = field(default_factory=dict)
    page: str = ""

    @property
    def files(self) -> list[Download]:
        """The files to download, in order."""
        return [Download(url, md5) for url, md5 in self.downloads.items()]


@cache
def catalogue() -> Mapping[str, PublishedSet]:
    """Return the published data sets by name."""
    return read_toml(Path(__file__).with_suffix(".toml"), dict[str, PublishedSet])


def find_set(name: str) -> Path | None:
    """Return the folder of a set in the usual places, or None."""
    for place in data_folders():
        for folder in (catalogue()[name].folder, name):
            if (place / folder).is_dir():
                return place / folder
    return None


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


class _Labelled(Struct):
    """The one field that every record of regenerated data has, whoever wrote it."""

    label: str


def read_provenance(folder: Path) -> Provenance | None:
    """Return the record of a folder of regenerated data, or None if there is none."""
    path = folder / PROVENANCE
    return read_json_file(path, Provenance) if path.is_file() else None


def write_provenance(folder: Path, record: Provenance) -> None:
    """Write the record of a folder, whole or not at all."""
    write_whole(folder / PROVENANCE, to_json(record, indent=1) + "\n")


def label_of(folder: Path) -> str | None:
    """Return the label that results made from a folder must show, or None for published data."""
    path = folder / PROVENANCE
    return read_json_file(path, _Labelled).label if path.is_file() else None


@cache
def wnids(name: str) -> tuple[str, ...]:
    """Return the synsets of `imagenet`, `imagenet_a` or `imagenet_r` in the order of the logits."""
    return tuple(read_text(timm_file(f"{name}_synsets.txt")).split())


def timm_file(name: str) -> Path:
    """Return the path of one of timm's files about ImageNet.

    They are read without importing timm, which would import torch.
    """
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / "_info" / name
