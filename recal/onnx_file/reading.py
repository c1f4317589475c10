"""Reading ONNX files that may be hostile, with onnx alone."""

import copy
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from recal.errors import InputError, reason
from recal.files import require_file

# protobuf allows at most 2 GiB; a larger file is not read at all
LARGEST = (1 << 31) - 1
# a tensor of more values is no shape, size or padding: its type is enough to infer shapes
SHORT = 64


def _check_sizes(model: onnx.ModelProto, where: str) -> None:
    """Refuse a graph that unfolds to far more than its file holds.

    A node of a few bytes can ask for a tensor of any size (ConstantOfShape, Expand, Tile, Resize,
    ...), which would fill the machine's memory. A tensor may take 2 GiB for each image of a batch,
    and all tensors that do not depend on the images may take as much together. A shape that is
    known only when the graph runs counts as one value, and a loop as one turn.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    skeleton = _without_weights(model)
    try:
        graph = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise InputError(f"{where}: expected an ONNX network, got {reason(error)}.") from error
    weights = {tensor.name for tensor in model.graph.initializer}
    names = {value.name for value in model.graph.input} - weights
    given = [value for value in graph.input if value.name in names]
    images = max([1, *(_dims(value)[0] for value in given if _dims(value))])
    for value in given:
        _check(value, _bytes(value), LARGEST, where)
    _check_graph(graph, names, images, where)


def _check_graph(graph: onnx.GraphProto, varying: Iterable[str], images: int, where: str) -> None:
    sizes = {value.name: value for value in (*graph.value_info, *graph.output)}
    varying, constant = set(varying), 0
    for node in graph.node:
        inner = [a.g for a in node.attribute if a.HasField("g")]
        inner += [g for a in node.attribute for g in a.graphs]
        # a graph inside a node may use any value of the graph around it
        varies = bool(inner) or not varying.isdisjoint(node.input)
        if varies:
            varying.update(node.output)
        for value in (sizes[name] for name in node.output if name in sizes):
            if varies:
                _check(value, _bytes(value), LARGEST * images, where)
            else:
                constant += _bytes(value)
                _check(value, constant, LARGEST, where)
        for subgraph in inner:
            of_turns = [value.name for value in subgraph.input]
            _check_graph(subgraph, varying.union(of_turns), images, where)


def _check(value: onnx.ValueInfoProto, size: int, largest: int, where: str) -> None:
    if size > largest:
        raise InputError(
            f"{where}: tensor '{value.name}': expected at most {largest / (1 << 30):,.0f} GiB, got "
            f"a graph that asks for {size / (1 << 30):,.0f} GiB. It would fill this machine's "
            "memory; it is refused."
        )


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with long tensors as inputs, without the shapes that it claims."""
    source = model.graph
    graph = onnx.GraphProto(name=source.name, node=source.node, input=source.input)
    for value in source.output:
        # the type alone, because a claimed shape would override the real one
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
    versions = model.opset_import
    return onnx.ModelProto(ir_version=model.ir_version, opset_import=versions, graph=graph)


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    return [max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim]


def _bytes(value: onnx.ValueInfoProto) -> int:
    kind = value.type.tensor_type.elem_type
    try:
        width = onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    except KeyError:
        width = 1
    return math.prod(_dims(value)) * width


# bytes of one value of each type whose raw data is checked
WIDTHS: dict[int, int] = {
    onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)): np.dtype(kind).itemsize
    for kind in ("bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64")
}


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file and its external data in files beside it.

    Raises:
        InputError: It is missing, larger than 2 GiB, truncated, no ONNX model, or asks for data
            outside its folder or for more than 2 GiB of memory in one tensor.
    """
    require_file(path, "an ONNX file")
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path}: expected a model of at most 2 GiB, got a larger file.")
        model = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, OSError, MemoryError) as error:
        raise InputError(
            f"{path}: expected an ONNX network, got {reason(error)}. It may be truncated."
        ) from error
    if not _texts_are_whole(model):
        raise InputError(
            f"{path}: expected an ONNX network, got names or metadata that are no UTF-8. The file "
            "is damaged."
        )
    if not model.graph.node or not model.opset_import:
        raise InputError(f"{path}: expected an ONNX network, got no nodes.")
    outside = 0
    for tensor in all_tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            outside += _external_bytes(path, tensor)
        elif tensor.HasField("raw_data") and tensor.data_type in WIDTHS:
            expected = math.prod(tensor.dims) * WIDTHS[tensor.data_type]
            if len(tensor.raw_data) != expected:
                raise InputError(
                    f"{path}: tensor '{tensor.name}': expected {expected:,} bytes, got "
                    f"{len(tensor.raw_data):,}. The file is damaged."
                )
    if outside > LARGEST:
        raise InputError(f"{path}: expected at most 2 GiB, got external data of {outside:,} bytes.")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path}: its external data cannot be read ({reason(error)}).") from error
    _check_sizes(model, str(path))
    return model


def _texts_are_whole(message: Message) -> bool:
    """Return whether every text of a message is UTF-8, which protobuf's parser does not check."""
    for field, value in message.ListFields():
        items = [value] if isinstance(value, (str, bytes, Message)) else value
        if field.type == field.TYPE_MESSAGE and not all(map(_texts_are_whole, items)):
            return False
        if field.type == field.TYPE_STRING and not all(isinstance(item, str) for item in items):
            return False
    return True


def check_model(model: onnx.ModelProto, where: str) -> None:
    """Run ONNX's own checker and strict shape inference.

    Raises:
        InputError: They find fault.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(f"{where}: expected a valid ONNX model, got {reason(error)}.") from error


def graph_bytes(model: onnx.ModelProto) -> bytes:
    """Return the serialised model without its metadata."""
    bare = copy.deepcopy(model)
    del bare.metadata_props[:]
    return bytes(bare.SerializeToString(deterministic=True))


def all_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the initialisers and constants of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from all_tensors(inner)


def _external_bytes(path: Path, tensor: onnx.TensorProto) -> int:
    """Return how many bytes would be read for a tensor that is kept in another file.

    Raises:
        InputError: The file lies outside the model's folder, or its size is not the tensor's.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = entries.get("location", ""), path.parent.resolve()
    file = (folder / location).resolve()
    if not location or not file.is_relative_to(folder):
        raise InputError(
            f"{path}: tensor '{tensor.name}': expected data inside {path.parent}, got a reference "
            f"to '{location}'. Such a model could read any of your files; it is refused."
        )
    try:
        start = int(entries.get("offset", 0))
        # without a length all the rest of the file is read, however large
        count = int(entries.get("length", file.stat().st_size - start))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: its external data cannot be read ({reason(error)}).") from error
    expected = math.prod(tensor.dims) * WIDTHS.get(tensor.data_type, 0)
    if count != expected or start < 0:
        raise InputError(
            f"{path}: tensor '{tensor.name}': expected {expected:,} bytes, got {count:,} in "
            f"'{location}'. The files do not belong together, or are damaged."
        )
    return count
