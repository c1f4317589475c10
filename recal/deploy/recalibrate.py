"""Re-estimating BatchNorm statistics inside an ONNX file, by ONNX Runtime and NumPy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

from recal import __version__
from recal.bn.precision import LayerError
from recal.bn.variant_file import FORMAT, VariantFile, estimated_statistics
from recal.data.broken import counting_broken
from recal.data.prepared import PreparedImages
from recal.data.usable import MIN_IMAGES, usable_batches
from recal.deploy.editing import batch_norm_nodes, layer_tensors, with_arrays
from recal.deploy.image_moments import ImageMoments, merge, moments_session
from recal.deploy.patch import require_patchable, weights_identity
from recal.deploy.runtime import normalise_array
from recal.errors import InputError
from recal.machine import may_keep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from recal.checkpoint.spec import ModelSpec
    from recal.data.policies import Policy
    from recal.data.sources import ImageSource


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
        batch_size: Images a run, where the file is not fixed to a number; no matter to the result.
        seed: Of the choice of images and of the policy's draws.
        where: The model's name in messages.
        min_images: Fewer are refused.
        skip_broken: Whether images that cannot be decoded are left out; else they are an error.
        progress: Called with image passes done and in total, or with images tried and in total
            while broken ones are looked for.

    Returns:
        The variant: the file's affine, the new statistics.

    Raises:
        InputError: The file is not patchable; images do not fit; a value is not finite.
    """
    record = require_patchable(model, where)
    weights_sha256 = weights_identity(model)
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
        run = moments_session(current, layers)
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
    return VariantFile(
        tensors={key: numpy_helper.to_array(arrays[name]) for key, name in names.items()},
        record={
            "format": FORMAT,
            "weights_sha256": weights_sha256,
            "model": spec.to_json(),
            "affine": record.get("affine", "main"),
            "statistics": estimated_statistics(
                policy,
                errors,
                data_sha256=source.fingerprint(drawn.tolist()),
                images=len(drawn),
                skipped=list(skipped),
                batch_size=batch_size,
                estimator="consistent",
                passes=len(levels),
                seed=seed,
                layers_without_data=[],
            ),
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
