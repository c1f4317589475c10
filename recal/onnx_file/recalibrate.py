"""Re-estimating BatchNorm statistics inside an ONNX file, with ONNX Runtime and NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from recal.calibration.error_bounds import with_bounds
from recal.data.images import MIN_IMAGES, counting_broken, usable_batches
from recal.data.normalise import normalise_array
from recal.errors import InputError
from recal.machine import may_keep
from recal.onnx_file.editing import batch_norm_nodes, layer_tensors, with_arrays
from recal.onnx_file.patch import require_patchable, weights_identity
from recal.onnx_file.session import filled, open_session, run_session
from recal.policies.prepared import PreparedImages
from recal.progress import Progress, silent
from recal.variant.statistics import EstimatedStatistics, LayerError
from recal.variant.variant import Variant
from recal.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from recal.data.images import ImageSource
    from recal.networks.spec import ModelSpec
    from recal.policies.policy import Policy


AXES_ARE_INPUTS = 18


@dataclass(frozen=True)
class ImageMoments:
    """Moments of the values of each channel, image by image.

    Attributes:
        count: Number of values in each channel of one image, H x W.
        means: Mean of each channel of each image, float64 (N, C).
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
        """Biased variance over all values of all images, float64 (C,)."""
        between = np.square(self.means - self.mean).mean(axis=0)
        variance: NDArray[np.float64] = self.m2.mean(axis=0) / self.count + between
        return variance

    def error(self) -> LayerError:
        """Return how far mean and variance may be off, with images as independent draws."""
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
    # a row's product with itself is left out, because only pairs of images are independent
    own = np.square(np.square(parts).sum(axis=1)).sum()
    of_square = (np.square(parts.T @ parts).sum() - own) / (n * (n - 1))
    least = max(trace**2 / channels, np.finfo(float).tiny)
    return float(np.clip(trace**2 / max(of_square, least), 1.0, channels))


def merge(found: Sequence[ImageMoments]) -> ImageMoments:
    """Return the moments of all images together."""
    means, m2 = (
        np.concatenate(column) for column in zip(*((f.means, f.m2) for f in found), strict=True)
    )
    return ImageMoments(found[0].count, means, m2)


def moments_session(
    model: onnx.ModelProto, layers: Sequence[str], where: str
) -> Callable[[NDArray[Any]], dict[str, ImageMoments]]:
    """Return a function from a batch to the moments of each layer's input.

    If the file has a fixed batch size, a smaller batch is filled with copies of its last image. The
    moments of these copies are left out.
    """
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    graph = cut.graph
    versions = [e.version for e in cut.opset_import if e.domain in ("", "ai.onnx")]
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
        _add_moments(graph, value, f"recal_{number}", max(versions, default=1))
    session = open_session(cut.SerializeToString(), where)
    given = session.get_inputs()[0]
    fixed = given.shape[0] if isinstance(given.shape[0], int) else 0

    def run(batch: NDArray[Any]) -> dict[str, ImageMoments]:
        count = len(batch)
        outputs = run_session(session, {given.name: filled(batch, fixed)})
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
    """Add outputs: the mean and the squared deviations per image and channel, and the shape.

    Deviations are from the image's own mean, so that wrong stored statistics cost no digits.
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
    min_images: int = MIN_IMAGES,
    skip_broken: bool = False,
    progress: Progress = silent,
) -> Variant:
    """Estimate the statistics that the network in an ONNX file itself sees, layer by layer.

    The definition, the images and the draws are those of the estimator `consistent`. Each pass
    takes the moments of the layers whose inputs are final, so there are as many passes as BatchNorm
    layers in sequence. Further outputs of the graph give the mean and the sum of squares of every
    image, which are merged in float64.

    Args:
        model: A model whose BatchNormalization nodes are unfolded, such as a patchable file's.
        source: The images; labels are not needed.
        spec: Preprocessing.
        policy: The policy that is applied to the images.
        samples: Largest number of images, or None for all.
        batch_size: Images per run, unless the file is fixed to a number. It does not change the
            result.
        seed: Seed of the choice of images and of the policy's draws.
        where: Name of the model, for messages.
        min_images: Smallest number of images that is accepted.
        skip_broken: Whether to leave out images that cannot be decoded; otherwise they are an
            error.
        progress: Called with the numbers of image passes done and in total, or with the numbers of
            images tried and in total during the search for broken ones.

    Returns:
        The variant with the file's affine and the new statistics.

    Raises:
        InputError: The file is not patchable, the images do not fit, or a value is not finite.
    """
    record = require_patchable(model, where)
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    indices, skipped = usable_batches(
        source, samples, fixed or batch_size, seed,
        min_images=min_images, skip_broken=skip_broken, progress=progress,
    )  # fmt: skip
    drawn = np.concatenate(indices)
    images = PreparedImages(source, policy, seed, spec.size)
    batches = _Batches(images, indices, spec, model)
    levels = _levels(model.graph)
    total, done = len(levels) * len(drawn), 0
    current, errors = model, dict[str, LayerError]()
    for layers in levels:
        parts: dict[str, list[ImageMoments]] = {layer: [] for layer in layers}
        run = moments_session(current, layers, where)
        with counting_broken(source, drawn, progress):
            for batch in batches:
                for layer, moments in run(batch).items():
                    parts[layer].append(moments)
                done += len(batch)
                progress(done, total)
        merged = {layer: merge(found) for layer, found in parts.items()}
        errors |= {layer: moments.error() for layer, moments in merged.items()}
        current = with_arrays(current, _statistics(current.graph, merged, where))
    names = layer_tensors(current.graph)
    arrays = {tensor.name: tensor for tensor in current.graph.initializer}
    return Variant(
        tensors={key: numpy_helper.to_array(arrays[name]) for key, name in names.items()},
        weights_sha256=record.weights_sha256 if record else weights_identity(model),
        spec=spec,
        affine=record.variants[0].affine if record else "main",
        statistics=EstimatedStatistics(
            policy=policy.name,
            policy_sha256=policy.sha256,
            policy_text=policy.text,
            data_sha256=source.fingerprint(drawn.tolist()),
            images=len(drawn),
            skipped=tuple(skipped),
            batch_size=batch_size,
            estimator="consistent",
            passes=len(levels),
            seed=seed,
            errors=errors if len(drawn) > 1 else {},
        ),
        versions={"recal": __version__, "onnxruntime": onnxruntime.__version__},
    )


class _Batches:
    """Batches in the form that a network takes, kept after the first pass if memory allows."""

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
        self._keeps = may_keep(sum(map(len, indices)) * spec.size**2 * 3)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for number, index in enumerate(self._indices):
            if number < len(self._kept):
                pixels = self._kept[number]
            else:
                pixels = self._images.batch(index)
                if self._keeps:
                    self._kept.append(pixels)
            if self._takes_pixels:
                yield pixels
            else:
                yield normalise_array(pixels, self._spec.mean, self._spec.std)


def _levels(graph: onnx.GraphProto) -> list[list[str]]:
    """Group the layers by the number of BatchNorm layers on the longest path to them."""
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


def _statistics(
    graph: onnx.GraphProto, found: dict[str, ImageMoments], where: str
) -> dict[str, NDArray[np.float32]]:
    nodes = batch_norm_nodes(graph)
    arrays = {}
    for layer, moments in found.items():
        if not (np.isfinite(moments.mean).all() and np.isfinite(moments.variance).all()):
            raise InputError(
                f"{where}: layer {layer}: expected finite values, got NaN or infinity. Look for "
                "them in the file and in the images."
            )
        arrays[nodes[layer].input[3]] = moments.mean.astype(np.float32)
        arrays[nodes[layer].input[4]] = moments.variance.astype(np.float32)
    return arrays
