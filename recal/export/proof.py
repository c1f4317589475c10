"""Proving that an ONNX model is one network and none of its rivals."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recal.data.normalise import normalise_array
from recal.errors import InputError, VerificationError
from recal.onnx_file.session import OnnxNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from recal.networks.spec import ModelSpec


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


BATCHES = (1, 3, 64)
SLACK = 10.0
LOOSEST = 0.1
ROUNDING_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an output may be off, relative to max(1, the largest).

    A network may amplify rounding, which no file can help. So where ten times the error of
    PyTorch's own float32, found by float64, is more than the number here, that is the tolerance.

    Attributes:
        images: On the images, against PyTorch; relative to the largest output of all.
        hostile: On hostile inputs, against float64; relative to the largest output of each input.
            Inputs on which ten times PyTorch's own error passes 0.1 tell nothing, and are left out.
    """

    images: float
    hostile: float


# Measured largest differences are about 1e-6 (float32) and 3e-3 (float16): see docs/deployment.md.
FLOAT32 = Tolerance(images=1e-5, hostile=1e-5)
FLOAT16 = Tolerance(images=2e-2, hostile=5e-2)


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A network that the file must not be.

    Attributes:
        distance: Largest absolute difference of a logit of the file from the rival's.
        expected: The same of the variant from the rival: what `distance` should be.
    """

    distance: float
    expected: float


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How an ONNX file compares with networks on the same images.

    Attributes:
        images: Number of images compared.
        batches: The batch sizes in which they were run.
        difference: Largest absolute difference of a logit from the variant's, by PyTorch.
        tolerance: What that may be at most.
        hostile_inputs: Number of adversarial, scaled and patterned inputs compared.
        hostile_difference: Largest difference there from float64, relative to max(1, the input's
            largest |logit|).
        rivals: The distance from every other stored branch.
        indistinct: Rivals whose own logits are those of the variant, within the tolerance, so that
            no image tells them apart.
    """

    images: int
    batches: tuple[int, ...]
    difference: float
    tolerance: float
    hostile_inputs: int
    hostile_difference: float
    rivals: Mapping[str, Rival]
    indistinct: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what the file's record keeps, in two digits, so that it is the same each time."""
        return {
            "images": self.images,
            "batches": list(self.batches),
            "largest_difference": _short(self.difference),
            "tolerance": _short(self.tolerance),
            "hostile_inputs": self.hostile_inputs,
            "hostile_difference": _short(self.hostile_difference),
            "rivals": {name: _short(rival.distance) for name, rival in self.rivals.items()},
        }


def prove(
    model: bytes,
    network: torch.nn.Module,
    rivals: Mapping[str, torch.nn.Module],
    pixels: NDArray[np.uint8],
    spec: ModelSpec,
    *,
    allowed: Tolerance = FLOAT32,
    where: str = "export",
    variant: str | None = None,
) -> Proof:
    """Compare a serialised model with the network that it should be, and with those it should not.

    Images run in batches of 1, 3 and 64 (in the one batch of a file that is fixed to one), then
    hostile inputs.

    Args:
        model: The ONNX model.
        network: What it was made from, in eval mode on the CPU.
        rivals: Other networks of the same shape, by name.
        pixels: Images, uint8 (N, size, size, 3).
        spec: Says how they are normalised.
        allowed: The tolerance.
        where: The beginning of the message.
        variant: Of a switchable model, the name of the variant that is to be the network.

    Raises:
        VerificationError: The model differs from the network by more than the tolerance, or is as
            near to a rival that itself differs from the network.
        InputError: The images are others than that.
    """
    side = spec.size
    if pixels.dtype != np.uint8 or not len(pixels) or pixels.shape[1:] != (side, side, 3):
        raise InputError(
            f"{where}: expected images uint8 (N, {side}, {side}, 3), got {pixels.dtype} "
            f"{pixels.shape}."
        )
    session = OnnxNetwork(model, variant=variant)
    softmax = session.gives_probabilities
    pixels = np.resize(pixels, (max(len(pixels), sum(BATCHES)), *pixels.shape[1:]))
    images = normalise_array(pixels, spec.mean, spec.std)
    exported = run_in_batches(session, pixels if session.takes_pixels else images)
    own = run_torch(network, images, softmax=softmax)
    few = images[:ROUNDING_IMAGES]
    groups = hostile_inputs(
        network, pixels, spec, takes_pixels=session.takes_pixels, half=allowed is FLOAT16
    )
    hostile = np.concatenate(groups)
    normalised = normalise_array(hostile, spec.mean, spec.std) if session.takes_pixels else hostile
    exact, rounding = in_float64(network, np.concatenate([few, normalised]), softmax=softmax)
    own_error = SLACK * float(rounding[: len(few)].max())
    relative = max(allowed.images, min(own_error, LOOSEST))
    tolerance = relative * max(1.0, float(np.abs(own).max()))
    difference = _largest_difference(exported, own)
    if not difference <= tolerance:
        raise VerificationError(
            f"{where}: expected logits within {tolerance:.1e} of PyTorch's, got a difference of "
            f"{difference:.1e}. No file was written. Please report the architecture."
        )
    errors = relative_errors(session.outputs(hostile), exact[len(few) :])
    sizes = [len(group) for group in groups]
    compared, worst = _prove_hostile(errors, rounding[len(few) :], sizes, allowed.hostile, where)
    found = {}
    for name, other in rivals.items():
        logits = run_torch(other, images, softmax=softmax)
        found[name] = Rival(
            distance=_largest_difference(exported, logits),
            expected=_largest_difference(own, logits),
        )
    indistinct = tuple(name for name, rival in found.items() if rival.expected <= 2 * tolerance)
    for name, rival in found.items():
        if name not in indistinct and not abs(rival.distance - rival.expected) <= tolerance:
            raise VerificationError(
                f"{where}: expected the file as far from branch '{name}' as the variant is "
                f"({rival.expected:.1e}), got {rival.distance:.1e}. No file was written."
            )
    return Proof(
        images=len(pixels), batches=BATCHES if session.batch is None else (session.batch,),
        difference=difference, tolerance=tolerance, hostile_inputs=compared,
        hostile_difference=worst, rivals=found, indistinct=indistinct,
    )  # fmt: skip


def batches_of(count: int) -> Iterator[slice]:
    """Cut images into batches of 1, 3, 64, 64 ..., which prove that the dimension is dynamic."""
    start = 0
    for size in (*BATCHES, *[BATCHES[-1]] * (count // BATCHES[-1])):
        if start < count:
            yield slice(start, start + size)
            start += size


def run_in_batches(network: OnnxNetwork, inputs: NDArray[Any]) -> NDArray[np.float32]:
    """Map what a file takes to what it gives, in batches of 1, 3, 64, 64 ..."""
    return np.concatenate([network.outputs(inputs[part]) for part in batches_of(len(inputs))])


def _prove_hostile(
    errors: NDArray[np.float64],
    rounding: NDArray[np.float64],
    sizes: Sequence[int],
    allowed: float,
    where: str,
) -> tuple[int, float]:
    """Compare errors with PyTorch's own, group by group.

    Args:
        errors: Of the file, relative, (N,).
        rounding: Of PyTorch in float32, likewise.
        sizes: How many inputs each group has.
        allowed: What is allowed whatever PyTorch's own error.
        where: The beginning of the message.

    Returns:
        The number of inputs that were compared, and the largest error of those.
    """
    compared, worst, start = 0, 0.0, 0
    for size in sizes:
        group = slice(start, start + size)
        start += size
        bound = max(allowed, SLACK * float(rounding[group].max()))
        if not bound <= LOOSEST:
            continue
        error = float(errors[group].max())
        if not error <= bound:
            raise VerificationError(
                f"{where}: expected logits of hostile inputs within {bound:.1e} of the largest, "
                f"got {error:.1e}. No file was written. Please report the architecture."
            )
        compared, worst = compared + size, max(worst, error)
    return compared, worst


def _largest_difference(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    # NaN anywhere makes this NaN, which is within no tolerance
    return float(np.abs(a.astype(np.float64) - b).max())


def _short(value: float) -> float:
    return float(f"{value:.1e}")
