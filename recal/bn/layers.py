"""Which modules are BatchNorm layers, and the plain ones that recal puts in the place of others."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from recal.errors import InputError

# the attribute in which a layer keeps its plain path, where that is not where it stands
PLAIN_PATH = "recal_plain_path"


class PlainBatchNorm(_BatchNorm):
    """BatchNorm over channels for inputs (N, C) or (N, C, ...).

    Further arguments, by which the layer that it replaces chose a branch, are ignored. What that
    layer did after normalising (`drop`, `act`) is kept.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected an input of 2 dimensions or more, got {input.ndim}")

    def forward(self, input: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Normalise, scale and shift each channel."""
        x = super().forward(input)
        for name in ("drop", "act"):
            if name in self._modules:
                x = self.get_submodule(name)(x)
        return x


class InstanceBatchNorm(nn.Module):
    """Instance norm on the first channels, BatchNorm on the rest.

    Source: Pan et al., "Two at Once", arXiv 1807.09441; AugMax's DuBIN is this with a dual BN.
    """

    def __init__(self, instance: int, batch: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.IN = nn.InstanceNorm2d(instance, affine=True, eps=eps)
        self.BN = nn.BatchNorm2d(batch, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape."""
        first, rest = torch.split(x, [self.IN.num_features, self.BN.num_features], dim=1)
        return torch.cat([self.IN(first.contiguous()), self.BN(rest.contiguous())], dim=1)


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers that keep running statistics, by path, in definition order.

    In a network that `build` made, the paths are the plain ones of the checkpoint.

    Raises:
        InputError: There are none.
    """
    layers = {
        getattr(layer, PLAIN_PATH, name): layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }
    if not layers:
        raise InputError(
            f"{type(module).__name__}: expected a network with BatchNorm layers that keep running "
            "statistics, got none."
        )
    return layers
