"""Which modules are BatchNorm layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from recal.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers that keep running statistics, by path, in definition order.

    Raises:
        InputError: There are none.
    """
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }
    if not layers:
        raise InputError(
            f"{type(module).__name__}: expected a network with BatchNorm layers that keep running "
            "statistics, got none."
        )
    return layers
