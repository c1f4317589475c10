"""Test-time adaptation: BatchNorm statistics of the test images, as a protocol of its own.

An adapted network has seen test data. Its label says so in every table, and its cells are kept
apart from those of networks that have not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from recal.errors import UsageError, pick
from recal.variant.plain import batch_norms, first_tensor

KINDS = ("batch", "ema")
SAW_TEST_DATA = "saw test data"


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How statistics are taken from the test images of a cell; every cell starts anew.

    `batch`: each batch is normalised by its own mean and biased variance, each blended with the
    network's: lambda * source + (1 - lambda) * batch, with lambda = prior / (prior + images of the
    batch). A prior of 0 is prediction-time BatchNorm.

    `ema`: statistics start as the network's and move towards those of each batch by `momentum`,
    before the batch is predicted.

    Images come in an order drawn from `seed`, because data sets are sorted by class, and a batch of
    one class has other statistics than one of all classes. Sizes of batches differ by at most one,
    so that there is no small last batch.

    Attributes:
        batch: Largest number of images in a batch.
        prior: Number of images that the network's own statistics count for; only for `batch`.
        momentum: Weight of a new batch; only for `ema`.

    Raises:
        UsageError: A value is out of its range, or belongs to the other kind.

    Source: Schneider et al., arXiv 2006.16971, section 3; Nado et al., arXiv 2006.10963, section 2.
    """

    kind: str
    batch: int = 200
    prior: float = 0.0
    momentum: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        pick(self.kind, KINDS, "--adapt")
        if self.batch < 1:
            raise UsageError(f"--batch-size: expected 1 image or more, got {self.batch}.")
        if not 0 <= self.prior < float("inf"):
            raise UsageError(f"--prior: expected a number of at least 0, got {self.prior}.")
        if not 0 < self.momentum <= 1:
            raise UsageError(f"--momentum: expected more than 0, at most 1, got {self.momentum}.")
        if self.kind == "ema" and self.prior:
            raise UsageError(
                "--prior: expected --adapt batch, got ema, whose average starts at the network's."
            )

    @property
    def text(self) -> str:
        """A description for people; equal for adaptations that give equal numbers."""
        how = f"prior {self.prior:g}" if self.kind == "batch" else f"momentum {self.momentum:g}"
        return f"{self.kind} statistics, batches of {self.batch}, {how}, seed {self.seed}"

    def batches(self, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return the indices of a cell's images, shuffled and cut into batches."""
        shuffled = np.random.default_rng(self.seed).permutation(indices)
        return np.array_split(shuffled, -(-len(indices) // self.batch))


def adapt_layers(network: nn.Module, adaptation: Adaptation) -> list[AdaptedLayer]:
    """Make every BatchNorm layer of a network in eval mode adapt to its input, in place."""
    return [AdaptedLayer(layer, adaptation) for layer in batch_norms(network).values()]


class AdaptedLayer:
    """A hook on a BatchNorm layer that sets its statistics from its input before it normalises."""

    def __init__(self, layer: nn.Module, adaptation: Adaptation) -> None:
        self._adaptation = adaptation
        mean, variance = (layer.get_buffer(name) for name in ("running_mean", "running_var"))
        self._own, self._source = (mean, variance), (mean.clone(), variance.clone())
        layer.register_forward_pre_hook(self._set, with_kwargs=True)

    def reset(self) -> None:
        """Set the statistics back to the network's own."""
        for own, source in zip(self._own, self._source, strict=True):
            own.copy_(source)

    def _set(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_tensor(args, kwargs).float()
        variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        if self._adaptation.kind == "ema":
            kept, share = self._own, self._adaptation.momentum
        else:
            kept, share = self._source, len(x) / (self._adaptation.prior + len(x))
        for own, old, new in zip(self._own, kept, (mean, variance), strict=True):
            own.copy_((1 - share) * old + share * new)
