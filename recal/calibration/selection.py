"""Estimating some layers alone, while the others keep and use the stored statistics."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from recal.calibration.hooks import IMAGES_ALONE, ForwardPass, Listener
from recal.variant.plain import KEEPS, batch_norms
from recal.variant.selection import chosen_layers


def estimate_only(
    network: nn.Module,
    wanted: str | Iterable[str],
    batch: Any,
    forward: ForwardPass = IMAGES_ALONE,
) -> tuple[str, ...]:
    """Let a network's other layers keep their statistics, in place; return the names of the chosen.

    Args:
        network: The network, in eval mode.
        wanted: Layers, as for `chosen_layers`.
        batch: A batch, which shows the order of use: by default images (N, C, H, W) on the
            network's device.
        forward: How the network is run on the batch.
    """
    listener = Listener(network, by_batch=False, forward=forward)
    chosen = chosen_layers(wanted, list(listener(batch)))
    for name, layer in batch_norms(network).items():
        setattr(layer, KEEPS, name not in chosen)
    return chosen
