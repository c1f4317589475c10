"""What an int8 file loses, and whether it is still its variant and none of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recal.data.normalise import normalise_array
from recal.errors import VerificationError
from recal.export.proof import FLOAT32, batches_of, run_torch
from recal.onnx_file.session import OnnxNetwork
from recal.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from numpy.typing import NDArray

    from recal.export.images import HeldOutImages
    from recal.networks.spec import ModelSpec


MAX_DROP = 0.01
LARGEST_ERROR = 0.5
RIVAL_IMAGES = 256


@dataclass(frozen=True, kw_only=True)
class Int8Proof:
    """How an int8 file compares with its network in float32, on images that it was not made with.

    Attributes:
        images: Number of images.
        agreement: Share of them of which both predict the same class, in [0, 1].
        error: Root mean square difference of the outputs, relative to the standard deviation of
            the network's own.
        accuracies: Top-1 accuracy by `pytorch` (float32), `folded` (ONNX, float32) and `int8`, in
            [0, 1]; empty where the images have no labels.
        drop: Accuracy lost, `pytorch` less `int8`; without labels the share of predictions that
            changed, which is the most that can be lost.
        drop_error: Standard error of `drop`, from the images.
        rivals: For every other stored branch, how far the file lies on the way from the variant
            (0) to that branch (1), along the straight line between their outputs.
        indistinct: Branches whose own outputs are those of the variant.
    """

    images: int
    agreement: float
    error: float
    accuracies: Mapping[str, float]
    drop: float
    drop_error: float
    rivals: Mapping[str, float]
    indistinct: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what the file's record keeps."""
        return {
            "images": self.images,
            "agreement": round(self.agreement, 6),
            "error": float(f"{self.error:.2g}"),
            "accuracies": {name: round(value, 6) for name, value in self.accuracies.items()},
            "drop": round(self.drop, 6),
            "drop_error": round(self.drop_error, 6),
            "rivals": {name: round(value, 2) for name, value in self.rivals.items()},
        }


def judge(
    model: bytes,
    folded: bytes,
    network: torch.nn.Module,
    rivals: Mapping[str, torch.nn.Module],
    held_out: HeldOutImages,
    spec: ModelSpec,
    *,
    max_drop: float | None = MAX_DROP,
    where: str = "export",
    progress: Progress = silent,
) -> Int8Proof:
    """Compare an int8 model with the network that it stands for, and with those it should not be.

    Outputs of 8 bits are off by percents, so that no bound on a logit tells one variant from
    another. What can be told: the share of predictions that stay, the accuracy that is lost, and
    whether the error of the outputs points to another branch. Images run in batches of 1, 3 and 64.

    Args:
        model: The int8 model.
        folded: The same in float32.
        network: What it was made from, in eval mode on the CPU.
        rivals: Other networks of the same shape, by name.
        held_out: Images that the model was not calibrated on.
        spec: Says how they are normalised.
        max_drop: The largest `drop` that is accepted; None for any.
        where: The beginning of the message.
        progress: Called with images done and in total.

    Raises:
        VerificationError: It loses more than `max_drop`, is off by half of the outputs' spread, or
            lies nearer to a rival than to the network.
    """
    softmax = OnnxNetwork(model).gives_probabilities
    outputs = _outputs_of_three(model, folded, network, held_out.pixels, spec, progress)
    exact = outputs["pytorch"]
    found = outputs["int8"]
    error = _root_mean_square(found - exact) / max(float(exact.std()), np.finfo(float).tiny)
    if not error <= LARGEST_ERROR:
        raise VerificationError(
            f"{where}: expected int8 outputs within {LARGEST_ERROR} of the spread of those in "
            f"float32, got an error of {error:.2f}. No file was written. Look at the calibration "
            "images, or export float32."
        )
    same = found.argmax(axis=1) == exact.argmax(axis=1)
    accuracies: dict[str, float] = {}
    lost = ~same * 1.0
    if held_out.labels is not None:
        right = {name: o.argmax(axis=1) == held_out.labels for name, o in outputs.items()}
        accuracies = {name: float(r.mean()) for name, r in right.items()}
        lost = right["pytorch"] * 1.0 - right["int8"]
    drop = float(lost.mean())
    few = normalise_array(held_out.pixels[:RIVAL_IMAGES], spec.mean, spec.std)
    ways, indistinct = _ways(exact[: len(few)], found[: len(few)], rivals, few, softmax=softmax)
    proof = Int8Proof(
        images=len(exact), agreement=float(same.mean()), error=error, accuracies=accuracies,
        drop=drop, drop_error=float(lost.std() / np.sqrt(len(lost))), rivals=ways,
        indistinct=indistinct,
    )  # fmt: skip
    for name, way in ways.items():
        if not way < 0.5:
            raise VerificationError(
                f"{where}: expected int8 outputs nearer to the variant than to branch '{name}', "
                f"got {way:.2f} of the way to it. No file was written."
            )
    if max_drop is not None and not drop <= max_drop:
        raise VerificationError(_too_much(proof, max_drop, where))
    return proof


def _too_much(proof: Int8Proof, max_drop: float, where: str) -> str:
    if not proof.accuracies:
        return (
            f"{where}: --max-drop: expected at most {max_drop:.2%} of predictions to change, got "
            f"{proof.drop:.2%} ± {proof.drop_error:.2%} of {proof.images:,} unlabelled images. No "
            "file was written. Give labelled images with --data, by which changes count only as "
            "far as they are errors, or a larger --max-drop."
        )
    return (
        f"{where}: --max-drop: expected at most {max_drop:.2%} of accuracy to be lost, got "
        f"{proof.drop:.2%} ± {proof.drop_error:.2%} ({proof.accuracies['pytorch']:.2%} in float32, "
        f"{proof.accuracies['int8']:.2%} in int8, {proof.images:,} images). No file was written. "
        "Try other images or more of them (--int8-images, --mode), or accept a larger --max-drop."
    )


def _outputs_of_three(
    model: bytes,
    folded: bytes,
    network: torch.nn.Module,
    pixels: NDArray[np.uint8],
    spec: ModelSpec,
    progress: Progress,
) -> dict[str, NDArray[np.floating]]:
    """Return outputs (N, K) by PyTorch, by the folded model and by the int8 model."""
    sessions = {"folded": OnnxNetwork(folded), "int8": OnnxNetwork(model)}
    softmax = sessions["int8"].gives_probabilities
    parts: dict[str, list[NDArray[np.floating]]] = {"pytorch": [], "folded": [], "int8": []}
    for batch in batches_of(len(pixels)):
        images = normalise_array(pixels[batch], spec.mean, spec.std)
        parts["pytorch"].append(run_torch(network, images, softmax=softmax))
        for name, session in sessions.items():
            parts[name].append(session.outputs(pixels[batch] if session.takes_pixels else images))
        progress(min(batch.stop, len(pixels)), len(pixels))
    return {name: np.concatenate(found) for name, found in parts.items()}


def _ways(
    exact: NDArray[np.floating],
    found: NDArray[np.floating],
    rivals: Mapping[str, torch.nn.Module],
    images: NDArray[np.float32],
    *,
    softmax: bool,
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Project the error of the outputs on the way to each rival, in parts of that way."""
    ways, indistinct = {}, []
    for name, rival in rivals.items():
        way = run_torch(rival, images, softmax=softmax).astype(np.float64) - exact
        if np.abs(way).max() <= 2 * FLOAT32.images * max(1.0, float(np.abs(exact).max())):
            indistinct.append(name)
        else:
            ways[name] = float(((found - exact) * way).sum() / np.square(way).sum())
    return ways, tuple(indistinct)


def _root_mean_square(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))
