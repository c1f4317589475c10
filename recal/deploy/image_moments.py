"""Moments of every image at the BatchNorm layers of an ONNX graph, as further outputs of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from recal.bn.precision import LayerError, with_bounds
from recal.deploy.editing import batch_norm_nodes
from recal.deploy.runtime import filled
from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

AXES_ARE_INPUTS = 18


@dataclass(frozen=True)
class ImageMoments:
    """Moments of the values of each channel, image by image.

    Attributes:
        count: Values behind each channel of one image, H x W.
        means: float64 (N, C).
        m2: Sums of squared deviations from the image's own mean, float64 (N, C).
    """

    count: int
    means: NDArray[np.float64]
    m2: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean over all images, float64 (C,)."""
        mean: NDArray[np.float64] = self.means.mean(axis=0)
        return mean

    @property
    def variance(self) -> NDArray[np.float64]:
        """Biased variance over all values, that between images included, float64 (C,)."""
        between = np.square(self.means - self.mean).mean(axis=0)
        variance: NDArray[np.float64] = self.m2.mean(axis=0) / self.count + between
        return variance

    def error(self) -> LayerError:
        """Return how far mean and variance may be off, as `Moments` has it: images as draws."""
        n, mean, variance = len(self.means), self.mean, self.variance
        safe = np.where(variance > 0, variance, 1.0)
        of_mean = (self.means - mean) / np.sqrt(safe)
        squares = self.m2 / self.count + np.square(self.means - mean)
        errors, degrees = [], []
        for parts in (of_mean, (squares - variance) / safe):
            errors.append(float(np.sqrt(np.square(parts).mean() / (n - 1))) if n > 1 else np.inf)
            degrees.append(_independent_channels(parts))
        return with_bounds(errors, degrees)


def _independent_channels(parts: NDArray[np.float64]) -> float:
    """Return trace(S)^2 / trace(S^2) of the covariance S of (N, C) rows of mean zero."""
    n, channels = parts.shape
    if n < 2:
        return 1.0
    trace = np.square(parts).sum() / (n - 1)
    # the products of a row with itself say nothing of pairs of images
    own = np.square(np.square(parts).sum(axis=1)).sum()
    of_square = (np.square(parts.T @ parts).sum() - own) / (n * (n - 1))
    least = max(trace**2 / channels, np.finfo(float).tiny)
    return float(np.clip(trace**2 / max(of_square, least), 1.0, channels))


def merge(found: Sequence[ImageMoments]) -> ImageMoments:
    """Return the moments of all these images together."""
    means, m2 = (
        np.concatenate(column) for column in zip(*((f.means, f.m2) for f in found), strict=True)
    )
    return ImageMoments(found[0].count, means, m2)


def moments_session(
    model: onnx.ModelProto, layers: Sequence[str]
) -> Callable[[NDArray[Any]], dict[str, ImageMoments]]:
    """Return a function from a batch to the moments of the values at each of these layers.

    A batch that is smaller than the one that the file is fixed to is filled with its last image,
    whose moments are left out.
    """
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    graph = cut.graph
    opset = next(entry.version for entry in cut.opset_import if entry.domain in ("", "ai.onnx"))
    found = batch_norm_nodes(graph)
    wanted = [found[layer].input[0] for layer in layers]
    _keep_what_leads_to(graph, wanted)
    del graph.output[:]
    del graph.value_info[:]
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([0, 0, -1], np.int64), "recal_flat"),
            numpy_helper.from_array(np.array([2], np.int64), "recal_axis"),
        ]
    )
    for number, value in enumerate(wanted):
        _add_moments(graph, value, f"recal_{number}", opset)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        cut.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = session.get_inputs()[0]
    fixed = given.shape[0] if isinstance(given.shape[0], int) else 0

    def run(batch: NDArray[Any]) -> dict[str, ImageMoments]:
        count = len(batch)
        try:
            outputs = session.run(None, {given.name: filled(batch, fixed)})
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"ONNX Runtime: {batch.shape} images: {reason}") from error
        triples = zip(outputs[0::3], outputs[1::3], outputs[2::3], strict=True)
        return {
            layer: ImageMoments(
                int(shape[2]),
                means[:count, :, 0].astype(np.float64),
                m2[:count, :, 0].astype(np.float64),
            )
            for layer, (means, m2, shape) in zip(layers, triples, strict=True)
        }

    return run


def _keep_what_leads_to(graph: onnx.GraphProto, values: Sequence[str]) -> None:
    needed, kept = set(values), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    kept.reverse()
    del graph.node[:]
    graph.node.extend(kept)
    used = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(used)


def _add_moments(graph: onnx.GraphProto, value: str, stem: str, opset: int) -> None:
    """Add outputs: per image and channel the mean, the squared deviations, and the shape.

    Deviations are from the image's own mean, so that no stored statistics, however wrong, cost
    digits.
    """
    flat, mean, deviation, m2, shape = (
        f"{stem}_{name}" for name in ("flat", "mean", "deviation", "m2", "shape")
    )
    # ReduceSum has taken its axes as an input since opset 13, ReduceMean since 18
    late = opset >= AXES_ARE_INPUTS
    inputs = ["recal_axis"] if late else []
    attributes: dict[str, Any] = {} if late else {"axes": [2]}
    graph.node.extend(
        [
            helper.make_node("Reshape", [value, "recal_flat"], [flat]),
            helper.make_node("ReduceMean", [flat, *inputs], [mean], keepdims=1, **attributes),
            helper.make_node("Sub", [flat, mean], [deviation]),
            helper.make_node("Mul", [deviation, deviation], [f"{stem}_square"]),
            helper.make_node("ReduceSum", [f"{stem}_square", "recal_axis"], [m2], keepdims=1),
            helper.make_node("Shape", [flat], [shape]),
        ]
    )
    graph.output.extend(
        [
            helper.make_tensor_value_info(mean, TensorProto.FLOAT, None),
            helper.make_tensor_value_info(m2, TensorProto.FLOAT, None),
            helper.make_tensor_value_info(shape, TensorProto.INT64, None),
        ]
    )
