"""What an int8 file loses, and whether it is still its variant and none of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recal.data.normalise import normalise_array
from recal.errors import VerificationError
from recal.export.proof import FLOAT32, batches_of
from recal.export.subject import Subject, run_torch
from recal.onnx_file.record import Int8Proof
from recal.onnx_file.session import OnnxNetwork
from recal.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from recal.export.int8_images import HeldOutImages


MAX_DROP = 0.01
LARGEST_ERROR = 0.5
RIVAL_IMAGES = 256


def judge(
    model: bytes,
    folded: bytes,
    subject: Subject,
    held_out: HeldOutImages,
    *,
    max_drop: float = MAX_DROP,
    progress: Progress = silent,
) -> Int8Proof:
    """Compare an int8 model with the network that it should be, and with that network's rivals.

    Outputs of 8 bits are off by percents, so that no bound on a logit tells one variant from
    another. These measures do: the share of predictions that stay, the accuracy that is lost, and
    whether the error of the outputs points to another branch. Images run in batches of 1, 3 and 64.

    Args:
        model: The int8 model.
        folded: The same model in float32.
        subject: The variant that the model should be.
        held_out: Images with which the model was not made.
        max_drop: Largest accepted `drop`, in [0, 1].
        progress: Called with the numbers of images done and in total.

    Raises:
        VerificationError: It loses more than `max_drop`, is off by half of the outputs' spread, or
            lies nearer to a rival than to the network.
    """
    spec, where = subject.spec, subject.where
    sessions = {"folded": OnnxNetwork(folded), "int8": OnnxNetwork(model)}
    softmax = sessions["int8"].gives_probabilities
    outputs = _outputs(subject, sessions, held_out.pixels, progress)
    exact, found = outputs["pytorch"], outputs["int8"]
    error = _root_mean_square(found - exact) / max(float(exact.std()), np.finfo(float).tiny)
    if not error <= LARGEST_ERROR:
        raise VerificationError(
            f"{where}: expected int8 outputs within {LARGEST_ERROR} of the spread of those in "
            f"float32, got an error of {error:.2f}."
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
    off = (found - exact)[: len(few)]
    ways, indistinct = {}, []
    for name, rival in subject.rivals.items():
        way = run_torch(rival, few, softmax=softmax).astype(np.float64) - exact[: len(few)]
        if np.abs(way).max() <= 2 * FLOAT32.images * max(1.0, float(np.abs(exact).max())):
            indistinct.append(name)
        else:
            ways[name] = float((off * way).sum() / np.square(way).sum())
    proof = Int8Proof(
        images=len(exact), agreement=float(same.mean()), error=error, accuracies=accuracies,
        drop=drop, drop_error=float(lost.std() / np.sqrt(len(lost))), rivals=ways,
        indistinct=tuple(indistinct),
    )  # fmt: skip
    for name, share in ways.items():
        if not share < 0.5:
            raise VerificationError(
                f"{where}: expected int8 outputs nearer to the variant than to branch '{name}', "
                f"got {share:.2f} of the way to it."
            )
    if not drop <= max_drop:
        raise VerificationError(_too_much(proof, max_drop, where))
    return proof


def _too_much(proof: Int8Proof, max_drop: float, where: str) -> str:
    if not proof.accuracies:
        return (
            f"{where}: --max-drop: expected at most {max_drop:.2%} of predictions to change, got "
            f"{proof.drop:.2%} ± {proof.drop_error:.2%} of {proof.images:,} unlabelled images."
        )
    return (
        f"{where}: --max-drop: expected at most {max_drop:.2%} of accuracy to be lost, got "
        f"{proof.drop:.2%} ± {proof.drop_error:.2%} ({proof.accuracies['pytorch']:.2%} in float32, "
        f"{proof.accuracies['int8']:.2%} in int8, {proof.images:,} images)."
    )


def _outputs(
    subject: Subject,
    sessions: Mapping[str, OnnxNetwork],
    pixels: NDArray[np.uint8],
    progress: Progress,
) -> dict[str, NDArray[np.floating]]:
    """Return outputs (N, K) by PyTorch and by each session."""
    softmax = sessions["int8"].gives_probabilities
    parts: dict[str, list[NDArray[np.floating]]] = {"pytorch": [], **{n: [] for n in sessions}}
    for batch in batches_of(len(pixels)):
        images = normalise_array(pixels[batch], subject.spec.mean, subject.spec.std)
        parts["pytorch"].append(run_torch(subject.reference, images, softmax=softmax))
        for name, session in sessions.items():
            parts[name].append(session.outputs(pixels[batch] if session.takes_pixels else images))
        progress(min(batch.stop, len(pixels)), len(pixels))
    return {name: np.concatenate(found) for name, found in parts.items()}


def _root_mean_square(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))
