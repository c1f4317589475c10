"""Batches of augmented images, decoded by workers and the same whatever their number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from recal.data.prepared import PreparedImages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from recal.data.policies import Policy
    from recal.data.sources import ImageSource

# augmented images that several passes read are kept as uint8 while they take no more than this
KEPT_BYTES = 2 << 30


class PolicyImages(Dataset[torch.Tensor]):
    """`PreparedImages` as torch's loaders take them."""

    def __init__(self, source: ImageSource, policy: Policy, seed: int, size: int) -> None:
        self.prepared = PreparedImages(source, policy, seed, size)

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.prepared.read(index)))


def load_batches(
    images: Dataset[torch.Tensor], batches: Sequence[NDArray[np.int64]], workers: int
) -> Iterator[torch.Tensor]:
    """Yield uint8 (N, H, W, 3) batches in the order given.

    Args:
        images: Gives one uint8 (H, W, 3) tensor an index.
        batches: The indices of each batch.
        workers: Processes that decode and augment; 0 does it in this one.
    """
    loader = DataLoader(
        images,
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        persistent_workers=False,
    )
    yield from loader


class NormalisedBatches:
    """Batches of augmented, normalised images that can be read several times, the same each time.

    Args:
        images: The images under their policy.
        batches: The indices of each batch.
        mean: Channel means of images in [0, 1].
        std: Channel standard deviations, likewise.
        device: Where the batches are wanted.
        workers: Processes that decode and augment.
        on_batch: Called with the number of images of each batch that has been used.
    """

    def __init__(
        self,
        images: PolicyImages,
        batches: Sequence[NDArray[np.int64]],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        workers: int,
        on_batch: Callable[[int], None],
    ) -> None:
        self._images = images
        self._batches = batches
        self._mean, self._std = mean, std
        self._device = device
        self._workers = workers
        self._on_batch = on_batch
        self._kept: list[torch.Tensor] | None = None

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield float32 (N, 3, H, W) on the device."""
        count = sum(len(batch) for batch in self._batches)
        keeping: list[torch.Tensor] | None = None
        if self._kept is None and count * self._images.prepared.size**2 * 3 <= KEPT_BYTES:
            keeping = []
        raw = self._kept or load_batches(self._images, self._batches, self._workers)
        for batch in raw:
            if keeping is not None:
                keeping.append(batch)
            yield normalise(batch, self._mean, self._std, self._device)
            self._on_batch(len(batch))
        if keeping is not None:
            self._kept = keeping


def normalise(
    batch: torch.Tensor, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> torch.Tensor:
    """Turn uint8 (N, H, W, 3) in 0 to 255 into float32 (N, 3, H, W), (x / 255 - mean) / std."""
    images = batch.to(device).permute(0, 3, 1, 2).contiguous().float().div_(255.0)
    shape = (1, -1, 1, 1)
    shift = torch.tensor(mean, dtype=torch.float32, device=device).view(shape)
    scale = torch.tensor(std, dtype=torch.float32, device=device).view(shape)
    return images.sub_(shift).div_(scale)
