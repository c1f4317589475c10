"""Projected gradient descent on a batch of images, each by itself."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from recal.attacks.attack import LEVELS, Pgd
from recal.corruptions.random import Draws, derive_key, fill_normals, uniforms
from recal.data.normalise import Normalisation

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Function from images in [0, 1], (N, 3, H, W), to logits, (N, K), through which gradients flow."""

# added to norms that are divided by, for images without a gradient
TINY = 1e-10


def attack_images(
    logits: Logits,
    images: torch.Tensor,
    labels: torch.Tensor,
    attack: Pgd,
    starts: torch.Tensor | None,
) -> torch.Tensor:
    """Return images changed so that a network's cross-entropy grows.

    Every image is attacked by itself: its result does not depend on the batch, apart from the
    rounding of the network's kernels. Tensors of `torch.inference_mode` cannot be attacked.

    Args:
        logits: The network in eval mode, its normalisation included.
        images: float32 (N, 3, H, W) in [0, 1].
        labels: Classes whose probability is to fall, int64 (N,).
        attack: The attack.
        starts: Changes to start with, as `random_starts` returns them; None for none.

    Returns:
        float32 (N, 3, H, W) in [0, 1], on the device of the images.
    """
    radius, step = attack.radius / LEVELS, attack.step / LEVELS
    changed = images if starts is None else (images + starts).clamp(0, 1)
    for _ in range(attack.steps):
        with torch.enable_grad():
            point = changed.detach().clone().requires_grad_()
            loss = F.cross_entropy(logits(point), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, point)
        if attack.norm == "linf":
            moved = point.detach() + step * gradient.sign()
            change = (moved - images).clamp(-radius, radius)
        else:
            moved = point.detach() + step * (gradient / (_norms(gradient) + TINY))
            change = moved - images
            change = change * (radius / _norms(change)).clamp(max=1.0)
        changed = (images + change).clamp(0, 1)
    return changed


def normalised(images: torch.Tensor, how: Normalisation) -> torch.Tensor:
    """Return images (N, C, H, W) in [0, 1] as a network takes them; gradients flow through."""
    numbers = torch.from_numpy(how.numbers.astype(np.float32)).to(images.device)
    shift, scale = numbers[..., None, None]
    ordered = images.flip(1) if how.step < 0 else images
    inputs: torch.Tensor = (ordered - shift) / scale
    return inputs.contiguous(memory_format=torch.channels_last)


def _norms(images: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = images.flatten(1).norm(dim=1)
    return norms.view(-1, 1, 1, 1)


def random_starts(
    attack: Pgd, seed: int, indices: NDArray[np.int64], shape: tuple[int, ...]
) -> torch.Tensor | None:
    """Return the random changes that an attack starts with, float32 (N, *shape), or None.

    Those of an image are a function of the seed and its index alone.
    """
    if not attack.random_start:
        return None
    whole, radius = (len(indices), *shape), attack.radius / LEVELS
    draws = Draws(derive_key(seed, f"attack/{attack.norm}", 0), indices.astype(np.int64))
    if attack.norm == "linf":
        changes = (2 * uniforms(draws, math.prod(shape)) - 1) * radius
        return torch.from_numpy(changes.astype(np.float32).reshape(whole))
    changes = np.empty(whole)
    for i, change in enumerate(changes):
        fill_normals(change, 0.0, 1.0, draws, i)
    lengths = np.sqrt(np.square(changes).sum(axis=(1, 2, 3)))
    shares = uniforms(draws, 1, 1)[:, 0]
    changes *= (shares * radius / lengths)[:, None, None, None]
    return torch.from_numpy(changes.astype(np.float32))
