"""Estimating BatchNorm statistics from images.

`pooled`, `mean-of-batches` and `ema` read every batch once, normalised by its own statistics as in
training, and differ in how they combine the statistics of the batches. To add such an estimator,
write a function that combines them and add it to `ONE_PASS`. `consistent` has a module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recal.calibration.hooks import IMAGES_ALONE, ForwardPass, Found, Listener, observe
from recal.calibration.moments import Moments
from recal.distributed import ALONE, World
from recal.variant.plain import batch_norms
from recal.variant.statistics import LayerError
from recal.variant.variant import STATISTICS

if TYPE_CHECKING:
    Combine = Callable[[list["Row"], dict[str, "Pair"]], dict[str, "Pair"]]


MOMENTUM = 0.1
Pair = tuple[torch.Tensor, torch.Tensor]
# mean and unbiased variance of each layer in one batch, for each of its uses
Row = dict[str, list[Pair]]


@dataclass(frozen=True)
class Estimate:
    """The statistics of one layer.

    Attributes:
        mean: float64 (C,).
        variance: float64 (C,); biased for `pooled` and `consistent`, of unbiased batch variances
            for the others, as PyTorch has it.
        moments: Pooled moments of all that the layer saw, float64, on the CPU.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    moments: Moments

    @classmethod
    def of(cls, moments: Moments) -> Estimate:
        """Return the pooled moments as an estimate."""
        return cls(moments.mean, moments.variance, moments)


def layer_errors(layers: Mapping[str, Estimate]) -> dict[str, LayerError]:
    """Return the errors of every layer by path, rounded to four digits.

    Layers that saw a single image are left out, because their errors are unknown.
    """
    return {name: e.moments.error() for name, e in layers.items() if e.moments.images > 1}


class OnePass:
    """What one estimator has gathered from the batches of one network.

    Args:
        network: The network, whose stored statistics are the first values for `ema`.
        combine: Turns the batches' rows, in order, into statistics; None pools the moments, for
            which no rows need be kept.
    """

    def __init__(self, network: nn.Module, combine: Combine | None) -> None:
        self._stored: dict[str, Pair] = {}
        for name, layer in batch_norms(network).items():
            mean, variance = (layer.get_buffer(leaf).cpu().double() for leaf in STATISTICS)
            self._stored[name] = mean, variance
        self._combine = combine
        self._moments: Found = {}
        self._rows: dict[int, Row] = {}

    def add(self, number: int, found: Found) -> None:
        """Add the moments of batch `number`, counted over all processes."""
        self._moments = merge_found([self._moments, found])
        if self._combine is not None:
            self._rows[number] = {
                name: [
                    (m.mean.cpu().double(), m.unbiased_variance.cpu().double())
                    for m in moments.each or (moments,)
                ]
                for name, moments in found.items()
            }

    def estimates(self, world: World = ALONE) -> dict[str, Estimate]:
        """Return the statistics of the batches of all processes by layer, equal in all."""
        mine = {name: moments.on_cpu() for name, moments in self._moments.items()}
        moments = merge_found(world.gather(mine))
        if self._combine is None:
            return {name: Estimate.of(m) for name, m in moments.items()}
        numbered = sorted(item for rows in world.gather(self._rows) for item in rows.items())
        combined = self._combine([row for _, row in numbered], self._stored)
        return {name: Estimate(*combined[name], moments[name]) for name in moments}


def merge_found(parts: Iterable[Mapping[str, Moments]]) -> Found:
    """Merge the moments of several batches or processes, layer by layer."""
    merged: Found = {}
    for part in parts:
        for name, moments in part.items():
            merged[name] = merged[name].merge(moments) if name in merged else moments
    return merged


def _average(rows: list[Row], _stored: dict[str, Pair]) -> dict[str, Pair]:
    """Return the averages of the batches' means and unbiased variances, with equal weights.

    This is what `torch.optim.swa_utils.update_bn` computes, for comparison. The variance between
    batches is missing, and a small last batch counts as a whole one.
    """
    pairs: dict[str, list[Pair]] = {}
    for row in rows:
        for name, found in row.items():
            pairs.setdefault(name, []).extend(found)
    both = {name: zip(*found, strict=True) for name, found in pairs.items()}
    return {name: (torch.stack(m).mean(0), torch.stack(v).mean(0)) for name, (m, v) in both.items()}


def _moving_average(rows: list[Row], stored: dict[str, Pair]) -> dict[str, Pair]:
    """Return the moving average of training, continued from the stored statistics.

    The mean and unbiased variance of every batch are weighted by PyTorch's default momentum.
    """
    current: dict[str, Pair] = {}
    for name, pairs in (item for row in rows for item in row.items()):
        mean, variance = current.get(name, stored[name])
        for new_mean, new_variance in pairs:
            mean = (1 - MOMENTUM) * mean + MOMENTUM * new_mean
            variance = (1 - MOMENTUM) * variance + MOMENTUM * new_variance
        current[name] = mean, variance
    return current


def one_pass(
    network: nn.Module,
    batches: Iterable[Any],
    *,
    estimator: str = "pooled",
    world: World = ALONE,
    forward: ForwardPass = IMAGES_ALONE,
) -> dict[str, Estimate]:
    """Estimate in one pass, with every batch normalised by its own statistics, as in training.

    The result depends on which images share a batch.

    Args:
        network: Any module with BatchNorm layers; it is not changed.
        batches: What `forward` takes: by default normalised images, float (N, C, H, W), on the
            network's device; read once. Of several processes, each gives its own batches: numbers
            rank, rank + size, ... of all.
        estimator: Name of an estimator in `ONE_PASS`.
        world: The processes that share the batches.
        forward: How the network is run on a batch.

    Returns:
        The statistics of each layer that saw any data, by path.

    Raises:
        InputError: A batch has a single value per channel.
    """
    gathered = OnePass(network, ONE_PASS[estimator])
    listen = partial(Listener, by_batch=True, forward=forward)
    keyed = ({None: batch} for batch in batches)
    number = world.rank
    for _, found in observe({None: network}, keyed, listen=listen):
        gathered.add(number, found)
        number += world.size
    return gathered.estimates(world)


# how the batches are combined; None pools them, including the variance between batches
ONE_PASS: dict[str, Combine | None] = {
    "pooled": None,
    "mean-of-batches": _average,
    "ema": _moving_average,
}
CONSISTENT = "consistent"
ESTIMATORS = ("pooled", CONSISTENT, "ema", "mean-of-batches")
