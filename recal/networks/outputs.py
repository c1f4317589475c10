"""How many classes a network tells apart, from what it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recal.errors import RecalError
from recal.networks.detect import Shapes, input_channels, network_tensors, possible_classes
from recal.networks.names import HARMLESS_ORIGINS, create_network, split_name
from recal.networks.wrappers import strip_front

if TYPE_CHECKING:
    import torch
    from torch import nn


def count_classes(
    name: str, shapes: Shapes, image: tuple[int | None, int], *, trusted: bool
) -> int | None:
    """Return the number of logits of a network whose matrices have the shapes of a file.

    The last matrix of a file need not be the classifier's. The number of classes that a network of
    recal, timm or torchvision is made for is the one with which its tensors have these shapes. A
    network of other people's code is run on random images, because its code may ignore that number.

    Args:
        name: The architecture.
        shapes: Shapes of the file's tensors under plain names.
        image: Channels of the network's input, if given, and its side in pixels.
        trusted: Whether the user gave the name.

    Returns:
        None if the network cannot be built, or has other shapes whatever the number of classes.
    """
    for classes in possible_classes(shapes):
        tensors = network_tensors(name, classes, trusted=trusted)
        if tensors is None:
            return None
        own = strip_front(tensors).tensors
        # a network of several branches has further tensors under other names
        # and other first convolutions are made for other numbers of channels
        if all(own[k].shape[:1] == shape[:1] for k, shape in shapes.items() if k in own):
            if split_name(name)[0] in HARMLESS_ORIGINS:
                return classes
            channels = image[0] or input_channels(name, classes, shapes, trusted=trusted)
            return _run(name, classes, (channels, image[1]), trusted) or classes
    return None


def _run(name: str, classes: int, image: tuple[int, int], trusted: bool) -> int | None:
    import torch

    from recal.networks.tracking import track_statistics

    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        try:
            channels, size = image
            network = create_network(name, classes, channels=channels, trusted=trusted)
            track_statistics(network)
            return width(network, torch.zeros(2, channels, size, size))
        except RecalError:
            return None


def width(network: nn.Module, images: torch.Tensor) -> int | None:
    """Return the number of logits for images (N, C, H, W); None if the output is not (N, K)."""
    import torch

    from recal.networks.calling import logits_place

    try:
        with torch.inference_mode():
            output = network.float().eval()(images)
    except Exception:  # noqa: BLE001  (the user's code can raise anything)
        return None
    if not isinstance(output, torch.Tensor):
        try:
            place = logits_place(output, None, "network")
        except RecalError:
            return None
        output = place[0](output) if place else output
    is_matrix = isinstance(output, torch.Tensor) and output.shape[:-1] == images.shape[:1]
    return int(output.shape[-1]) if is_matrix else None
