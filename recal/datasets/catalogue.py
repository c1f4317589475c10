"""The published data sets that recal knows, where they come from and how they are recognised.

To add one: add an entry to the table at the foot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recal.resources import data_folders

if TYPE_CHECKING:
    from pathlib import Path


SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Download:
    """One file of a data set.

    Attributes:
        url: Where it comes from.
        md5: Its published checksum in hexadecimal. A file without one is not fetched: what came
            could not be told from what should have.
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


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """A data set that can be fetched.

    Attributes:
        title: For people.
        folder: The folder's usual name; a folder of this name on top of an archive becomes it.
        downloads: Its files.
        gigabytes: About what it takes on disk, unpacked.
        page: Where to get it by hand, for sets without downloads.
    """

    title: str
    folder: str
    downloads: tuple[Download, ...] = ()
    gigabytes: float
    page: str = ""


def find_set(name: str) -> Path | None:
    """Return the folder of a set in the usual places, or None."""
    for place in data_folders():
        for folder in (PUBLISHED[name].folder, name):
            if (place / folder).is_dir():
                return place / folder
    return None


def _zenodo(record: int, **files: str) -> tuple[Download, ...]:
    base = f"https://zenodo.org/records/{record}/files"
    return tuple(
        Download(f"{base}/{name.replace('_', '-')}.tar", md5) for name, md5 in files.items()
    )


_CIFAR = "https://www.cs.toronto.edu/~kriz"
_HENDRYCKS = "https://people.eecs.berkeley.edu/~hendrycks"
_FROST = "https://raw.githubusercontent.com/hendrycks/robustness/master/ImageNet-C/create_c"
PUBLISHED = {
    "cifar10": PublishedSet(
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        downloads=(
            Download(f"{_CIFAR}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
        ),
        gigabytes=0.2,
    ),
    "cifar100": PublishedSet(
        title="CIFAR-100",
        folder="cifar-100-python",
        downloads=(
            Download(f"{_CIFAR}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
        ),
        gigabytes=0.2,
    ),
    "cifar10c": PublishedSet(
        title="CIFAR-10-C",
        folder="CIFAR-10-C",
        downloads=_zenodo(2535967, CIFAR_10_C="56bf5dcef84df0e2308c6dcbcbbd8499"),
        gigabytes=2.9,
    ),
    "cifar100c": PublishedSet(
        title="CIFAR-100-C",
        folder="CIFAR-100-C",
        downloads=_zenodo(3555552, CIFAR_100_C="11f0ed0f1191edbf9fa23466ae6021d3"),
        gigabytes=2.9,
    ),
    "tinyimagenetc": PublishedSet(
        title="Tiny-ImageNet-C",
        folder="Tiny-ImageNet-C",
        downloads=_zenodo(
            8206060,
            Tiny_ImageNet_C="f9c9a9dbdc11469f0b850190f7ad8be1",
            Tiny_ImageNet_C_extra="0db0588d243cf403ef93449ec52b70eb",
        ),
        gigabytes=3.5,
    ),
    "imagenetc": PublishedSet(
        title="ImageNet-C",
        folder="ImageNet-C",
        downloads=_zenodo(
            2235448,
            noise="e80562d7f6c3f8834afb1ecf27252745",
            blur="2d8e81fdd8e07fef67b9334fa635e45c",
            weather="33ffea4db4d93fe4a428c40a6ce0c25d",
            digital="89157860d7b10d5797849337ca2e5c03",
            extra="d492dfba5fc162d8ec2c3cd8ee672984",
        ),
        gigabytes=75,
    ),
    "imageneta": PublishedSet(
        title="ImageNet-A",
        folder="imagenet-a",
        downloads=(Download(f"{_HENDRYCKS}/imagenet-a.tar", "c3e55429088dc681f30d81f4726b6595"),),
        gigabytes=0.7,
    ),
    "imagenetr": PublishedSet(
        title="ImageNet-R",
        folder="imagenet-r",
        downloads=(Download(f"{_HENDRYCKS}/imagenet-r.tar", "a61312130a589d0ca1a8fca1f2bd3337"),),
        gigabytes=2.2,
    ),
    "imagenetv2": PublishedSet(
        title="ImageNet-V2, matched frequency",
        folder="imagenetv2-matched-frequency-format-val",
        gigabytes=1.3,
        page="huggingface.co/datasets/vaishaal/ImageNetV2",
    ),
    "cifar10.1": PublishedSet(
        title="CIFAR-10.1, v4 and v6",
        folder="CIFAR-10.1",
        gigabytes=0.02,
        page="github.com/modestyachts/CIFAR-10.1",
    ),
    "imagenetcbar": PublishedSet(
        title="ImageNet-C-bar",
        folder="ImageNet-C-bar",
        gigabytes=30,
        page="github.com/facebookresearch/augmentation-corruption",
    ),
    "imagenet3dcc": PublishedSet(
        title="ImageNet-3DCC",
        folder="ImageNet-3DCC",
        gigabytes=100,
        page="github.com/EPFL-VILAB/3DCommonCorruptions",
    ),
    "imagenetsketch": PublishedSet(
        title="ImageNet-Sketch",
        folder="imagenet-sketch",
        gigabytes=8,
        page="github.com/HaohanWang/ImageNet-Sketch",
    ),
    "frost": PublishedSet(
        title="The textures of frost, which the corruption of this name needs",
        folder="frost",
        downloads=(
            Download(f"{_FROST}/frost1.png", "6ead634ace1f366d77e87078b465863c"),
            Download(f"{_FROST}/frost2.png", "98f0d2b1d74a048d3bc9c7ecfd886939"),
            Download(f"{_FROST}/frost3.png", "b3ed8eb147824261888e730f916c0d8b"),
            Download(f"{_FROST}/frost4.jpg", "d70b9d6aa0b1fe7bd8133b113787e078"),
            Download(f"{_FROST}/frost5.jpg", "50984ae2c871b7df2c28f1d71ca460a0"),
            Download(f"{_FROST}/frost6.jpg", "bd01b8fc7c34a4ff3265c6fb476cff7b"),
        ),
        gigabytes=0.002,
    ),
}
