"""Writing a variant as an int8 ONNX file, only if it loses no more than is allowed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from recal.data.normalise import normalise_array
from recal.export.export import ExportOptions, entries_of, finish, rivals_of, to_model
from recal.export.int8 import activation_ranges, simplified
from recal.export.int8_proof import MAX_DROP, Int8Proof, judge
from recal.export.proof import prove
from recal.export.trace import to_onnx
from recal.networks.build import build
from recal.onnx_file.session import filled
from recal.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from recal.checkpoint.checkpoint import Checkpoint
    from recal.export.images import CalibrationImages, HeldOutImages
    from recal.export.int8 import Ranges
    from recal.export.proof import Proof
    from recal.networks.spec import ModelSpec
    from recal.variant.variant import Variant


BATCH = 16
PARITY_IMAGES = 256


def export_int8(
    checkpoint: Checkpoint,
    variant: Variant,
    path: str | Path,
    calibration: CalibrationImages,
    held_out: HeldOutImages,
    *,
    options: ExportOptions | None = None,
    max_drop: float = MAX_DROP,
    class_names: Sequence[str] | None = None,
    accuracies: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> tuple[Proof, Int8Proof]:
    """Export a variant in 8 bits: folded and proven in float32, then quantised and judged.

    Args:
        checkpoint: Lends the weights.
        variant: The variant.
        path: The file to write, after both proofs; one that was there stays as it is until then.
        calibration: Images that the activations take their ranges from.
        held_out: Images that the file is judged by.
        options: The form of the file.
        max_drop: Accuracy that may be lost, in [0, 1]; without labels, predictions that may change.
        class_names: The classes' names in the order of the logits, for the record.
        accuracies: What an evaluation found, for the record.
        progress: Called with images judged and in total.

    Returns:
        The proof of the folded float32 model, and that of the int8 model.

    Raises:
        VerificationError: The folded model is not the variant; the int8 model loses more than
            `max_drop`, or is nearer to another branch.
        InputError: The network cannot be built or exported; images or names do not fit.
        UsageError: The options do not go together.
    """
    options = replace(options or ExportOptions(), int8=True).checked()
    spec, network = variant.spec, build(checkpoint, variant)
    rivals = rivals_of(checkpoint, variant)
    record = entries_of(checkpoint, variant, options, class_names, accuracies)
    folded = to_model(network, variant, replace(options, int8=False)).SerializeToString()
    parity = prove(folded, network, rivals, held_out.pixels[:PARITY_IMAGES], spec)
    ranges = ranges_of(network, spec, options, calibration.pixels)
    model = to_model(network, variant, options, ranges)
    proof = judge(
        model.SerializeToString(), folded, network, rivals, held_out, spec, max_drop=max_drop,
        progress=progress,
    )  # fmt: skip
    entries = {
        **record,
        "parity": parity.to_json(),
        "int8": {
            **proof.to_json(),
            "max_drop": max_drop,
            "calibration": dict(calibration.record),
            "ranges": ranges,
        },
    }
    finish(model, entries, path)
    return parity, proof


def ranges_of(
    network: nn.Module, spec: ModelSpec, options: ExportOptions, pixels: NDArray[np.uint8]
) -> Ranges:
    """Return the ranges that activations take on calibration images, uint8 (N, size, size, 3)."""
    graph = to_onnx(
        network, spec.size, fold=True, opset=options.opset, batch=options.batch,
        any_size=options.any_size,
    )  # fmt: skip
    return activation_ranges(simplified(graph), _batches(pixels, spec, options.batch))


def _batches(
    pixels: NDArray[np.uint8], spec: ModelSpec, fixed: int | None
) -> Iterator[NDArray[np.float32]]:
    """Yield normalised images; a fixed batch that is not full is filled with its last image."""
    size = fixed or BATCH
    for start in range(0, len(pixels), size):
        part = filled(pixels[start : start + size], fixed or 0)
        yield normalise_array(part, spec.mean, spec.std)
