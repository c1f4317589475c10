"""Corrupting clean images while they are evaluated, as `recal data generate` would."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from recal.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recal.data.prepared import PreparedImages
    from recal.suites.suite import Cell, Suite


class CorruptedHere:
    """Corrupted images, equal to those that `recal data generate` writes for the same seed.

    Of CIFAR's layout they are clean images under corruptions. The larger sets come as JPEG files of
    images that the benchmark's generator has prepared: so they are prepared and compressed alike.

    Args:
        suite: Says which parameters, and which layout.
        clean: The clean images under the family's clean policy.
        seed: Of the draws.
    """

    def __init__(self, suite: Suite, clean: PreparedImages, seed: int) -> None:
        self._suite, self._clean, self._seed = suite, clean, seed
        self.as_clean = suite.parameters == "cifar"

    @property
    def identity(self) -> str:
        """What the pixels depend on, beside the clean images and the cell."""
        prepared = self._clean.policy.sha256 if self.as_clean else "generator"
        return f"{self._suite.parameters} {self._suite.layout} {self._seed} {prepared}"

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return a clean image as it is before it is corrupted, uint8 (size, size, 3).

        Raises:
            InputError: It cannot be decoded, or is not of the networks' size.
        """
        if self.as_clean:
            return self._clean.read(index)
        from recal.data.regenerating import prepare

        where, side = self._clean.source.where, self._clean.size
        try:
            image = prepare(self._clean.source[index], self._suite.parameters)
        except ValueError as error:
            raise InputError(f"{where}: image {index}: {error}.") from error
        if image.shape != (side, side, 3):
            raise InputError(
                f"{where}: image {index}: expected {side}x{side} pixels, which the networks take, "
                f"got {image.shape[1]}x{image.shape[0]}, which the corruptions are defined for."
            )
        return image

    def corrupt(
        self, cell: Cell, images: NDArray[np.uint8], indices: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Return images under a cell's corruption, uint8 (N, size, size, 3)."""
        from recal.corruptions import corrupt

        assert cell.corruption is not None
        assert cell.severity is not None
        corrupted = corrupt(
            images, cell.corruption, cell.severity,
            family=self._suite.parameters, seed=self._seed, indices=indices,
        )  # fmt: skip
        if self._suite.layout == "arrays":
            return corrupted
        return np.stack([_as_jpeg(image) for image in corrupted])


def _as_jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from recal.data.regenerating import JPEG_QUALITY

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    with Image.open(buffer) as decoded:
        return np.asarray(decoded.convert("RGB"))
