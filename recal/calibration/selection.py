"""Estimating some layers alone, while the others keep and use the stored statistics."""

from collections.abc import Iterable

import torch
from torch import nn

from recal.calibration.hooks import Listener
from recal.variant.plain import KEEPS, batch_norms
from recal.variant.selection import chosen_layers


def estimate_only(
    network: nn.Module, wanted: str | Iterable[str], images: torch.Tensor
) -> tuple[str, ...]:
    """Let a network's other layers keep their statistics, in place; return the names of the chosen.

    Args:
        network: The network, in eval mode.
        wanted: Layers, as for `chosen_layers`.
        images: A batch (N, C, H, W) on the network's device, which shows the order of use.
    """
    chosen = chosen_layers(wanted, list(Listener(network, by_batch=False)(images)))
    for name, layer in batch_norms(network).items():
        setattr(layer, KEEPS, name not in chosen)
    return chosen
