"""Batches of augmented images, decoded by workers and the same whatever their number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from recal.errors import RecalError
from recal.machine import may_keep

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from recal.policies.prepared import PreparedTogether


Pixels = tuple[torch.Tensor, ...]


class _Fetched(Dataset[Pixels | RecalError]):
    """Hands whole batches to torch's loader, or the error that one met.

    Raised in a worker, an error would come back with a traceback for a message.
    """

    def __init__(self, images: PreparedTogether) -> None:
        self._images = images

    def __getitems__(self, indices: list[int]) -> Pixels | RecalError:
        try:
            return tuple(torch.from_numpy(batch) for batch in self._images.batch_all(indices))
        except RecalError as error:
            return error

    def __getitem__(self, index: int) -> Pixels | RecalError:
        return self.__getitems__([index])


def _as_it_is(batch: Any) -> Any:
    return batch


class Batches:
    """Batches of images under one or several policies; read again, they are the same.

    Iterating gives for each batch one uint8 (N, size, size, 3) tensor a policy.

    Args:
        images: The images under their policies.
        batches: The indices of each batch.
        workers: Processes that decode and augment; 0 does it in this one.
        keep: Whether to keep what was read, for those who read it again, where `may_keep`
            allows it.
    """

    def __init__(
        self,
        images: PreparedTogether,
        batches: Sequence[NDArray[np.int64]],
        *,
        workers: int = 0,
        keep: bool = False,
    ) -> None:
        self._images = images
        self._batches = batches
        self._workers = min(workers, len(batches))
        size = sum(map(len, batches)) * images.size**2 * 3 * len(images.each)
        self._keeps = keep and may_keep(size)
        self._kept: list[Pixels] = []

    def __iter__(self) -> Iterator[Pixels]:
        if self._kept:
            yield from self._kept
            return
        read: list[Pixels] = []
        if not self._batches:
            return
        for batch in DataLoader(
            _Fetched(self._images),
            batch_sampler=[batch.tolist() for batch in self._batches],
            collate_fn=_as_it_is,
            num_workers=self._workers,
        ):
            if isinstance(batch, RecalError):
                raise batch
            if self._keeps:
                read.append(batch)
            yield batch
        self._kept = read


def normalise(
    batch: torch.Tensor, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> torch.Tensor:
    """Turn uint8 (N, H, W, 3) in 0 to 255 into float32 (N, 3, H, W), (x / 255 - mean) / std.

    Channels stay innermost in memory, which kernels are fastest with.
    """
    images = batch.to(device).permute(0, 3, 1, 2).float().div_(255.0)
    shape = (1, -1, 1, 1)
    shift = torch.tensor(mean, dtype=torch.float32, device=device).view(shape)
    scale = torch.tensor(std, dtype=torch.float32, device=device).view(shape)
    return images.sub_(shift).div_(scale)
