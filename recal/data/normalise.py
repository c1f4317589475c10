"""From uint8 images to the input of networks: (x / 255 - mean) / std, channels first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

ChannelOrder = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Normalisation:
    """How pixels become the values that a network takes.

    Attributes:
        mean: Mean that is subtracted from each channel of RGB images in [0, 1].
        std: What each channel of RGB images in [0, 1] is divided by; 1/255 gives values to 255.
        channel_order: Order of the channels in the network's input.
    """

    mean: Sequence[float]
    std: Sequence[float]
    channel_order: ChannelOrder = "rgb"

    @property
    def step(self) -> int:
        """Step through the channels of RGB images that gives the network's order: 1 or -1."""
        return -1 if self.channel_order == "bgr" else 1

    @property
    def numbers(self) -> NDArray[np.float64]:
        """Mean and std in the order of the network's input, float64 (2, C)."""
        return np.array([self.mean, self.std], np.float64)[:, :: self.step]


def normalise_array(images: NDArray[np.uint8], normalisation: Normalisation) -> NDArray[np.float32]:
    """Normalise an array of images.

    Args:
        images: uint8 (N, H, W, C) in 0 to 255; RGB if C is 3.
        normalisation: Mean, std and order of the channels.

    Returns:
        float32 (N, C, H, W), contiguous.
    """
    mean, std = normalisation.numbers.astype(np.float32)[..., None, None]
    ordered = images[..., :: normalisation.step]
    planes = np.ascontiguousarray(ordered.transpose(0, 3, 1, 2), np.float32)
    planes /= np.float32(255.0)
    planes -= mean
    planes /= std
    return planes


def normalise(
    images: torch.Tensor, normalisation: Normalisation, device: torch.device
) -> torch.Tensor:
    """Normalise a tensor of images as `normalise_array` does, on a device that holds the result.

    Channels stay innermost in memory, which kernels are fastest with.
    """
    import torch

    images = images.to(device)
    ordered = images.flip(-1) if normalisation.step < 0 else images
    planes = ordered.permute(0, 3, 1, 2).float().div_(255.0)
    numbers = torch.from_numpy(normalisation.numbers.astype(np.float32))
    shift, scale = numbers.to(device)[..., None, None]
    return planes.sub_(shift).div_(scale)
