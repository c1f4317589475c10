"""Inputs that try to tell a file from its network, and how far float32 can be trusted on each."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recal.deploy.runtime import normalise_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recal.checkpoint.spec import ModelSpec

SCALES = (0.0, 1e-3, 0.1, -1.0, 10.0, -30.0, 100.0, 1000.0)
HALF_SCALES = (0.0, 1e-3, 0.1, -1.0)  # float16 overflows where activations pass 65,504
IMAGES = 4
LEVELS = 8  # of 255, by which an adversary moves every pixel
MOVES = 4
HALF_ULP = 2.0**-24


def hostile_inputs(
    network: torch.nn.Module, pixels: NDArray[np.uint8], spec: ModelSpec, *, takes_pixels: bool,
    half: bool,
) -> list[NDArray[Any]]:  # fmt: skip
    """Return groups of inputs, in the form that the file takes.

    Adversarial images (each pixel moved by 8 levels the way that its gradient's sign says, towards
    another class), and images scaled by -30 to 1000; of pixels, which cannot be scaled, pictures of
    black, white, a checkerboard, noise, and negatives.

    Args:
        network: In eval mode on the CPU; gives the gradients.
        pixels: Images, uint8 (N, size, size, 3).
        spec: Says how they are normalised.
        takes_pixels: Whether the file takes uint8 pixels.
        half: Leave out what float16 cannot hold.

    Source: Goodfellow et al., arXiv 1412.6572, section 4 (the sign of the gradient).
    """
    pixels = pixels[:IMAGES]
    images = normalise_array(pixels, spec.mean, spec.std)
    signs = _gradient_signs(network, images)
    if not takes_pixels:
        step = (LEVELS / 255 / np.asarray(spec.std, np.float32)).reshape(1, 3, 1, 1)
        scales = HALF_SCALES if half else SCALES
        scaled = [images[:2] * np.float32(scale) for scale in scales]
        return [images + step.astype(np.float32) * signs, *scaled]
    moved = pixels + LEVELS * signs.transpose(0, 2, 3, 1).astype(np.int16)
    shape = pixels.shape[1:]
    board = (np.indices(shape).sum(axis=0) % 2 * 255).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)
    plain = np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), board])
    return [np.clip(moved, 0, 255).astype(np.uint8), plain, noise, 255 - pixels]


def in_float64(
    network: torch.nn.Module, images: NDArray[np.float32], *, softmax: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a network's outputs in float64, and how far PyTorch's own float32 is from them.

    A network may amplify rounding, and one run of it may be right by luck: so the images are also
    run as they are when every value is moved by one rounding, up or down, four times.

    Args:
        network: In eval mode on the CPU; not changed.
        images: Normalised, float32 (N, 3, H, W).
        softmax: Whether probabilities are wanted instead of logits.

    Returns:
        Outputs (N, K), and for every image the largest error of the five runs, (N,), as
        `relative_errors` gives it.
    """
    exact = run_torch(copy.deepcopy(network).double(), images.astype(np.float64), softmax=softmax)
    rng = np.random.default_rng(0)
    errors = []
    for number in range(1 + MOVES):
        moves = rng.choice([-HALF_ULP, HALF_ULP], images.shape) if number else 0.0
        moved = (images * (1.0 + moves)).astype(np.float32)
        errors.append(relative_errors(run_torch(network, moved, softmax=softmax), exact))
    return exact, np.max(errors, axis=0)


def relative_errors(found: NDArray[np.floating], exact: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each input's largest difference of an output, relative to max(1, its largest), (N,).

    NaN anywhere in an output makes it NaN, which is within no tolerance.
    """
    largest = np.maximum(1.0, np.abs(exact).max(axis=1))
    errors: NDArray[np.float64] = np.abs(found - exact).max(axis=1) / largest
    return errors


@torch.inference_mode()
def run_torch(
    network: torch.nn.Module, images: NDArray[np.floating], *, softmax: bool
) -> NDArray[Any]:
    """Map normalised images to what a file gives: logits, or their softmax."""
    logits = torch.cat([network(part) for part in torch.split(torch.from_numpy(images), 64)])
    outputs: NDArray[Any] = (logits.softmax(dim=1) if softmax else logits).numpy()
    return outputs


def _gradient_signs(network: torch.nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the direction, float32 of -1, 0 and 1, in which the predicted class loses."""
    with torch.enable_grad():
        inputs = torch.from_numpy(images).requires_grad_()
        logits = network(inputs * 1.0)  # not the leaf, which a network may not change in place
        if logits.requires_grad:
            (logits.logsumexp(dim=1) - logits.amax(dim=1)).sum().backward()
    signs: NDArray[np.float32] = np.zeros_like(images)
    if inputs.grad is not None:
        signs = inputs.grad.sign().numpy()
    return signs
