"""Batches of prepared images, read by worker processes and the same whatever their number."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from recal.errors import RecalError
from recal.machine import may_keep

# one uint8 (N, size, size, C) tensor for each policy
PolicyBatches = tuple[torch.Tensor, ...]


class ReadsBatches(Protocol):
    """Images under one or several policies, such as `PreparedTogether`."""

    size: int
    channels: int

    @property
    def policy_count(self) -> int:
        """The number of policies."""

    def batch_all(self, indices: Iterable[int]) -> list[NDArray[np.uint8]]:
        """Return some images under every policy, each uint8 (N, size, size, C)."""


class _BatchDataset(Dataset[PolicyBatches | RecalError]):
    """Whole batches for torch's loader, or the error that one met.

    An error that a worker raises would come back with a traceback for a message.
    """

    def __init__(self, images: ReadsBatches, batches: Sequence[NDArray[np.int64]]) -> None:
        self._images, self._batches = images, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> PolicyBatches | RecalError:
        try:
            images = self._images.batch_all(self._batches[number].tolist())
            return tuple(map(torch.from_numpy, images))
        except RecalError as error:
            return error


class Batches:
    """Batches of images under one or several policies; read again, they are the same.

    Iterating yields for each batch a tuple of one uint8 (N, size, size, C) tensor per policy.

    Args:
        images: The images under their policies.
        batches: Indices of the images of each batch.
        workers: Number of processes that decode and augment; 0 uses this process.
        keep: Whether to keep all batches in memory after the first reading, if `may_keep` allows
            it.
    """

    def __init__(
        self,
        images: ReadsBatches,
        batches: Sequence[NDArray[np.int64]],
        *,
        workers: int = 0,
        keep: bool = False,
    ) -> None:
        self._batches = _BatchDataset(images, batches)
        self._workers = min(workers, len(batches))
        values = images.size**2 * images.channels * images.policy_count
        size = sum(map(len, batches)) * values
        self._keeps = keep and may_keep(size)
        self._kept: list[PolicyBatches] = []

    def __iter__(self) -> Iterator[PolicyBatches]:
        if self._kept:
            yield from self._kept
            return
        read: list[PolicyBatches] = []
        # a batch size of None stops torch from batching and converting once more
        for batch in DataLoader(self._batches, batch_size=None, num_workers=self._workers):
            if isinstance(batch, RecalError):
                raise batch
            if self._keeps:
                read.append(tuple(batch))
            yield tuple(batch)
        self._kept = read
