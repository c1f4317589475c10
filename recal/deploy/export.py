"""Writing a variant as an ONNX file, only if the file is proven to be that variant."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from recal.bn.build import build
from recal.bn.variant import Variant, branch_variant
from recal.deploy.graph import to_onnx
from recal.deploy.runtime import METADATA_PREFIX, OnnxNetwork, normalise_array
from recal.errors import VerificationError
from recal.files import write_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recal.checkpoint.checkpoint import Checkpoint

TOLERANCE = 1e-4
BATCHES = (1, 3, 64)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How an ONNX file compares with networks on the same images.

    Attributes:
        images: Number of images compared.
        difference: Largest absolute difference of a logit from the variant's, by PyTorch.
        tolerance: What that may be at most: 1e-4 x max(1, largest |logit|).
        rivals: The same difference from every other stored branch.
    """

    images: int
    difference: float
    tolerance: float
    rivals: dict[str, float]


def export_onnx(
    checkpoint: Checkpoint,
    variant: Variant | str,
    path: str | Path,
    images: NDArray[np.uint8],
    **asked: Any,
) -> Proof:
    """Export a variant and compare the file, in ONNX Runtime, with the variant in PyTorch.

    Args:
        checkpoint: Lends the weights.
        variant: A variant, or the name of a branch.
        path: The file to write. It is written only after the proof; one that was there stays as it
            is until then.
        images: What to compare on, uint8 (N, size, size, 3).
        **asked: With a branch: fields of `ModelSpec` that the file does not give.

    Returns:
        The proof.

    Raises:
        VerificationError: The file differs from the variant, or not from another branch.
        InputError: The network cannot be built or exported.
    """
    if isinstance(variant, str):
        variant = branch_variant(checkpoint, variant, checkpoint.spec(**asked))
    network = build(checkpoint, variant)
    model = to_onnx(network, variant.spec.size, fold=True)
    inputs = normalise_array(images, variant.spec.mean, variant.spec.std)
    rivals = {
        name: build(checkpoint, branch_variant(checkpoint, name, variant.spec))
        for name in checkpoint.branches
        if variant.statistics != {"source": "branch", "branch": name} or variant.affine != name
    }
    proof = prove(model.SerializeToString(), network, rivals, inputs)
    onnx.helper.set_model_props(model, _metadata(variant, proof))
    onnx.checker.check_model(model, full_check=True)
    write_whole(Path(path), model.SerializeToString())
    return proof


def prove(
    model: bytes,
    network: torch.nn.Module,
    rivals: dict[str, torch.nn.Module],
    inputs: NDArray[np.float32],
) -> Proof:
    """Compare a serialised model with the network that it should be, and with those it should not.

    Args:
        model: The ONNX model.
        network: What it was made from, in eval mode on the CPU.
        rivals: Other networks of the same shape, by name.
        inputs: Normalised images, float32 (N, 3, size, size).

    Raises:
        VerificationError: The model differs from the network by more than the tolerance, or is as
            near to a rival that itself differs from the network.
    """
    exported = _run_in_batches(OnnxNetwork(model), inputs)
    own = _forward(network, inputs)
    tolerance = TOLERANCE * max(1.0, float(np.abs(own).max()))
    difference = _largest_difference(exported, own)
    if not difference <= tolerance:
        raise VerificationError(
            f"export: expected logits within {tolerance:.1e} of PyTorch's, got a difference of "
            f"{difference:.1e}. No file was written. Please report the architecture."
        )
    distances = {}
    for name, rival in rivals.items():
        logits = _forward(rival, inputs)
        distances[name] = _largest_difference(exported, logits)
        if _largest_difference(own, logits) > 2 * tolerance and distances[name] <= tolerance:
            raise VerificationError(
                f"export: the file cannot be told from branch '{name}', although the variant "
                "differs from it. No file was written."
            )
    return Proof(images=len(inputs), difference=difference, tolerance=tolerance, rivals=distances)


def _metadata(variant: Variant, proof: Proof) -> dict[str, str]:
    record = variant.record()
    entries = {
        "format": record["format"],
        "variant": variant.label,
        "variant_sha256": variant.sha256,
        "weights_sha256": variant.weights_sha256,
        "model": record["model"],
        "affine": variant.affine,
        "statistics": record["statistics"],
        "versions": {**record["versions"], "onnx": onnx.__version__},
        "parity": {"images": proof.images, "largest_difference": float(f"{proof.difference:.1e}")},
    }
    return {
        f"{METADATA_PREFIX}{key}": value
        if isinstance(value, str)
        else json.dumps(value, sort_keys=True)
        for key, value in entries.items()
    }


def _run_in_batches(network: OnnxNetwork, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run inputs in batches of 1, 3, 64, 64 ..., so that the batch dimension is proven dynamic."""
    parts, start = [], 0
    sizes = [*BATCHES, *[BATCHES[-1]] * (len(inputs) // BATCHES[-1] + 1)]
    for size in sizes:
        if start < len(inputs):
            parts.append(network.logits(inputs[start : start + size]))
            start += size
    return np.concatenate(parts)


@torch.inference_mode()
def _forward(network: torch.nn.Module, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    batches = torch.split(torch.from_numpy(inputs), BATCHES[-1])
    return torch.cat([network(batch) for batch in batches]).numpy()


def _largest_difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    # NaN anywhere makes this NaN, which is within no tolerance
    return float(np.abs(a.astype(np.float64) - b).max())
