"""Images for networks in ONNX Runtime, prepared without torch where nothing is drawn."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from recal.data.draws import keyed_draws
from recal.data.layouts import TEST, open_images
from recal.data.policies import load_policy
from recal.errors import InputError, UsageError
from recal.sample_data import sample_images

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from recal.checkpoint.spec import ModelSpec
    from recal.data.policies import Policy
    from recal.data.sources import ImageSource

WITHOUT_DRAWS = frozenset({"pad", "resize", "center_crop"})


class PreparedImages:
    """The images of a source under a policy, as arrays; the same as `PolicyImages` gives tensors.

    Args:
        source: The images.
        policy: What is done to each. One that draws needs torch, as its draws are torchvision's.
        seed: With an image's index, the key of its draws.
        size: Side of the network's input in pixels.

    Raises:
        UsageError: The policy needs torch, which is not installed.
    """

    def __init__(self, source: ImageSource, policy: Policy, seed: int, size: int) -> None:
        self.source = source
        self._seed, self._size, self._name = seed, size, policy.name
        self._draws = any(name not in WITHOUT_DRAWS for name, _ in policy.ops)
        try:
            self._transform = policy.transform()
            if self._draws:
                import torch  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"policy '{policy.name}': expected torch and torchvision, which it draws with, got "
                f"none ({error}). Use --mode clean, or install them."
            ) from error

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`, uint8 (size, size, 3).

        Raises:
            InputError: It cannot be decoded, or the policy leaves it at another size.
        """
        with keyed_draws(self._seed, index) if self._draws else nullcontext():
            image = self._transform(self.source[index])
        if image.shape != (self._size, self._size, 3):
            height, width = image.shape[:2]
            raise InputError(
                f"{self.source.where}: image {index}: expected {self._size}x{self._size} pixels "
                f"after the policy '{self._name}', got {width}x{height}. Set --size, or choose a "
                "family or policy that resizes."
            )
        return image

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return several images, uint8 (N, size, size, 3)."""
        return np.stack([self.read(int(index)) for index in indices])


def comparison_images(
    spec: ModelSpec, data: Path | None, count: int
) -> tuple[NDArray[np.uint8], str]:
    """Read images spread evenly over a data set.

    Args:
        spec: Says which preparation and size.
        data: The user's folder, or None for the bundled images, resized to the network's input.
        count: How many at most.

    Returns:
        uint8 (n, size, size, 3), and what they are, for people.
    """
    if data is None:
        source = open_images(sample_images(), TEST)
        chosen = [Image.fromarray(source[int(i)]) for i in _spread(len(source), count)]
        resized = [np.asarray(image.resize((spec.size, spec.size))) for image in chosen]
        return np.stack(resized), f"{len(resized)} bundled Fashion-MNIST images"
    source = open_images(data, TEST)
    images = PreparedImages(source, load_policy(spec.family, "clean"), 0, spec.size)
    read = images.batch(_spread(len(source), count))
    return read, f"{len(read)} images of {source.where}"


def _spread(available: int, count: int) -> NDArray[np.int64]:
    if not available:
        raise InputError("expected images, got none.")
    return np.unique(np.linspace(0, available - 1, min(count, available)).astype(np.int64))
