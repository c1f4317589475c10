"""Estimating BatchNorm statistics from images.

An estimator takes a network and batches, and returns the moments of the values that reach each
BatchNorm layer. It works on a copy: the network that it is given is never changed. To add one:
write the function and add one line to the table at the foot.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from recal.bn.layers import batch_norms
from recal.bn.moments import Moments
from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm


@torch.inference_mode()
def pooled(network: nn.Module, batches: Iterable[torch.Tensor]) -> dict[str, Moments]:
    """Pool the moments of training-mode batches, in one pass.

    Each layer's input comes from earlier layers that normalise by *batch* statistics, as in
    training, so the result depends on which images share a batch. Variances are biased and include
    the variance between batches.

    Args:
        network: Any module with BatchNorm layers; not changed.
        batches: Normalised images, float32 (N, 3, H, W), on the network's device; read once.

    Returns:
        Moments of the values at each BatchNorm layer that saw any, by path.
    """
    network = copy.deepcopy(network).eval()
    pooled_moments: dict[str, Moments] = {}

    def collect(name: str, layer: _BatchNorm, values: torch.Tensor) -> None:
        # with momentum 1 the running statistics are those of this batch, at no further cost
        count = values.numel() // values.shape[1]
        assert layer.running_mean is not None
        assert layer.running_var is not None
        # copied, because the next batch writes into the same tensors
        mean = layer.running_mean.to(torch.float64, copy=True)
        batch = Moments(count, mean, layer.running_var.double() * (count - 1))
        seen = pooled_moments.get(name)
        pooled_moments[name] = batch if seen is None else seen.merge(batch)

    for name, layer in batch_norms(network).items():
        layer.train()
        layer.momentum = 1.0
        layer.reset_running_stats()  # a stored NaN would survive its weight of zero
        layer.register_forward_hook(
            lambda layer, inputs, _, name=name: collect(name, layer, inputs[0])
        )
    for batch in batches:
        try:
            network(batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                "calibration: expected more than one value per channel in every batch, got a batch "
                f"of {len(batch)}. Use more images, another batch size, or --estimator consistent."
            ) from error
    return pooled_moments


class _LayerReachedError(Exception):
    """The forward pass has come to the layer whose moments are wanted."""


@torch.inference_mode()
def consistent(network: nn.Module, batches: Iterable[torch.Tensor]) -> dict[str, Moments]:
    """Take each layer's moments as the network in eval mode sees them.

    Every pass takes the moments of one layer, the first in order of execution whose statistics are
    not final yet, and goes no further; then that layer's are final. So the result is that of one
    training-mode forward of all images as a single batch, whatever the split into batches. A
    network with L layers costs L passes of half its depth on average.

    Args:
        network: Any module with BatchNorm layers; not changed.
        batches: As for `pooled`, but read once for every layer and the same each time.

    Returns:
        Moments of the values at each BatchNorm layer that saw any, by path.
    """
    network = copy.deepcopy(network).eval()
    layers = batch_norms(network)
    final: dict[str, Moments] = {}
    reached: dict[str, Moments] = {}

    def collect(name: str, values: torch.Tensor) -> None:
        if name in final:
            return
        batch, seen = Moments.of(values), reached.get(name)
        reached[name] = batch if seen is None else seen.merge(batch)
        raise _LayerReachedError

    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: collect(name, inputs[0]))
    while True:
        reached.clear()
        for batch in batches:
            try:
                network(batch)
            except _LayerReachedError:
                continue
            break  # every layer on the way to the output is final
        if not reached:
            return final
        for name, moments in reached.items():
            final[name] = moments
            set_statistics(layers[name], moments)


def set_statistics(layer: _BatchNorm, moments: Moments) -> None:
    """Write moments into a layer as its running mean and (biased) variance."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.copy_(moments.mean)
    layer.running_var.copy_(moments.variance)


ESTIMATORS: dict[str, Callable[[nn.Module, Iterable[torch.Tensor]], dict[str, Moments]]] = {
    "pooled": pooled,
    "consistent": consistent,
}
