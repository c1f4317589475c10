"""Preparation: how images of any size become the input of a network."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta
from msgspec.structs import replace

from recal.data.images import ImageSource
from recal.data.sampling import spread
from recal.errors import BrokenImageError
from recal.schema import Record

Side: TypeAlias = Annotated[int, Meta(ge=1, le=16384)]
Byte: TypeAlias = Annotated[int, Meta(ge=0, le=255)]
Colour: TypeAlias = Annotated[tuple[Byte, Byte, Byte], Meta(description="3 integers from 0 to 255")]
CropShare: TypeAlias = Annotated[float, Meta(ge=0.05, le=1)]
Interpolation: TypeAlias = Literal["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"]
CropMode: TypeAlias = Literal["center", "squash", "border", "none"]

LOOKED_AT = 64  # images of a set that tell whether it was prepared before


class Preparation(Record, frozen=True, kw_only=True):
    """How images of any size become the input of a network.

    Attributes:
        size: Side of the network's square input, in pixels.
        crop_share: Share of the resized side that the crop keeps; timm's `crop_pct`.
        interpolation: Filter of resizing, by Pillow's name.
        crop_mode: `center` resizes the short side and crops the middle; `squash` resizes both sides
            to a square first; `border` resizes the long side and pads the short one; `none` accepts
            images of the network's size alone.
        fill: Colour of the padding of `border`.
        published: Side at which prepared images of the family are published, such as 224 of
            ImageNet-C; None for none.
        channels: Number of channels of the network's input: 3 for RGB, 1 for grey.
    """

    size: Side
    crop_share: CropShare = 1.0
    interpolation: Interpolation = "bicubic"
    crop_mode: CropMode = "none"
    fill: Colour = (0, 0, 0)
    published: Side | None = None
    channels: Annotated[int, Meta(ge=1)] = 3

    @property
    def words(self) -> str:
        """A few words for messages."""
        if self.crop_mode == "none":
            return f"{self.size} pixels as they are"
        share = f"{self.crop_mode} crop of {self.crop_share:g}"
        return f"{self.size} pixels, {share}, {self.interpolation}"

    @property
    def whole(self) -> Preparation:
        """The preparation of images that were cropped before: they are resized, and keep all."""
        mode: CropMode = "none" if self.crop_mode == "none" else "squash"
        return replace(self, crop_share=1.0, crop_mode=mode, published=None)

    def fitted(self, source: ImageSource) -> Preparation:
        """Return the preparation of one set of images.

        It is `whole` where all images are squares of the network's size, or of the size at which
        the family's prepared images are published: they were resized and cropped before.
        """
        sides = (self.size, self.published)
        if self.crop_mode == "none" or self.published is None or not len(source):
            return self
        found = set()
        for place in spread(len(source), LOOKED_AT).tolist():
            try:
                found.add(source[place].shape[:2])
            except BrokenImageError:
                continue  # whoever reads it says so
            if len(found) > 1 or not found <= {(side, side) for side in sides}:
                return self
        return self.whole if found else self
