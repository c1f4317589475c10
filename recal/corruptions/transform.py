"""A corruption as a transform of single images, in the manner of torchvision's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from recal.corruptions.batches import corrupt
from recal.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    Picture = TypeVar("Picture", Image.Image, NDArray[np.uint8])


@dataclass(frozen=True)
class Corruption:
    """Corrupt one image at a time; callable, so that it stands in torchvision's `Compose`.

    Attributes:
        name: One of `CORRUPTIONS` or `EXTRA_CORRUPTIONS`.
        severity: 1 to 5.
        family: `cifar`, `tiny` or `imagenet`.
        seed: Not negative.
    """

    name: str
    severity: int
    family: str
    seed: int = 0

    def __call__(self, image: Picture, index: int | None = None) -> Picture:
        """Return the corrupted image, of the kind that came.

        Args:
            image: A PIL image of mode RGB, or uint8 (H, W, 3).
            index: The image's number in its data set, which keys the draws. None takes a hash of
                the pixels: the draws are the same in every worker and epoch, whatever the order.

        Raises:
            UsageError: As `corrupt`.
            InputError: As `corrupt`; or a PIL image of another mode.
        """
        if isinstance(image, np.ndarray):
            return self._corrupt(image, index)
        if getattr(image, "mode", None) != "RGB":
            found = getattr(image, "mode", type(image).__name__)
            raise InputError(
                f"image: expected a PIL image of mode RGB or an array, got {found}. Convert "
                "it with image.convert('RGB')."
            )
        from PIL import Image

        return Image.fromarray(self._corrupt(np.asarray(image), index))

    def _corrupt(self, pixels: NDArray[np.uint8], index: int | None) -> NDArray[np.uint8]:
        if index is None:
            digest = hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=8).digest()
            index = int.from_bytes(digest, "little") >> 1
        corrupted = corrupt(
            pixels[None], self.name, self.severity, family=self.family, seed=self.seed,
            indices=[index],
        )  # fmt: skip
        return np.asarray(corrupted[0])
