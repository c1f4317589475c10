"""From uint8 images to the input of networks: (x / 255 - mean) / std, channels first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def normalise_array(
    images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32]:
    """Normalise an array of images.

    Args:
        images: uint8 (N, H, W, C) in 0 to 255.
        mean: Mean of each channel of images in [0, 1].
        std: Standard deviation of each channel of images in [0, 1].

    Returns:
        float32 (N, C, H, W), contiguous.
    """
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    planes /= np.float32(255.0)
    planes -= np.asarray(mean, np.float32)[:, None, None]
    planes /= np.asarray(std, np.float32)[:, None, None]
    return planes


def normalise(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> torch.Tensor:
    """Normalise a tensor of images as `normalise_array` does, on a device that holds the result.

    Channels stay innermost in memory, which kernels are fastest with.
    """
    import torch

    planes = images.to(device).permute(0, 3, 1, 2).float().div_(255.0)
    shift, scale = torch.tensor((mean, std), dtype=torch.float32, device=device)[..., None, None]
    return planes.sub_(shift).div_(scale)
