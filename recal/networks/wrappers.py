"""What precedes a network in its state_dict: prefixes of wrappers and a normalisation layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


# one number for each channel of an image
Channels = tuple[float, ...]
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.", "base_model.")
# names of the buffers for mean and std in normalisation layers
NORMALISERS = (("mean", "std"), ("mu", "sigma"), ("pixel_mean", "pixel_std"), ("_mean", "_std"))
# a normalisation layer's tensors are of so many channels at most
MOST_CHANNELS = 16


@dataclass(frozen=True, kw_only=True)
class Front:
    """The tensors of a network without prefixes and without a normalisation layer in front.

    Attributes:
        tensors: The tensors by plain name.
        prefix: The prefix that was removed from every name.
        normaliser: Tensors of the normalisation layer in front, by their original name.
        mean: Channel means that this layer subtracts from images in [0, 1], or None.
        std: Channel standard deviations that this layer divides by, or None.
    """

    tensors: dict[str, torch.Tensor]
    prefix: str
    normaliser: dict[str, torch.Tensor]
    mean: Channels | None
    std: Channels | None


def strip_front(tensors: Mapping[str, torch.Tensor]) -> Front:
    """Remove prefixes of wrappers and a normalisation layer in front of a network.

    It is applied to the names of checkpoints and of networks, so that both have the same names.
    """
    tensors, removed = dict(tensors), ""
    normaliser: dict[str, torch.Tensor] = {}
    mean = std = None
    for _ in range(6):  # prefixes nest, as in module._orig_mod.1.
        pair = _normaliser(tensors)
        if pair is not None:
            normaliser |= {removed + key: tensors.pop(key) for key in pair}
            found = [normaliser[removed + key] for key in pair]
            if not found[0].is_meta:
                mean, std = _normalisation(*found)
        first = next(iter(tensors), "").partition(".")[0]
        # after a normalisation layer, the network is often the second module of a sequence
        candidates = (*PREFIXES, f"{first}.") if normaliser and first.isdigit() else PREFIXES
        prefix = next((p for p in candidates if all(key.startswith(p) for key in tensors)), None)
        if prefix is None or not tensors:
            break
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
        removed += prefix
    return Front(tensors=tensors, prefix=removed, normaliser=normaliser, mean=mean, std=std)


def _normaliser(tensors: Mapping[str, torch.Tensor]) -> tuple[str, str] | None:
    for key in tensors:
        parent, dot, leaf = key.rpartition(".")
        for mean, std in NORMALISERS:
            pair = key, f"{parent}{dot}{std}"
            if (
                leaf == mean
                and pair[1] in tensors
                and all(_is_of_channels(tensors[name]) for name in pair)
            ):
                return pair
    return None


def _is_of_channels(tensor: torch.Tensor) -> bool:
    count = tensor.numel()
    shapes = ((count,), (count, 1, 1), (1, count, 1, 1))
    return tensor.is_floating_point() and tensor.shape in shapes and 1 <= count <= MOST_CHANNELS


def _normalisation(mean: torch.Tensor, std: torch.Tensor) -> tuple[Channels, Channels]:
    # (255 x - m) / s is (x - m / 255) / (s / 255)
    scale = 255.0 if max(float(mean.max()), float(std.max())) > 1.5 else 1.0
    first, second = (tuple(float(v) / scale for v in t.reshape(-1)) for t in (mean, std))
    return first, second
