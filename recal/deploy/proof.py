"""Proving that an ONNX model is one network and none of its rivals."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recal.deploy.runtime import OnnxNetwork, normalise_array
from recal.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from recal.checkpoint.spec import ModelSpec

BATCHES = (1, 3, 64)
SLACK = 10.0
LOOSEST = 0.1
SCALES = (0.0, 1e-3, 0.1, -1.0, 10.0, -30.0, 100.0, 1000.0)
HALF_SCALES = (0.0, 1e-3, 0.1, -1.0)  # float16 overflows where activations pass 65,504


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a logit may be off, relative to max(1, largest |logit|).

    Attributes:
        images: On the images; relative to the largest logit of all.
        scaled: On hostile inputs, against float64; relative to the largest logit of each input.
            Where PyTorch's own float32 is off by more than a tenth of this, ten times that, at most
            0.1.
    """

    images: float
    scaled: float


# Measured largest differences are about 1e-6 (float32) and 3e-3 (float16): see docs/deployment.md.
FLOAT32 = Tolerance(images=1e-4, scaled=1e-3)
FLOAT16 = Tolerance(images=2e-2, scaled=5e-2)


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
        scaled_inputs: Number of hostile inputs compared: images scaled by -30 to 1000, or pixel
            patterns of 0 and 255.
        scaled_difference: Largest difference there, relative to max(1, the input's largest
            |logit|).
        rivals: The distance from every other stored branch.
        indistinct: Rivals whose own logits are those of the variant, within the tolerance, so that
            no image tells them apart.
    """

    images: int
    batches: tuple[int, ...]
    difference: float
    tolerance: float
    scaled_inputs: int
    scaled_difference: float
    rivals: Mapping[str, Rival]
    indistinct: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what the file's record keeps, in two digits, so that it is the same each time."""
        return {
            "images": self.images,
            "batches": list(self.batches),
            "largest_difference": _short(self.difference),
            "tolerance": _short(self.tolerance),
            "scaled_inputs": self.scaled_inputs,
            "scaled_difference": _short(self.scaled_difference),
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
    """
    session = OnnxNetwork(model, variant=variant)
    pixels = np.resize(pixels, (max(len(pixels), sum(BATCHES)), *pixels.shape[1:]))
    images = normalise_array(pixels, spec.mean, spec.std)
    exported, batches = _run_in_batches(session, pixels if session.takes_pixels else images)
    own = _reference(session, network, images)
    tolerance = allowed.images * max(1.0, float(np.abs(own).max()))
    difference = _largest_difference(exported, own)
    if not difference <= tolerance:
        raise VerificationError(
            f"{where}: expected logits within {tolerance:.1e} of PyTorch's, got a difference of "
            f"{difference:.1e}. No file was written. Please report the architecture."
        )
    scaled_inputs, scaled = _prove_scaled(session, network, pixels, images, spec, allowed, where)
    found = {}
    for name, other in rivals.items():
        logits = _reference(session, other, images)
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
        images=len(pixels), batches=batches, difference=difference, tolerance=tolerance,
        scaled_inputs=scaled_inputs, scaled_difference=scaled, rivals=found, indistinct=indistinct,
    )  # fmt: skip


def _prove_scaled(
    session: OnnxNetwork,
    network: torch.nn.Module,
    pixels: NDArray[np.uint8],
    images: NDArray[np.float32],
    spec: ModelSpec,
    allowed: Tolerance,
    where: str,
) -> tuple[int, float]:
    if session.takes_pixels:
        inputs: NDArray[Any] = _hostile_pixels(pixels[:8])
        normalised = normalise_array(inputs, spec.mean, spec.std)
    else:
        scales = SCALES if allowed is FLOAT32 else HALF_SCALES
        inputs = normalised = np.concatenate([images[:2] * np.float32(scale) for scale in scales])
    exported, own = session.outputs(inputs), _reference(session, network, normalised)
    exact = _reference(session, copy.deepcopy(network).double(), normalised.astype(np.float64))
    largest = np.maximum(1.0, np.abs(exact).max(axis=1, keepdims=True))
    worst = _largest_difference(exported / largest, exact / largest)
    # a network may amplify rounding: the file may be as wrong as PyTorch itself, within reason
    rounding = _largest_difference(own / largest, exact / largest)
    bound = min(max(allowed.scaled, SLACK * rounding), LOOSEST)
    if not worst <= bound:
        raise VerificationError(
            f"{where}: expected logits of scaled inputs within {bound:.0e} of the "
            f"largest, got {worst:.1e}. No file was written. Please report the architecture."
        )
    return len(inputs), worst


def _hostile_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pictures of black, white, a checkerboard, noise, and negatives of the images."""
    shape = pixels.shape[1:]
    board = (np.indices(shape).sum(axis=0) % 2 * 255).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)
    plain = np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), board])
    return np.concatenate([plain, noise, 255 - pixels])


def _run_in_batches(
    network: OnnxNetwork, inputs: NDArray[Any]
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Run inputs in batches of 1, 3, 64, 64 ..., so that the batch dimension is proven dynamic."""
    if network.batch is not None:
        return network.outputs(inputs), (network.batch,)
    parts, start = [], 0
    sizes = [*BATCHES, *[BATCHES[-1]] * (len(inputs) // BATCHES[-1] + 1)]
    for size in sizes:
        if start < len(inputs):
            parts.append(network.outputs(inputs[start : start + size]))
            start += size
    return np.concatenate(parts), BATCHES


@torch.inference_mode()
def _reference(
    session: OnnxNetwork, network: torch.nn.Module, images: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Return what PyTorch gives in the place of the file's output."""
    batches: Sequence[torch.Tensor] = torch.split(torch.from_numpy(images), BATCHES[-1])
    logits = torch.cat([network(batch) for batch in batches])
    return (logits.softmax(dim=1) if session.gives_probabilities else logits).numpy()


def _largest_difference(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    # NaN anywhere makes this NaN, which is within no tolerance
    return float(np.abs(a.astype(np.float64) - b).max())


def _short(value: float) -> float:
    return float(f"{value:.1e}")
