"""Re-estimating BatchNorm statistics inside an ONNX file, by ONNX Runtime and NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from recal import __version__
from recal.bn.variant_file import FORMAT, VariantFile
from recal.data.draws import seeded_batches
from recal.data.prepared import PreparedImages
from recal.deploy.editing import batch_norm_nodes, layer_tensors, with_arrays
from recal.deploy.patch import require_patchable, weights_identity
from recal.deploy.runtime import normalise_array
from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from recal.checkpoint.spec import ModelSpec
    from recal.data.policies import Policy
    from recal.data.sources import ImageSource

KEPT_BYTES = 2 << 30
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


def recalibrate(
    model: onnx.ModelProto,
    source: ImageSource,
    spec: ModelSpec,
    policy: Policy,
    *,
    samples: int | None,
    batch_size: int,
    seed: int,
    where: str,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> VariantFile:
    """Estimate the statistics that the network in an ONNX file itself sees, layer by layer.

    The same definition as the estimator `consistent`, images and draws included: each pass takes
    the moments of the layers whose inputs are final, so there are as many passes as BatchNorm
    layers in sequence. Every image gives its own mean and sum of squares, as further outputs of the
    graph; they are merged in float64.

    Args:
        model: A patchable file's model, or any whose BatchNormalization nodes are unfolded.
        source: The images; labels are not needed.
        spec: Preprocessing.
        policy: What is done to the images.
        samples: How many images at most; None for all.
        batch_size: Images a run; without effect on the result.
        seed: Of the choice of images and of the policy's draws.
        where: The model's name in messages.
        progress: Called with image passes done and in total.

    Returns:
        The variant: the file's affine, the new statistics.

    Raises:
        InputError: The file is not patchable; images do not fit; a value is not finite.
    """
    record = require_patchable(model, where)
    weights_sha256 = weights_identity(model)
    indices = seeded_batches(len(source), samples or len(source), batch_size, seed)
    images = PreparedImages(source, policy, seed, spec.size)
    batches = _Batches(images, indices, spec, model)
    levels = _levels(model.graph)
    total, done = len(levels) * sum(map(len, indices)), 0
    current = model
    for layers in levels:
        parts: dict[str, list[ImageMoments]] = {layer: [] for layer in layers}
        run = _moments_session(current, layers)
        for batch in batches:
            for layer, moments in run(batch).items():
                parts[layer].append(moments)
            done += len(batch)
            progress(done, total)
        current = with_arrays(current, _statistics(current.graph, parts, where))
    names = layer_tensors(current.graph)
    arrays = {tensor.name: tensor for tensor in current.graph.initializer}
    used = [int(index) for batch in indices for index in batch]
    return VariantFile(
        tensors={key: numpy_helper.to_array(arrays[name]) for key, name in names.items()},
        record={
            "format": FORMAT,
            "weights_sha256": weights_sha256,
            "model": spec.to_json(),
            "affine": record.get("affine", "main"),
            "statistics": {
                "source": "policy",
                "policy": policy.name,
                "policy_sha256": policy.sha256,
                "policy_text": policy.text,
                "data_sha256": source.fingerprint(used),
                "images": len(used),
                "batch_size": batch_size,
                "estimator": "consistent",
                "seed": seed,
                "layers_without_data": [],
            },
            "versions": {"recal": __version__, "onnxruntime": onnxruntime.__version__},
        },
    )


class _Batches:
    """What the network takes, batch by batch; prepared once where it fits in memory."""

    def __init__(
        self,
        images: PreparedImages,
        indices: Sequence[NDArray[np.int64]],
        spec: ModelSpec,
        model: onnx.ModelProto,
    ) -> None:
        self._images, self._indices, self._spec = images, indices, spec
        kind = model.graph.input[0].type.tensor_type.elem_type
        self._takes_pixels = kind == TensorProto.UINT8
        self._kept: list[NDArray[np.uint8]] = []

    def __iter__(self) -> Iterator[NDArray[Any]]:
        fits = sum(map(len, self._indices)) * self._spec.size**2 * 3 <= KEPT_BYTES
        for number, index in enumerate(self._indices):
            if number < len(self._kept):
                pixels = self._kept[number]
            else:
                pixels = self._images.batch(index)
                if fits:
                    self._kept.append(pixels)
            if self._takes_pixels:
                yield pixels
            else:
                yield normalise_array(pixels, self._spec.mean, self._spec.std)


def _levels(graph: onnx.GraphProto) -> list[list[str]]:
    """Return the layers by the number of BatchNorm layers on the longest way to them."""
    layers = {node.output[0]: layer for layer, node in batch_norm_nodes(graph).items()}
    depth: dict[str, int] = {}
    levels: list[list[str]] = []
    for node in graph.node:  # ONNX graphs are sorted
        level = max((depth.get(name, 0) for name in node.input), default=0)
        if node.output[0] in layers:
            if level == len(levels):
                levels.append([])
            levels[level].append(layers[node.output[0]])
            level += 1
        depth |= dict.fromkeys(node.output, level)
    return levels


def _moments_session(
    model: onnx.ModelProto, layers: Sequence[str]
) -> Callable[[NDArray[Any]], dict[str, ImageMoments]]:
    """Return a function from a batch to the moments of the values at each of these layers."""
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
    name = session.get_inputs()[0].name

    def run(batch: NDArray[Any]) -> dict[str, ImageMoments]:
        try:
            outputs = session.run(None, {name: batch})
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"ONNX Runtime: {batch.shape} images: {reason}") from error
        triples = zip(outputs[0::3], outputs[1::3], outputs[2::3], strict=True)
        return {
            layer: ImageMoments(
                int(shape[2]), means[:, :, 0].astype(np.float64), m2[:, :, 0].astype(np.float64)
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


def _statistics(
    graph: onnx.GraphProto, parts: dict[str, list[ImageMoments]], where: str
) -> dict[str, NDArray[np.float32]]:
    nodes = batch_norm_nodes(graph)
    arrays = {}
    for layer, found in parts.items():
        merged = ImageMoments(
            found[0].count,
            np.concatenate([part.means for part in found]),
            np.concatenate([part.m2 for part in found]),
        )
        if not (np.isfinite(merged.mean).all() and np.isfinite(merged.variance).all()):
            raise InputError(
                f"{where}: layer {layer}: expected finite values, got NaN or infinity. Look for "
                "them in the file and in the images."
            )
        arrays[nodes[layer].input[3]] = merged.mean.astype(np.float32)
        arrays[nodes[layer].input[4]] = merged.variance.astype(np.float32)
    return arrays
