"""The published data sets, from `catalogue.toml`: where they come from, how they are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from msgspec import Meta, field

from recal.resources import data_folders
from recal.schema import Record, read_toml

SUMS = "SHA256SUMS"


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
