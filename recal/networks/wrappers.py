"""What stands in front of a network: wrappers' prefixes and a normalisation layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.", "base_model.")
# names of the mean and std that a normalisation layer in front keeps as buffers
NORMALISERS = (("mean", "std"), ("mu", "sigma"), ("pixel_mean", "pixel_std"), ("_mean", "_std"))


@dataclass(frozen=True, kw_only=True)
class Front:
    """Names without what stands in front of the network.

    Attributes:
        tensors: The tensors by plain name.
        prefix: What was removed from every name.
        normaliser: Tensors of a normalisation layer in front, by their name as it was.
        facts: Its mean and std, of images in [0, 1].
    """

    tensors: dict[str, torch.Tensor]
    prefix: str
    normaliser: dict[str, torch.Tensor]
    facts: dict[str, Any]


def strip_front(tensors: Mapping[str, torch.Tensor]) -> Front:
    """Remove what stands in front of a network: wrappers' prefixes and a normalisation layer.

    The same is done with a checkpoint's names and with a network's, so that the two meet.
    """
    tensors, removed = dict(tensors), ""
    normaliser: dict[str, torch.Tensor] = {}
    facts: dict[str, Any] = {}
    for _ in range(6):  # prefixes nest, as in module._orig_mod.1.
        pair = _normaliser(tensors)
        if pair is not None:
            normaliser |= {removed + key: tensors.pop(key) for key in pair}
            facts = _normalisation(*(normaliser[removed + key] for key in pair))
        first = next(iter(tensors), "").partition(".")[0]
        # behind a normalisation layer the network is often the second of a sequence
        candidates = (*PREFIXES, f"{first}.") if normaliser and first.isdigit() else PREFIXES
        prefix = next((p for p in candidates if all(key.startswith(p) for key in tensors)), None)
        if prefix is None or not tensors:
            break
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
        removed += prefix
    return Front(tensors=tensors, prefix=removed, normaliser=normaliser, facts=facts)


def _normaliser(tensors: Mapping[str, torch.Tensor]) -> tuple[str, str] | None:
    for key in tensors:
        parent, dot, leaf = key.rpartition(".")
        for mean, std in NORMALISERS:
            other = f"{parent}{dot}{std}"
            if (
                leaf == mean
                and other in tensors
                and _is_rgb(tensors[key])
                and _is_rgb(tensors[other])
            ):
                return key, other
    return None


def _is_rgb(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tuple(tensor.shape) in ((3,), (3, 1, 1), (1, 3, 1, 1))


def _normalisation(mean: torch.Tensor, std: torch.Tensor) -> dict[str, Any]:
    # (255 x - m) / s is (x - m / 255) / (s / 255)
    scale = 255.0 if max(float(mean.max()), float(std.max())) > 1.5 else 1.0
    return {
        "mean": tuple(float(value) / scale for value in mean.reshape(-1)),
        "std": tuple(float(value) / scale for value in std.reshape(-1)),
    }
