"""Re-estimating BatchNorm statistics inside an ONNX file, with ONNX Runtime and NumPy alone."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from recal.data.images import MIN_IMAGES, counting_broken, image_hashes, usable_batches
from recal.data.normalise import normalise_array
from recal.errors import InputError
from recal.machine import may_keep
from recal.networks.spec import ModelSpec
from recal.onnx_file.editing import batch_norm_nodes, layer_tensors, refill, with_arrays
from recal.onnx_file.patch import require_patchable, weights_identity
from recal.onnx_file.session import filled, open_session, run_session
from recal.policies.prepared import PreparedImages
from recal.progress import Progress, silent
from recal.variant.statistics import EstimatedStatistics, LayerError
from recal.variant.variant import Variant
from recal.version import __version__


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

    def statistics(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean and the biased variance over all values of all images, each (C,)."""
        mean = self.means.mean(axis=0)
        between = np.square(self.means - mean).mean(axis=0)
        return mean, self.m2.mean(axis=0) / self.count + between

    def error(self) -> LayerError:
        """Return how far mean and variance may be off; two images or more are independent draws.

        The formulas are those of `recal.calibration.moments`, for images of one size.
        """
        mean, variance = self.statistics()
        safe = np.where(variance > 0, variance, 1.0)
        deviations = self.means - mean
        squares = self.m2 / self.count + np.square(deviations)
        n, channels = deviations.shape
        errors, degrees = [], []
        for parts in (deviations / np.sqrt(safe), (squares - variance) / safe):
            sizes = np.square(parts).sum(axis=1)
            trace = sizes.sum() / (n - 1)
            # a row's product with itself is left out, because only pairs of images are independent
            products = np.square(parts.T @ parts).sum() - np.square(sizes).sum()
            least = max(trace**2 / channels, np.finfo(float).tiny)
            degrees.append(max(1.0, trace**2 / max(products / (n * (n - 1)), least)))
            errors.append(float(np.sqrt(trace / (n * channels))))
        return LayerError.with_bounds(errors, degrees)


def moments_session(
    model: onnx.ModelProto, layers: Sequence[str], where: str
) -> Callable[[NDArray[Any]], dict[str, ImageMoments]]:
    """Return a function from a batch to the moments of each layer's input.

    A batch smaller than the file's fixed one is filled with copies, whose moments are left out.
    """
    cut = copy.deepcopy(model)
    graph = cut.graph
    opset = max((e.version for e in cut.opset_import if e.domain in ("", "ai.onnx")), default=1)
    found = batch_norm_nodes(graph)
    wanted = [found[layer].input[0] for layer in layers]
    needed, kept = set(wanted), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    refill(graph.node, reversed(kept))
    refill(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])
    del graph.output[:]
    del graph.value_info[:]
    for name, value in (("recal_flat", [0, 0, -1]), ("recal_axis", [2])):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    for number, value in enumerate(wanted):
        _add_moments(graph, value, f"recal_{number}", opset)
    session = open_session(cut.SerializeToString(), where)
    given = session.get_inputs()[0]
    fixed = given.shape[0] if isinstance(given.shape[0], int) else 0

    def run(batch: NDArray[Any]) -> dict[str, ImageMoments]:
        outputs = run_session(session, {given.name: filled(batch, fixed)})
        triples = zip(outputs[0::3], outputs[1::3], outputs[2::3], strict=True)
        return {
            layer: ImageMoments(
                int(shape[2]), *(a[: len(batch), :, 0].astype(np.float64) for a in (means, m2))
            )
            for layer, (means, m2, shape) in zip(layers, triples, strict=True)
        }

    return run


def _add_moments(graph: onnx.GraphProto, value: str, stem: str, opset: int) -> None:
    """Add outputs: the mean and the squared deviations per image and channel, and the shape.

    Deviations are from the image's own mean, so that wrong stored statistics cost no digits.
    """
    flat, mean, deviation, square, m2, shape = (f"{stem}_{number}" for number in range(6))
    # ReduceSum has taken its axes as an input since opset 13, ReduceMean since 18
    late = opset >= 18
    inputs = [flat, "recal_axis"] if late else [flat]
    axes: dict[str, Any] = {} if late else {"axes": [2]}
    graph.node.extend(
        [
            helper.make_node("Reshape", [value, "recal_flat"], [flat]),
            helper.make_node("ReduceMean", inputs, [mean], keepdims=1, **axes),
            helper.make_node("Sub", [flat, mean], [deviation]),
            helper.make_node("Mul", [deviation, deviation], [square]),
            helper.make_node("ReduceSum", [square, "recal_axis"], [m2], keepdims=1),
            helper.make_node("Shape", [flat], [shape]),
        ]
    )
    kinds = {mean: TensorProto.FLOAT, m2: TensorProto.FLOAT, shape: TensorProto.INT64}
    graph.output.extend(helper.make_tensor_value_info(n, k, None) for n, k in kinds.items())


def recalibrate(
    model: onnx.ModelProto,
    images: PreparedImages,
    spec: ModelSpec,
    *,
    samples: int | None,
    batch_size: int,
    where: str,
    min_images: int = MIN_IMAGES,
    skip_broken: bool = False,
    choose: Callable[[Sequence[str]], tuple[str, ...]] | None = None,
    progress: Progress = silent,
) -> Variant:
    """Estimate the statistics that the network in an ONNX file itself sees, layer by layer.

    The definition, the images and the draws are those of the estimator `consistent`. Each pass
    takes the moments of the layers whose inputs are final, so there are as many passes as BatchNorm
    layers in sequence. Further outputs of the graph give every image's moments.

    Args:
        model: A model whose BatchNormalization nodes are unfolded, such as a patchable file's.
        images: The images under their policy; their seed also chooses among them.
        spec: Preprocessing.
        samples: Largest number of images, or None for all.
        batch_size: Images per run, unless the file is fixed to a number; any gives the same result.
        where: Name of the model, for messages.
        min_images: Smallest number of images that is accepted.
        skip_broken: Whether to leave out images that cannot be decoded, instead of an error.
        choose: Function that returns the layers to estimate, of all in the order of the graph; None
            for all.
        progress: Called with the numbers of image passes done and in total, or with the numbers of
            images tried and in total during the search for broken ones.

    Returns:
        The variant with the file's affine and the new statistics.

    Raises:
        InputError: The file is not patchable, the images do not fit, or a value is not finite.
    """
    record = require_patchable(model, where)
    source, policy = images.source, images.policy
    taken = model.graph.input[0].type.tensor_type
    fixed = taken.shape.dim[0].dim_value
    indices, skipped = usable_batches(
        source, samples, fixed or batch_size, images.seed,
        min_images=min_images, skip_broken=skip_broken, progress=progress,
    )  # fmt: skip
    drawn = np.concatenate(indices)
    kept: dict[int, NDArray[np.uint8]] = {}
    keeps = may_keep(len(drawn) * spec.size**2 * spec.channels)
    chosen = () if choose is None else choose(list(batch_norm_nodes(model.graph)))
    levels = _levels(model.graph, chosen)
    total, done = len(levels) * len(drawn), 0
    current, errors = model, dict[str, LayerError]()
    for layers in levels:
        parts: dict[str, list[ImageMoments]] = {layer: [] for layer in layers}
        run = moments_session(current, layers, where)
        with counting_broken(source, drawn, progress):
            for number, index in enumerate(indices):
                batch: NDArray[Any] = kept[number] if number in kept else images.batch(index)
                if keeps:
                    kept[number] = batch
                if taken.elem_type != TensorProto.UINT8:
                    batch = normalise_array(batch, spec.normalisation)
                for layer, moments in run(batch).items():
                    parts[layer].append(moments)
                done += len(batch)
                progress(done, total)
        nodes, arrays = batch_norm_nodes(current.graph), dict[str, NDArray[np.float32]]()
        for layer, found in parts.items():
            moments = ImageMoments(
                found[0].count,
                np.concatenate([f.means for f in found]),
                np.concatenate([f.m2 for f in found]),
            )
            for name, statistic in zip(nodes[layer].input[3:5], moments.statistics(), strict=True):
                if not np.isfinite(statistic).all():
                    raise InputError(
                        f"{where}: layer {layer}: expected finite values, got NaN or infinity. "
                        "Look for them in the file and in the images."
                    )
                arrays[name] = statistic.astype(np.float32)
            if len(drawn) > 1:
                errors[layer] = moments.error()
        current = with_arrays(current, arrays)
    tensors = {tensor.name: tensor for tensor in current.graph.initializer}
    names = layer_tensors(current.graph)
    return Variant(
        tensors={key: numpy_helper.to_array(tensors[name]) for key, name in names.items()},
        weights_sha256=record.weights_sha256 if record else weights_identity(model),
        spec=spec.prepared_by(policy),
        affine=record.variants[0].affine if record else "main",
        statistics=EstimatedStatistics(
            policy=policy.name,
            policy_sha256=policy.sha256,
            policy_text=policy.text,
            data_sha256=hashlib.sha256(image_hashes(source, drawn).tobytes()).hexdigest(),
            whole=images.whole,
            images=len(drawn),
            skipped=tuple(skipped),
            batch_size=batch_size,
            estimator="consistent",
            passes=len(levels),
            seed=images.seed,
            errors=errors,
            layers=chosen,
        ),
        versions={"recal": __version__, "onnxruntime": onnxruntime.__version__},
    )


def _levels(graph: onnx.GraphProto, chosen: Sequence[str]) -> list[list[str]]:
    """Group layers, all or those chosen, by the number of these on the longest path to them."""
    layers = {
        node.output[0]: layer
        for layer, node in batch_norm_nodes(graph).items()
        if not chosen or layer in chosen
    }
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
