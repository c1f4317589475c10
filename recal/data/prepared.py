"""Images under a policy, as arrays: without torch where nothing is drawn."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np

from recal.data.draws import keyed_draws
from recal.errors import InputError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recal.data.policies import Policy
    from recal.data.sources import ImageSource


class PreparedImages:
    """The images of a source under a policy, as arrays, with draws keyed by (seed, image index).

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
        self.policy = policy
        self.seed, self.size = seed, size
        try:
            self._transform = policy.transform()
            if policy.draws:
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
        with keyed_draws(self.seed, index) if self.policy.draws else nullcontext():
            image = self._transform(self.source[index])
        if image.shape != (self.size, self.size, 3):
            height, width = image.shape[:2]
            raise InputError(
                f"{self.source.where}: image {index}: expected {self.size}x{self.size} pixels "
                f"after the policy '{self.policy.name}', got {width}x{height}. Set --size, or "
                "choose a family or policy that resizes."
            )
        return image

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return several images, uint8 (N, size, size, 3)."""
        return np.stack([self.read(int(index)) for index in indices])
