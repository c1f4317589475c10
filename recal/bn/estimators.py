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
    found: dict[str, Moments] = {}

    def collect(name: str, count: int, mean: torch.Tensor, unbiased: torch.Tensor) -> None:
        batch = Moments(count, mean, unbiased * (count - 1))
        seen = found.get(name)
        found[name] = batch if seen is None else seen.merge(batch)

    # with momentum 1 the running statistics are those of the batch, at no further cost
    _train_statistics(network, batches, collect, momentum=1.0, reset=True)
    return found


@torch.inference_mode()
def mean_of_batches(network: nn.Module, batches: Iterable[torch.Tensor]) -> dict[str, Moments]:
    """Average means and unbiased variances of training-mode batches, each batch counting alike.

    What `torch.optim.swa_utils.update_bn` computes, for comparison: the variance between batches is
    missing, and a small last batch counts as a whole one.
    """
    return _last_statistics(network, batches, momentum=None, reset=True)


@torch.inference_mode()
def ema(network: nn.Module, batches: Iterable[torch.Tensor]) -> dict[str, Moments]:
    """Go on with training's moving average from the stored statistics, for comparison.

    Every batch's mean and unbiased variance enter with PyTorch's default momentum, 0.1.
    """
    return _last_statistics(network, batches, momentum=0.1, reset=False)


def _last_statistics(
    network: nn.Module, batches: Iterable[torch.Tensor], *, momentum: float | None, reset: bool
) -> dict[str, Moments]:
    """Return the running statistics after the last batch, as moments of all values seen."""
    found: dict[str, Moments] = {}

    def collect(name: str, count: int, mean: torch.Tensor, variance: torch.Tensor) -> None:
        total = count + (found[name].count if name in found else 0)
        found[name] = Moments(total, mean, variance * total)

    _train_statistics(network, batches, collect, momentum=momentum, reset=reset)
    return found


def _train_statistics(
    network: nn.Module,
    batches: Iterable[torch.Tensor],
    collect: Callable[[str, int, torch.Tensor, torch.Tensor], None],
    *,
    momentum: float | None,
    reset: bool,
) -> None:
    """Run batches with the BatchNorm layers of a copy in training mode, all else in eval mode.

    Calls `collect` after each layer with its path, the values a channel, and the layer's running
    mean and variance, float64 copies.
    """
    network = copy.deepcopy(network).eval()

    def after(name: str, layer: _BatchNorm, values: torch.Tensor) -> None:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        # copied, because the next batch writes into the same tensors
        mean = layer.running_mean.to(torch.float64, copy=True)
        variance = layer.running_var.to(torch.float64, copy=True)
        collect(name, values.numel() // values.shape[1], mean, variance)

    for name, layer in batch_norms(network).items():
        layer.train()
        layer.momentum = momentum
        if reset:
            layer.reset_running_stats()  # a stored NaN would survive its weight of zero
        layer.register_forward_hook(
            lambda layer, inputs, _, name=name: after(name, layer, inputs[0])
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
    "ema": ema,
    "mean-of-batches": mean_of_batches,
}
