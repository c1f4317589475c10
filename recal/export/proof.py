"""Proving that an ONNX model is one network and none of its rivals."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recal.data.normalise import normalise_array
from recal.errors import VerificationError
from recal.export.subject import Subject, run_torch
from recal.networks.spec import ModelSpec
from recal.onnx_file.record import Proof, Rival
from recal.onnx_file.session import OnnxNetwork, check_any_batch

SCALES = (0.0, 1e-3, 0.1, -1.0, 10.0, -30.0, 100.0, 1000.0)
HALF_SCALES = (0.0, 1e-3, 0.1, -1.0)  # float16 overflows where activations pass 65,504
IMAGES = 4
LEVELS = 8  # of 255, by which an adversary moves every pixel
MOVES = 4
HALF_ULP = 2.0**-24


def hostile_inputs(
    network: torch.nn.Module,
    pixels: NDArray[np.uint8],
    spec: ModelSpec,
    *,
    takes_pixels: bool,
    half: bool,
) -> list[NDArray[Any]]:
    """Return groups of inputs, in the form that the file takes.

    They are adversarial images, in which each pixel is moved by 8 levels along the sign of its
    gradient, and images scaled by -30 to 1000. Pixels cannot be scaled: a file that takes them gets
    black, white, a checkerboard, noise and negatives instead.

    Args:
        network: The network whose gradients are used; in eval mode, on the CPU.
        pixels: Images, uint8 (N, size, size, C).
        spec: Normalisation of the images.
        takes_pixels: Whether the file takes uint8 pixels.
        half: Whether to leave out what float16 cannot hold.

    Source: Goodfellow et al., arXiv 1412.6572, section 4 (the sign of the gradient).
    """
    pixels = pixels[:IMAGES]
    images = normalise_array(pixels, spec.normalisation)
    with torch.enable_grad():
        inputs = torch.from_numpy(images).requires_grad_()
        logits = network(inputs * 1.0)  # not the leaf, which a network may not change in place
        if logits.requires_grad:
            (logits.logsumexp(dim=1) - logits.amax(dim=1)).sum().backward()
    signs = np.zeros_like(images) if inputs.grad is None else inputs.grad.sign().numpy()
    if not takes_pixels:
        step = (LEVELS / 255 / spec.normalisation.numbers[1]).reshape(1, -1, 1, 1)
        scaled = [images[:2] * np.float32(scale) for scale in (HALF_SCALES if half else SCALES)]
        return [images + step.astype(np.float32) * signs, *scaled]
    in_rgb = signs[:, :: spec.normalisation.step].transpose(0, 2, 3, 1)
    moved = pixels + LEVELS * in_rgb.astype(np.int16)
    shape = pixels.shape[1:]
    board = (np.indices(shape).sum(axis=0) % 2 * 255).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)
    plain = np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), board])
    return [np.clip(moved, 0, 255).astype(np.uint8), plain, noise, 255 - pixels]


def widest(network: torch.nn.Module, images: NDArray[np.float32]) -> torch.nn.Module:
    """Return a copy of a network in float64, or the network if its code is bound to float32.

    Such code makes float32 tensors, as `torch.full` does. It is tried on the first image.
    """
    wide = copy.deepcopy(network).double()
    try:
        run_torch(wide, images[:1].astype(np.float64), softmax=False)
    except RuntimeError:  # of operands of different types
        return network
    return wide


def exact_outputs(
    network: torch.nn.Module,
    reference: torch.nn.Module,
    images: NDArray[np.float32],
    *,
    softmax: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a reference's outputs (N, K), and for every image PyTorch's own float32 error, (N,).

    A network may amplify rounding, and one run may be exact by luck. So the images (N, C, H, W)
    also run four times with every value moved by one rounding, up or down, and the largest
    relative error of the five runs counts.

    Args:
        network: The network in float32.
        reference: What `widest` returned for it.
        images: Normalised images.
        softmax: Whether the outputs are probabilities.
    """
    numbers = np.float32 if reference is network else np.float64
    exact = run_torch(reference, images.astype(numbers), softmax=softmax).astype(np.float64)
    rng = np.random.default_rng(0)
    errors = []
    for number in range(1 + MOVES):
        moves = rng.choice([-HALF_ULP, HALF_ULP], images.shape) if number else 0.0
        moved = (images * (1.0 + moves)).astype(np.float32)
        errors.append(relative_errors(run_torch(network, moved, softmax=softmax), exact))
    return exact, np.max(errors, axis=0)


def relative_errors(found: NDArray[np.floating], exact: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each input's largest error, relative to max(1, its largest output), (N,), or NaN."""
    largest = np.maximum(1.0, np.abs(exact).max(axis=1))
    errors: NDArray[np.float64] = np.abs(found - exact).max(axis=1) / largest
    return errors


BATCHES = (1, 3, 64)
SLACK = 10.0
LOOSEST = 0.1
ROUNDING_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an output may be off, relative to max(1, the largest output).

    A network may amplify rounding. So the tolerance is at least ten times the error of PyTorch's
    own float32, which is measured against float64.

    Attributes:
        images: Tolerance on images, against PyTorch, relative to the largest output of all.
        hostile: Tolerance on hostile inputs, against float64, relative to the largest output of
            each input. Inputs on which ten times PyTorch's own error exceeds 0.1 are left out.
    """

    images: float
    hostile: float


# Measured largest differences are about 1e-6 (float32) and 3e-3 (float16): see docs/deployment.md.
FLOAT32 = Tolerance(images=1e-5, hostile=1e-5)
FLOAT16 = Tolerance(images=2e-2, hostile=5e-2)


def prove(
    model: bytes, subject: Subject, *, allowed: Tolerance = FLOAT32, number: int = 0
) -> Proof:
    """Compare a serialised model with the network that it should be, and with its rivals.

    Images run in batches of 1, 3 and 64, or in the one batch size that the file is fixed to; then
    hostile inputs run.

    Args:
        model: The ONNX model.
        subject: The variant that the model should be.
        allowed: The tolerance.
        number: Number of the variant in a switchable model.

    Raises:
        VerificationError: The model differs from the network by more than the tolerance, or is as
            near to a rival that itself differs from the network.
    """
    network, spec, where = subject.reference, subject.spec, subject.where
    session = OnnxNetwork(model, variant=number)
    reference = widest(network, normalise_array(subject.images[:1], spec.normalisation))
    softmax, takes_pixels = session.gives_probabilities, session.takes_pixels
    count = max(len(subject.images), sum(BATCHES))
    pixels = np.resize(subject.images, (count, *subject.images.shape[1:]))
    images = normalise_array(pixels, spec.normalisation)
    inputs = pixels if takes_pixels else images
    check_any_batch(session, spec.size, where, "Give --fixed-batch 1.")
    exported = np.concatenate([session.outputs(inputs[part]) for part in batches_of(count)])
    own = run_torch(network, images, softmax=softmax)
    few = images[:ROUNDING_IMAGES]
    half = allowed is FLOAT16
    groups = hostile_inputs(network, pixels, spec, takes_pixels=takes_pixels, half=half)
    hostile = np.concatenate(groups)
    normalised = normalise_array(hostile, spec.normalisation) if takes_pixels else hostile
    both = np.concatenate([few, normalised])
    exact, rounding = exact_outputs(network, reference, both, softmax=softmax)
    own_error = SLACK * float(rounding[: len(few)].max())
    relative = max(allowed.images, min(own_error, LOOSEST))
    tolerance = relative * max(1.0, float(np.abs(own).max()))
    difference = _largest_difference(exported, own)
    if not difference <= tolerance:
        raise VerificationError(
            f"{where}: expected logits within {tolerance:.1e} of PyTorch's, got a difference of "
            f"{difference:.1e}."
        )
    errors = relative_errors(session.outputs(hostile), exact[len(few) :])
    cuts = np.cumsum([len(group) for group in groups])[:-1]
    compared, worst = 0, 0.0
    for found, of_torch in np.split(np.stack([errors, rounding[len(few) :]]), cuts, axis=1):
        bound = max(allowed.hostile, SLACK * float(of_torch.max()))
        if not bound <= LOOSEST:
            continue
        error = float(found.max())
        if not error <= bound:
            raise VerificationError(
                f"{where}: expected logits of hostile inputs within {bound:.1e} of the largest, "
                f"got {error:.1e}."
            )
        compared, worst = compared + len(found), max(worst, error)
    rivals, indistinct = {}, []
    for name, other in subject.rivals.items():
        logits = run_torch(other, images, softmax=softmax)
        distance, expected = (_largest_difference(o, logits) for o in (exported, own))
        rivals[name] = Rival(distance=distance, expected=expected)
        if expected <= 2 * tolerance:
            indistinct.append(name)
        elif not abs(distance - expected) <= tolerance:
            raise VerificationError(
                f"{where}: expected the file as far from branch '{name}' as the variant is "
                f"({expected:.1e}), got {distance:.1e}."
            )
    return Proof(
        images=len(pixels), batches=BATCHES if session.batch is None else (session.batch,),
        difference=difference, tolerance=tolerance, hostile_inputs=compared,
        hostile_difference=worst, rivals=rivals, indistinct=tuple(indistinct),
        reference="float32" if reference is network else "float64",
    )  # fmt: skip


def batches_of(count: int) -> Iterator[slice]:
    """Cut images into batches of 1, 3, 64, 64 ..., which show that the dimension is dynamic."""
    start = 0
    for size in (*BATCHES, *[BATCHES[-1]] * (count // BATCHES[-1])):
        if start < count:
            yield slice(start, start + size)
            start += size


def _largest_difference(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    # NaN anywhere makes this NaN, which is within no tolerance
    return float(np.abs(a.astype(np.float64) - b).max())
