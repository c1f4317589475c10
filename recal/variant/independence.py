"""Checking that a network's logits of an image do not depend on the other images in its batch."""

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from recal.errors import InputError

IMAGES = 3
# relative to the largest value; kernels for one image and for several round differently
FLOAT32_CLOSE, FLOAT64_CLOSE = 1e-3, 1e-6


@torch.inference_mode()
def check_independence(network: nn.Module, shape: tuple[int, int, int], where: str) -> None:
    """Refuse a network whose output for an image changes with the batch that the image is in.

    Such a network computes statistics of the batch in its forward pass, even in eval mode. Its
    accuracy depends on the batch size and on the order of the images, and no file can hold it.

    Args:
        network: Maps float32 (N, C, H, W) to outputs (N, ...); in eval mode, on the CPU.
        shape: Channels, height and width of an image.
        where: What is checked, for the message.

    Raises:
        InputError: The outputs differ; the message names the module that mixes the images.
    """
    images = torch.randn(IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    if _same(network(images), network(images[:1]), FLOAT32_CLOSE):
        return
    tolerance = FLOAT32_CLOSE
    try:
        exact = copy.deepcopy(network).double()
        exact(images[:1].double())
        network, images, tolerance = exact, images.double(), FLOAT64_CLOSE
    except RuntimeError:
        pass  # some code makes float32 tensors, which do not go with float64
    together, alone = _calls(network, images), _calls(network, images[:1])
    mixing = [
        call[0]
        for call in together
        if call in alone  # some code calls a module once for each image
        and _same(together[call][0], alone[call][0], tolerance)
        and not _same(together[call][1], alone[call][1], tolerance)
    ]
    if mixing:
        name = f"{mixing[0] or 'the network'} ({type(network.get_submodule(mixing[0])).__name__})"
        raise InputError(
            f"{where}: {name}: expected an image's output to depend on that image alone, got one "
            "that changes with the other images of its batch, as with statistics of the batch in "
            "forward. Replace this module by one with running statistics."
        )


def _calls(network: nn.Module, images: torch.Tensor) -> dict[tuple[str, int], tuple[Any, Any]]:
    """Return the first image's inputs and outputs of every call, by module, children first."""
    calls: dict[tuple[str, int], tuple[Any, Any]] = {}
    counts: dict[str, int] = {}

    def note(name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        counts[name] = counts.get(name, 0) + 1
        calls[name, counts[name]] = (_first(args), _first(output))

    hooks = [
        module.register_forward_hook(partial(note, name))
        for name, module in network.named_modules()
    ]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _first(value: Any) -> list[torch.Tensor]:
    """Return the first row of every tensor in arguments or outputs."""
    if isinstance(value, torch.Tensor):
        return [value[:1].clone()] if value.ndim else []
    if isinstance(value, (tuple, list)):
        return [row for part in value for row in _first(part)]
    return []


def _same(several: Any, alone: Any, tolerance: float) -> bool:
    return all(
        torch.allclose(a, b, rtol=0, atol=tolerance * _largest(b), equal_nan=True)
        for a, b in zip(_first(several), _first(alone), strict=True)
        if a.shape == b.shape and a.is_floating_point()
    )


def _largest(values: torch.Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
