"""Running ONNX files by ONNX Runtime; needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from recal.errors import InputError
from recal.files import require_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

METADATA_PREFIX = "recal."


class OnnxNetwork:
    """A session on one ONNX file or model.

    Attributes:
        classes: Number of logits, or None where the file leaves it open.
        metadata: The file's `recal.*` entries without the prefix, JSON decoded where it is JSON.
    """

    def __init__(self, model: Path | bytes, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        where = "ONNX model"
        if isinstance(model, Path):
            require_file(model, "an ONNX file")
            where = str(model)
        try:
            self._session = onnxruntime.InferenceSession(
                str(model) if isinstance(model, Path) else model,
                options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{where}: expected an ONNX network, got {reason}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(outputs) != 1 or inputs[0].type != "tensor(float)" or len(shape) != 4:
            raise InputError(
                f"{where}: expected one float input (N, 3, H, W) and one output, got "
                f"{len(inputs)} inputs {shape} and {len(outputs)} outputs."
            )
        self._input = inputs[0].name
        width = outputs[0].shape[-1] if len(outputs[0].shape) == 2 else None
        self.classes: int | None = width if isinstance(width, int) else None
        custom = self._session.get_modelmeta().custom_metadata_map
        self.metadata: Mapping[str, Any] = {
            key.removeprefix(METADATA_PREFIX): _decoded(value)
            for key, value in custom.items()
            if key.startswith(METADATA_PREFIX)
        }

    def logits(self, normalised: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map normalised images (N, 3, H, W) to logits (N, K)."""
        result: NDArray[np.float32] = self._session.run(None, {self._input: normalised})[0]
        return result


def normalise_array(
    images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32]:
    """Turn uint8 (N, H, W, 3) in 0 to 255 into float32 (N, 3, H, W), (x / 255 - mean) / std."""
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    shape = (1, -1, 1, 1)
    planes /= np.float32(255.0)
    planes -= np.asarray(mean, np.float32).reshape(shape)
    planes /= np.asarray(std, np.float32).reshape(shape)
    return planes


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
