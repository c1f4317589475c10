"""Changes to an ONNX graph, made with onnx and NumPy alone."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from recal.data.normalise import Normalisation
from recal.errors import InputError

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

    Raises:
        InputError: Graph `where` and variant `what` have other tensors for a layer.
    """
    names = layer_tensors(graph)
    layers = {key.rpartition(".")[0] for key in names}
    odd = sorted(names.keys() ^ {key for key in tensors if key.rpartition(".")[0] in layers})
    if odd:
        side = what if odd[0] in names else where
        raise InputError(f"{side}: expected the tensor '{odd[0]}', which the other has, got none.")
    return {name: tensors[key] for key, name in names.items()}


def refill(field: Any, items: Iterable[Any]) -> None:
    """Replace the content of a repeated field, such as a graph's nodes."""
    kept = list(items)
    del field[:]
    field.extend(kept)


def with_arrays(
    model: onnx.ModelProto, arrays: Mapping[str, NDArray[np.float32]]
) -> onnx.ModelProto:
    """Return a copy of a model with these initialisers replaced by name.

    Raises:
        InputError: The model has no initialiser of a name, or one of another shape.
    """
    changed = copy.deepcopy(model)
    initialisers = {tensor.name: tensor for tensor in changed.graph.initializer}
    for name, array in arrays.items():
        target = initialisers.get(name)
        if target is None or tuple(target.dims) != array.shape:
            raise InputError(f"ONNX graph: expected an initialiser '{name}' of {array.shape}.")
        target.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
    return changed


def accept_uint8(model: onnx.ModelProto, normalisation: Normalisation) -> None:
    """Make the input uint8 (N, H, W, C) pixels and put the normalisation into the graph."""
    graph = model.graph
    batch, channels, height, width = _shape(graph.input[0])
    # (x - 255 mean) / (255 std): two passes over the pixels instead of three
    mean, std = normalisation.numbers
    shift, scale = 255.0 * mean, 1 / (255.0 * std)
    graph.initializer.extend(
        numpy_helper.from_array(values.astype(np.float32).reshape(1, -1, 1, 1), name)
        for name, values in (("pixel_shift", shift), ("pixel_scale", scale))
    )
    _rename_value(graph, "input", "normalised")
    front = [
        helper.make_node("Transpose", ["input"], ["planes"], "to_planes", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["levels"], "to_float", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["levels", "pixel_shift"], ["centred"], "minus_mean"),
        helper.make_node("Mul", ["centred", "pixel_scale"], ["normalised"], "over_std"),
    ]
    if normalisation.step < 0:
        order = numpy_helper.from_array(np.array([2, 1, 0], np.int64), "channel_order")
        graph.initializer.append(order)
        front[0].input[0] = "bgr"
        front.insert(0, helper.make_node("Gather", ["input", order.name], ["bgr"], axis=3))
    refill(graph.node, [*front, *graph.node])
    shape = (batch, height, width, channels)
    pixels = helper.make_tensor_value_info("input", TensorProto.UINT8, shape)
    graph.input[0].CopyFrom(pixels)


def end_in_softmax(model: onnx.ModelProto) -> None:
    """Make the output `probabilities` instead of `logits`."""
    graph = model.graph
    graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1))
    graph.output[0].CopyFrom(
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, _shape(graph.output[0]))
    )


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with weights and arithmetic in float16; input and output stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    # the converter appends casts: put every node behind those that it reads from
    graph = converted.graph
    produced = {name for node in graph.node for name in node.output}
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = next((node for node in waiting if not produced.intersection(node.input)), None)
        if ready is None:
            raise InputError("ONNX graph: expected no cycle, got one.")
        ordered.append(ready)
        waiting.remove(ready)
        produced -= set(ready.output)
    refill(graph.node, ordered)
    return converted


def _rename_value(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_value(attribute.g, old, new)


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def switchable(
    model: onnx.ModelProto, variants: Sequence[Mapping[str, NDArray[np.float32]]]
) -> onnx.ModelProto:
    """Return a model with a further input `variant`, int64 (), that chooses between variants.

    Each variant is one branch of nested `If` nodes with its own BatchNorm tensors. All other
    weights are outside and shared. ONNX Runtime folds each branch when it loads the file.

    Args:
        model: An unfolded model, as `recal.export.trace.to_onnx` gives it.
        variants: The BatchNorm tensors of each of two variants or more, by name.

    Raises:
        InputError: A variant does not fit the model.
    """
    graph = model.graph
    branches = [
        _branch(graph, arrays_of_graph(graph, tensors, "network", f"variant {number}"), number)
        for number, tensors in enumerate(variants)
    ]
    own = set(layer_tensors(graph).values())
    shared = [tensor for tensor in graph.initializer if tensor.name not in own]
    # Gather fails for a number out of range, so that no variant runs by mistake
    shared.append(numpy_helper.from_array(np.arange(len(variants), dtype=np.int64), "variants"))
    chooser = helper.make_node("Gather", ["variants", "variant"], ["chosen"], "choose")
    nodes = [chooser, *_choose(branches, 0, shared)]
    nodes[-1].output[0] = graph.output[0].name
    inputs = [*graph.input, helper.make_tensor_value_info("variant", TensorProto.INT64, [])]
    result = copy.deepcopy(model)
    result.graph.CopyFrom(helper.make_graph(nodes, graph.name, inputs, [graph.output[0]], shared))
    return result


def _choose(
    branches: Sequence[onnx.GraphProto], number: int, shared: list[onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """Return nodes that run branch `number` if it is chosen, else one of the branches after it."""
    if number == len(branches) - 2:
        other = branches[-1]
    else:
        inner = _choose(branches, number + 1, shared)
        result = helper.make_tensor_value_info(f"result_{number + 1}", TensorProto.FLOAT, None)
        other = helper.make_graph(inner, f"after_{number}", [], [result])
    shared.append(numpy_helper.from_array(np.array(number, np.int64), f"number_{number}"))
    test = f"is_{number}"
    graphs = {"then_branch": branches[number], "else_branch": other}
    return [
        helper.make_node("Equal", ["chosen", f"number_{number}"], [test], test),
        helper.make_node("If", [test], [f"result_{number}"], f"variant_{number}", **graphs),
    ]


def _branch(
    graph: onnx.GraphProto, arrays: Mapping[str, NDArray[np.float32]], number: int
) -> onnx.GraphProto:
    """Return the graph's nodes as a branch, with its own names for all that is not shared."""
    suffix = f"_v{number}"
    produced = [name for node in graph.node for name in node.output]
    # short names, because every branch repeats all of them
    own = {name: f"{i}{suffix}" for i, name in enumerate(produced)}
    own |= {name: f"{name}{suffix}" for name in arrays}
    tensors = [numpy_helper.from_array(array, own[name]) for name, array in arrays.items()]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    nodes = []
    for node in graph.node:
        renamed = copy.deepcopy(node)
        renamed.name = ""
        renamed.input[:] = [own.get(name, name) for name in node.input]
        renamed.output[:] = [own[name] for name in node.output]
        nodes.append(renamed)
        unfolded = node.op_type == "Conv" and readers.get(node.output[0]) != ["BatchNormalization"]
        if unfolded and node.input[1] in shapes:
            # a factor of one in every branch, which ONNX Runtime multiplies into the weights:
            # these then belong to the branch, and can be laid out for its fast kernels
            value = own[node.output[0]]
            renamed.output[0] = f"{value}_plain"
            ones = np.ones((shapes[node.input[1]][0], 1, 1), np.float32)
            tensors.append(numpy_helper.from_array(ones, f"{value}_ones"))
            nodes.append(helper.make_node("Mul", [f"{value}_plain", f"{value}_ones"], [value]))
    output = graph.output[0]
    kind = output.type.tensor_type.elem_type
    result = helper.make_tensor_value_info(own[output.name], kind, None)
    return helper.make_graph(nodes, f"variant{suffix}", [], [result], tensors)
