"""Turning a folded float32 graph into 8-bit integers, and judging what these lose.

The quantisation is static, in the QDQ format of ONNX Runtime's quantiser: weights have one scale
per output channel, and activations one for all images, from their range on the images given.
"""

import copy
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, create_calibrator
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from recal.data.normalise import normalise_array
from recal.errors import InputError, VerificationError
from recal.export.int8_images import HeldOutImages
from recal.export.proof import FLOAT32, batches_of
from recal.export.subject import Subject, run_torch
from recal.onnx_file.editing import refill
from recal.onnx_file.record import Int8Proof, Ranges
from recal.onnx_file.session import BASIC, OnnxNetwork, open_session
from recal.progress import Progress, silent

# it has no kernel of 8 bits, so that its parameters would lose digits in vain
IN_FLOAT = {"BatchNormalization"}


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph after ONNX Runtime's basic optimisation, with standard operators alone.

    Constants are computed, and paddings are joined with their convolutions. Otherwise a quantiser
    would put conversions around each.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simplified.onnx"
        open_session(model.SerializeToString(), "export", optimisation=BASIC, optimised=path)
        result = onnx.load(path)
    refill(result.opset_import, (e for e in model.opset_import if e.domain in ("", "ai.onnx")))
    return onnx.shape_inference.infer_shapes(result)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Passes batches to ONNX Runtime's calibrator under the input's name."""

    def __init__(self, name: str, batches: Iterable[NDArray[np.float32]]) -> None:
        self._inputs = ({name: batch} for batch in batches)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._inputs, None)


def activation_ranges(model: onnx.ModelProto, batches: Iterable[NDArray[np.float32]]) -> Ranges:
    """Run batches (N, C, H, W) and return the lowest and highest value of every float tensor.

    Raises:
        InputError: There are no images, or values that are not finite.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, augmented = Path(folder) / "model.onnx", str(Path(folder) / "augmented.onnx")
        onnx.save(model, path)
        method = CalibrationMethod.MinMax
        calibrator = create_calibrator(path, [], augmented, calibrate_method=method)
        try:
            calibrator.collect_data(_Reader(model.graph.input[0].name, batches))
        except ValueError as error:
            message = f"--int8: expected images for the ranges, got none ({error})."
            raise InputError(message) from error
        found = calibrator.compute_data()
    ranges = {
        name: (float(np.min(data.lowest)), float(np.max(data.highest)))
        for name, data in sorted(found.items())
    }
    odd = [name for name, pair in ranges.items() if not np.isfinite(pair).all()]
    if odd:
        raise InputError(f"--int8: tensor '{odd[0]}': expected finite values, got NaN or infinity.")
    return ranges


def to_int8(model: onnx.ModelProto, ranges: Ranges, *, symmetric: bool = False) -> onnx.ModelProto:
    """Return a simplified model with 8-bit weights and activations; inputs stay float32.

    The same model and ranges give the same graph. The given model stays unchanged.

    Args:
        model: A float32 model from `simplified`.
        ranges: Lowest and highest value of each activation.
        symmetric: Whether activations are int8 around zero, with biases in float32, instead of
            uint8 with a zero point. Some engines, such as TensorRT, take nothing else.

    Raises:
        InputError: The ranges belong to another graph.
    """
    pairs = {name: tuple(np.float32(value) for value in pair) for name, pair in ranges.items()}
    quantiser = QDQQuantizer(
        copy.deepcopy(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, pairs),
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry} - IN_FLOAT),
        extra_options={"ActivationSymmetric": symmetric, "QuantizeBias": not symmetric},
    )
    try:
        quantiser.quantize_model()
    except (ValueError, KeyError) as error:
        message = f"--int8: expected the ranges of this graph, got others ({error})."
        raise InputError(message) from error
    quantiser.model.topological_sort()
    result: onnx.ModelProto = quantiser.model.model
    del result.metadata_props[:]
    # what shape inference left would repeat every tensor's name and shape
    del result.graph.value_info[:]
    return result


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
    parts: dict[str, list[NDArray[np.floating]]] = {"pytorch": [], "folded": [], "int8": []}
    for batch in batches_of(len(held_out.pixels)):
        pixels = held_out.pixels[batch]
        images = normalise_array(pixels, spec.normalisation)
        parts["pytorch"].append(run_torch(subject.reference, images, softmax=softmax))
        for name, session in sessions.items():
            parts[name].append(session.outputs(pixels if session.takes_pixels else images))
        progress(min(batch.stop, len(held_out.pixels)), len(held_out.pixels))
    outputs = {name: np.concatenate(found) for name, found in parts.items()}
    exact, found = outputs["pytorch"], outputs["int8"]
    size = np.sqrt(np.square(found - exact, dtype=np.float64).mean())
    error = float(size) / max(float(exact.std()), np.finfo(float).tiny)
    if not error <= LARGEST_ERROR:
        raise VerificationError(
            f"{where}: expected int8 outputs within {LARGEST_ERROR} of the spread of those in "
            f"float32, got an error of {error:.2f}."
        )
    few = normalise_array(held_out.pixels[:RIVAL_IMAGES], spec.normalisation)
    off = (found - exact)[: len(few)]
    ways, indistinct = {}, []
    for name, rival in subject.rivals.items():
        way = run_torch(rival, few, softmax=softmax).astype(np.float64) - exact[: len(few)]
        if np.abs(way).max() <= 2 * FLOAT32.images * max(1.0, float(np.abs(exact).max())):
            indistinct.append(name)
            continue
        ways[name] = float((off * way).sum() / np.square(way).sum())
        if not ways[name] < 0.5:
            raise VerificationError(
                f"{where}: expected int8 outputs nearer to the variant than to branch '{name}', "
                f"got {ways[name]:.2f} of the way to it."
            )
    same = found.argmax(axis=1) == exact.argmax(axis=1)
    accuracies: dict[str, float] = {}
    lost = ~same * 1.0
    what, of = "predictions to change", f"of {len(exact):,} unlabelled images"
    if held_out.answers is not None:
        predicted = {name: o.argmax(axis=1)[:, None] for name, o in outputs.items()}
        right = {name: (p == held_out.answers).any(axis=1) for name, p in predicted.items()}
        accuracies = {name: float(r.mean()) for name, r in right.items()}
        lost = right["pytorch"] * 1.0 - right["int8"]
        what, before, after = "accuracy to be lost", accuracies["pytorch"], accuracies["int8"]
        of = f"({before:.2%} in float32, {after:.2%} in int8, {len(exact):,} images)"
    drop, drop_error = float(lost.mean()), float(lost.std() / np.sqrt(len(lost)))
    if not drop <= max_drop:
        raise VerificationError(
            f"{where}: --max-drop: expected at most {max_drop:.2%} of {what}, got {drop:.2%} ± "
            f"{drop_error:.2%} {of}."
        )
    return Int8Proof(
        images=len(exact), agreement=float(same.mean()), error=error, accuracies=accuracies,
        drop=drop, drop_error=drop_error, rivals=ways, indistinct=tuple(indistinct),
    )  # fmt: skip
