"""Turning a folded float32 graph into 8-bit integers, by ONNX Runtime's quantiser.

Static, QDQ: the weights of every output channel have a scale of their own, every activation one for
all images, from the range that it takes on calibration images.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantType, create_calibrator
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray


# there is no kernel of 8 bits for it: its parameters would lose digits for nothing
IN_FLOAT = {"BatchNormalization"}
# lowest and highest value of each activation on the calibration images
Ranges = dict[str, list[float]]


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph as ONNX Runtime's basic optimisation leaves it: standard operators alone.

    Constants are computed and paddings joined with their convolutions, where a quantiser would put
    conversions around each.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simplified.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        result = onnx.load(path)
    used = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    del result.opset_import[:]
    result.opset_import.extend(used)
    return onnx.shape_inference.infer_shapes(result)


def activation_ranges(model: onnx.ModelProto, batches: Iterable[NDArray[np.float32]]) -> Ranges:
    """Run calibration images and return the lowest and highest value of every float tensor.

    Args:
        model: A simplified model.
        batches: Normalised images, float32 (N, 3, H, W), each.

    Raises:
        InputError: There are no images, or values that are not finite.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        calibrator = create_calibrator(
            path, [], augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
        try:
            calibrator.collect_data(_Reader(model.graph.input[0].name, batches))
        except ValueError as error:
            raise InputError(f"--int8: expected calibration images, got none ({error}).") from error
        found = calibrator.compute_data()
    ranges = {
        name: [float(np.min(data.lowest)), float(np.max(data.highest))]
        for name, data in sorted(found.items())
    }
    odd = [name for name, pair in ranges.items() if not np.isfinite(pair).all()]
    if odd:
        raise InputError(f"--int8: tensor '{odd[0]}': expected finite values, got NaN or infinity.")
    return ranges


def to_int8(model: onnx.ModelProto, ranges: Mapping[str, list[float]]) -> onnx.ModelProto:
    """Return a simplified model with weights int8 and activations uint8; inputs stay float32.

    The same model and ranges give the same graph.

    Raises:
        InputError: The ranges are not those of this graph.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    pairs = {name: tuple(np.float32(value) for value in pair) for name, pair in ranges.items()}
    quantiser = QDQQuantizer(
        copy,
        True,  # per channel
        False,  # all 8 bits
        QuantType.QInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, pairs),
        [],
        [],
        sorted({*QDQRegistry, *QLinearOpsRegistry} - IN_FLOAT),
        {},
    )
    try:
        quantiser.quantize_model()
    except (ValueError, KeyError) as error:
        raise InputError(f"--int8: expected the ranges of this graph, got others ({error}).") from (
            error
        )
    quantiser.model.topological_sort()
    result: onnx.ModelProto = quantiser.model.model
    del result.metadata_props[:]
    # what shape inference left would repeat every tensor's name and shape
    del result.graph.value_info[:]
    return result


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands batches to the calibrator under the input's name."""

    def __init__(self, name: str, batches: Iterable[NDArray[np.float32]]) -> None:
        self._name, self._batches = name, iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}
