"""Statistics for BatchNorm layers that were made without any."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def track_statistics(network: nn.Module) -> tuple[str, ...]:
    """Give every BatchNorm with `track_running_stats=False` mean 0 and variance 1, in place.

    Such a layer normalises by the batch even in eval mode, so the output for an image depends on
    the images beside it. Afterwards it normalises by running statistics, which are to be
    calibrated.

    Returns:
        Paths of the layers that were given statistics.
    """
    without = {
        path: layer
        for path, layer in network.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is None and layer.num_features
    }
    for layer in without.values():
        like = next((tensor for tensor in (layer.weight, layer.bias) if tensor is not None), None)
        device = None if like is None else like.device
        layer.track_running_stats = True
        for name, value in (
            ("running_mean", torch.zeros(layer.num_features, device=device)),
            ("running_var", torch.ones(layer.num_features, device=device)),
            ("num_batches_tracked", torch.tensor(0, device=device)),
        ):
            layer.register_buffer(name, value)
    return tuple(without)
