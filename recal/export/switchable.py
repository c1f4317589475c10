"""A graph of several variants that share weights, with an input that chooses between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from recal.onnx_file.editing import arrays_of_graph, layer_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


def switchable(
    model: onnx.ModelProto, variants: Sequence[Mapping[str, NDArray[np.float32]]]
) -> onnx.ModelProto:
    """Return a model with a further input `variant`, int64 (), that chooses between variants.

    Each variant is one branch of nested `If` nodes with its own BatchNorm tensors. All other
    weights are outside and shared. ONNX Runtime folds each branch when it loads the file.

    Args:
        model: An unfolded model, as `to_onnx` gives it.
        variants: The BatchNorm tensors of each of at least two variants, by their names in a
            variant's file.

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
    output = graph.output[0].name
    whole = helper.make_graph(
        nodes,
        graph.name,
        [*graph.input, helper.make_tensor_value_info("variant", TensorProto.INT64, [])],
        [graph.output[0]],
        shared,
    )
    whole.node[-1].output[0] = output
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.CopyFrom(whole)
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
    return [
        helper.make_node("Equal", ["chosen", f"number_{number}"], [f"is_{number}"], f"is_{number}"),
        helper.make_node(
            "If",
            [f"is_{number}"],
            [f"result_{number}"],
            f"variant_{number}",
            then_branch=branches[number],
            else_branch=other,
        ),
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
    unfolded = _convolutions_without_batch_norm(graph)
    nodes = []
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = ""
        copy.input[:] = [own.get(name, name) for name in node.input]
        copy.output[:] = [own[name] for name in node.output]
        nodes.append(copy)
        if node.output[0] in unfolded and node.input[1] in shapes:
            # a factor of one in every branch, which ONNX Runtime multiplies into the weights:
            # these then belong to the branch, and can be laid out for its fast kernels
            value = own[node.output[0]]
            copy.output[0] = f"{value}_plain"
            ones = np.ones((shapes[node.input[1]][0], 1, 1), np.float32)
            tensors.append(numpy_helper.from_array(ones, f"{value}_ones"))
            nodes.append(helper.make_node("Mul", [f"{value}_plain", f"{value}_ones"], [value]))
    output = graph.output[0]
    result = helper.make_tensor_value_info(
        own[output.name], output.type.tensor_type.elem_type, None
    )
    return helper.make_graph(nodes, f"variant{suffix}", [], [result], tensors)


def _convolutions_without_batch_norm(graph: onnx.GraphProto) -> set[str]:
    """Return the outputs of convolutions that no BatchNormalization alone follows."""
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    return {
        node.output[0]
        for node in graph.node
        if node.op_type == "Conv" and readers.get(node.output[0]) != ["BatchNormalization"]
    }
