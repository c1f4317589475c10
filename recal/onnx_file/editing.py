"""Changes to an ONNX graph, made with onnx and NumPy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


LEAVES = ("weight", "bias", "running_mean", "running_var")


def batch_norm_nodes(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the BatchNormalization nodes whose statistics are initialisers, by layer, in order.

    A layer is named after its mean's initialiser, without `.running_mean`.
    """
    known = {tensor.name for tensor in graph.initializer}
    return {
        node.input[3].removesuffix(".running_mean"): node
        for node in graph.node
        if node.op_type == "BatchNormalization" and {*node.input[3:5]} <= known
    }


def layer_tensors(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the names of BatchNorm's initialisers, by the tensor's name in a variant.

    Weight and bias that are no initialisers, as of layers without affine, are left out.
    """
    known = {tensor.name for tensor in graph.initializer}
    return {
        f"{layer}.{leaf}": name
        for layer, node in batch_norm_nodes(graph).items()
        for leaf, name in zip(LEAVES, node.input[1:5], strict=True)
        if name in known
    }


def arrays_of_graph(
    graph: onnx.GraphProto, tensors: Mapping[str, NDArray[np.float32]], where: str, what: str
) -> dict[str, NDArray[np.float32]]:
    """Return the arrays of a variant by the names of a graph's initialisers.

    Layers that the graph lacks are left out, because the network's forward pass never uses them.

    Args:
        graph: A graph with BatchNormalization nodes.
        tensors: The tensors of the variant.
        where: Name of the graph, for messages.
        what: Name of the variant, for messages.

    Raises:
        InputError: Graph and variant have other tensors for a layer.
    """
    names = layer_tensors(graph)
    layers = {key.rpartition(".")[0] for key in names}
    fitting = {key for key in tensors if key.rpartition(".")[0] in layers}
    odd = sorted(names.keys() ^ fitting)
    if odd:
        side = what if odd[0] in names else where
        raise InputError(f"{side}: expected the tensor '{odd[0]}', which the other has, got none.")
    return {name: tensors[key] for key, name in names.items()}


def with_arrays(
    model: onnx.ModelProto, arrays: Mapping[str, NDArray[np.float32]]
) -> onnx.ModelProto:
    """Return a copy of a model with these initialisers replaced by name.

    Raises:
        InputError: The model has no initialiser of a name, or one of another shape.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    initialisers = {tensor.name: tensor for tensor in copy.graph.initializer}
    for name, array in arrays.items():
        target = initialisers.get(name)
        if target is None or tuple(target.dims) != array.shape:
            raise InputError(f"ONNX graph: expected an initialiser '{name}' of {array.shape}.")
        target.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
    return copy


def accept_uint8(model: onnx.ModelProto, mean: Sequence[float], std: Sequence[float]) -> None:
    """Make the input uint8 (N, H, W, 3) pixels and put the normalisation into the graph."""
    graph = model.graph
    old = graph.input[0]
    batch, _, height, width = (_dimension(d) for d in old.type.tensor_type.shape.dim)
    shape = (1, 3, 1, 1)
    # (x - 255 mean) / (255 std): two passes over the pixels instead of three
    shift = (255.0 * np.asarray(mean, np.float64)).astype(np.float32).reshape(shape)
    scale = (1.0 / (255.0 * np.asarray(std, np.float64))).astype(np.float32).reshape(shape)
    graph.initializer.extend(
        [
            numpy_helper.from_array(shift, "pixel_shift"),
            numpy_helper.from_array(scale, "pixel_scale"),
        ]
    )
    _rename_value(graph, "input", "normalised")
    front = [
        helper.make_node("Transpose", ["input"], ["planes"], "to_planes", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["levels"], "to_float", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["levels", "pixel_shift"], ["centred"], "minus_mean"),
        helper.make_node("Mul", ["centred", "pixel_scale"], ["normalised"], "over_std"),
    ]
    nodes = [*front, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input[0].CopyFrom(
        helper.make_tensor_value_info("input", TensorProto.UINT8, (batch, height, width, 3))
    )


def end_in_softmax(model: onnx.ModelProto) -> None:
    """Make the output `probabilities` instead of `logits`."""
    graph = model.graph
    old = graph.output[0]
    shape = [_dimension(d) for d in old.type.tensor_type.shape.dim]
    graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1))
    graph.output[0].CopyFrom(
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape)
    )


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with weights and arithmetic in float16; input and output stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    _sort_nodes(converted.graph)
    return converted


def _sort_nodes(graph: onnx.GraphProto) -> None:
    """Put every node behind those that it reads from, and change the order no further."""
    produced = {name for node in graph.node for name in node.output}
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if not produced.intersection(node.input)]
        if not ready:
            raise InputError("ONNX graph: expected no cycle, got one.")
        ordered.append(ready[0])
        waiting.remove(ready[0])
        produced -= set(ready[0].output)
    del graph.node[:]
    graph.node.extend(ordered)


def _rename_value(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_value(attribute.g, old, new)


def _dimension(dimension: onnx.TensorShapeProto.Dimension) -> int | str:
    return dimension.dim_param or dimension.dim_value
