"""Families of data sets: their preprocessing, and which images belong to them."""

import math
from pathlib import Path
from typing import Annotated, Protocol, TypeAlias

import msgspec
from msgspec import Meta

from recal.data.folders import find_images
from recal.data.images import ImageSource
from recal.data.normalise import Normalisation
from recal.data.remote import local_data
from recal.data.splits import TRAIN
from recal.errors import pick
from recal.files import shipped
from recal.policies.preparation import CropMode, CropShare, Interpolation, Preparation, Side
from recal.schema import Record, read_toml

FAMILY_FILE = "family.toml"

Triple: TypeAlias = tuple[float, float, float]
Count: TypeAlias = Annotated[int, Meta(ge=1)]


class Family(Record, frozen=True, kw_only=True):
    """The defaults for a family of data sets, which a checkpoint or an option may override.

    Attributes:
        name: The name of the file's folder, such as `cifar`.
        mean: Mean of each channel of RGB images in [0, 1].
        std: Standard deviation of each channel of RGB images in [0, 1].
        size: Side of the network's square input, in pixels; that of published prepared images too.
        crop_share: Share of the resized side that the crop keeps.
        interpolation: Filter of resizing.
        crop_mode: How test images are resized and cropped: see `Preparation`.
        classes: Number of classes, or None where the family's data sets differ in it.
        folders: Usual folder names of its data sets, by their number of classes.
    """

    name: str = ""
    mean: Triple
    std: Triple
    size: Side
    crop_share: CropShare = 1.0
    interpolation: Interpolation = "bicubic"
    crop_mode: CropMode
    classes: Count | None = None
    folders: dict[int, tuple[str, ...]]

    @property
    def preparation(self) -> Preparation:
        """How test images become the input of the family's usual networks."""
        return Preparation(
            size=self.size,
            crop_share=self.crop_share,
            interpolation=self.interpolation,
            crop_mode=self.crop_mode,
            published=self.size,
        )

    @property
    def normalisation(self) -> Normalisation:
        """The mean and std as a `Normalisation`."""
        return Normalisation(self.mean, self.std)


class OfFamily(Protocol):
    """Something that belongs to a data set of a family, such as a network's `ModelSpec`."""

    @property
    def family(self) -> str:
        """The family's name."""

    @property
    def classes(self) -> int:
        """The number of classes, K."""


def family_names() -> list[str]:
    """Return the names of the shipped families."""
    return sorted(path.parent.name for path in shipped("policies").glob(f"*/{FAMILY_FILE}"))


def load_family(name: str) -> Family:
    """Read a shipped family; another name is a `UsageError`."""
    path = shipped("policies") / pick(name, family_names(), "--family") / FAMILY_FILE
    return msgspec.structs.replace(read_toml(path, Family), name=name)


def nearest_family(side: int) -> str:
    """Return the family whose input is nearest in size to images of `side` pixels.

    The sample's is left out: its images are known, and as large as CIFAR's.
    """
    sizes = {name: load_family(name).size for name in family_names() if name != "sample"}
    return min(sizes, key=lambda name: abs(math.log(side / sizes[name])))


def usual_folders(member: OfFamily) -> tuple[str, ...]:
    """Return the usual folder names of the data set with a family and number of classes."""
    return load_family(member.family).folders.get(member.classes, ())


def open_family_images(spec: OfFamily, data: str | Path | None, split: str) -> ImageSource:
    """Open one split of the data set that a network is trained on, or of a given folder.

    It is an `InputError` if there are none, or if they are malformed.

    Args:
        spec: The network's family and number of classes, usually its `ModelSpec`.
        data: A folder or file of images, or None to look in the usual places.
        split: `train` or `test`.
    """
    what = f"{'calibration' if split == TRAIN else split} images ({spec.family})"
    folder = None if data is None else local_data(data)
    return find_images(folder, usual_folders(spec), split, what)
