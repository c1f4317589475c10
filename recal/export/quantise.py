"""Turning a folded float32 graph into 8-bit integers, by ONNX Runtime's quantiser.

The quantisation is static, in the QDQ format: weights have one scale per output channel, and
activations one for all images, from their range on the images given.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, create_calibrator
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from recal.errors import InputError
from recal.onnx_file.session import BASIC, open_session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from recal.onnx_file.record import Ranges


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
    used = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    del result.opset_import[:]
    result.opset_import.extend(used)
    return onnx.shape_inference.infer_shapes(result)


def activation_ranges(model: onnx.ModelProto, batches: Iterable[NDArray[np.float32]]) -> Ranges:
    """Run images and return the lowest and highest value of every float tensor.

    Args:
        model: A simplified model.
        batches: Batches of normalised images, float32 (N, 3, H, W).

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
            raise InputError(
                f"--int8: expected images for the ranges, got none ({error})."
            ) from error
        found = calibrator.compute_data()
    ranges = {
        name: (float(np.min(data.lowest)), float(np.max(data.highest)))
        for name, data in sorted(found.items())
    }
    odd = [name for name, pair in ranges.items() if not np.isfinite(pair).all()]
    if odd:
        raise InputError(f"--int8: tensor '{odd[0]}': expected finite values, got NaN or infinity.")
    return ranges


def to_int8(model: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    """Return a simplified model with int8 weights and uint8 activations; inputs stay float32.

    The same model and ranges give the same graph.

    Args:
        model: A simplified model; not changed.
        ranges: Lowest and highest value of each float tensor.

    Raises:
        InputError: The ranges belong to another graph.
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
    """Passes batches to ONNX Runtime's calibrator under the input's name."""

    def __init__(self, name: str, batches: Iterable[NDArray[np.float32]]) -> None:
        self._name, self._batches = name, iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}
