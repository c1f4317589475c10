"""How much memory an ONNX graph asks for, from its shapes alone: before anything is run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx
import onnx.inliner

from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

# tensors of more values are no shapes, sizes or paddings: their type is enough to infer shapes
SHORT = 64


def check_sizes(model: onnx.ModelProto, where: str, largest: int) -> None:
    """Refuse a graph that unfolds to far more than its file holds.

    A node of a few bytes can ask for a tensor of any size (ConstantOfShape, Expand, Tile, Resize,
    ...), which the system may grant until it has to kill the process. Shapes that only running the
    graph would tell count as one value, and loops as one turn.

    Args:
        model: The model; stays as it is.
        where: For messages.
        largest: Bytes that a tensor may take for each image of a batch, and that all tensors may
            take together that do not depend on the images.

    Raises:
        InputError: It would need more.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    skeleton = _without_weights(model)
    try:
        graph = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{where}: expected an ONNX network, got {reason}.") from error
    weights = {tensor.name for tensor in model.graph.initializer}
    names = {value.name for value in model.graph.input} - weights
    given = [value for value in graph.input if value.name in names]
    images = max([1, *(_dims(value)[0] for value in given if _dims(value))])
    for value in given:
        _check(value, _bytes(value), largest, where)
    _check_graph(graph, names, largest, images, where)


def _check_graph(
    graph: onnx.GraphProto, varying: Iterable[str], largest: int, images: int, where: str
) -> None:
    sizes = {value.name: value for value in (*graph.value_info, *graph.output)}
    varying, constant = set(varying), 0
    for node in graph.node:
        inner = [a.g for a in node.attribute if a.HasField("g")]
        inner += [g for a in node.attribute for g in a.graphs]
        found = [sizes[name] for name in node.output if name in sizes]
        # what is inside a node may use any value of the graph around it
        if inner or varying.intersection(node.input):
            varying.update(node.output)
            for value in found:
                _check(value, _bytes(value), largest * images, where)
        else:
            for value in found:
                constant += _bytes(value)
                _check(value, constant, largest, where)
        for subgraph in inner:
            of_turns = [value.name for value in subgraph.input]
            _check_graph(subgraph, varying.union(of_turns), largest, images, where)


def _check(value: onnx.ValueInfoProto, size: int, largest: int, where: str) -> None:
    if size > largest:
        raise InputError(
            f"{where}: tensor '{value.name}': expected at most {largest / (1 << 30):,.0f} GiB, got "
            f"a graph that asks for {size / (1 << 30):,.0f} GiB. It would fill this machine's "
            "memory; it is refused."
        )


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with long tensors as inputs, without the shapes that it claims."""
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    source, graph = model.graph, copy.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    for value in source.output:
        # its type alone: a shape that is claimed would stand in the way of the real one
        kind = value.type.tensor_type.elem_type
        graph.output.append(onnx.helper.make_tensor_value_info(value.name, kind, None))
    known = {value.name for value in source.input}
    for tensor in source.initializer:
        if math.prod(tensor.dims) <= SHORT:
            graph.initializer.append(tensor)
        elif tensor.name not in known:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return copy


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    return [max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim]


def _bytes(value: onnx.ValueInfoProto) -> int:
    kind = value.type.tensor_type.elem_type
    try:
        width = onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    except KeyError:
        width = 1
    return math.prod(_dims(value)) * width
