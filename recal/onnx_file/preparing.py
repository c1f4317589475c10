"""Preparing images inside an ONNX graph: resizing, padding and cropping, as Pillow does it.

Images are prepared one by one: a square of the network's size, or of the size at which the
family's prepared images are published, is used whole, as `Preparation.fitted` does with a set of
such images.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from recal.errors import UsageError
from recal.networks.spec import ModelSpec
from recal.onnx_file.editing import refill
from recal.onnx_file.record import GraphOptions
from recal.policies.ops import Prepare
from recal.policies.preparation import Preparation

FILTERS: dict[str, dict[str, Any]] = {
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5},
    "bilinear": {"mode": "linear"},
}
OPSET = 18  # the first whose Resize filters as Pillow does (`antialias`)
PREPARED = "prepared"  # value of the graph: uint8 (N, C, size, size), before normalisation


def resizes(options: GraphOptions, spec: ModelSpec) -> bool:
    """Return whether a file prepares images of any size; else it takes the network's size alone."""
    return options.preprocess and spec.crop_mode != "none"


def check_preprocess(options: GraphOptions, spec: ModelSpec) -> None:
    """Refuse a preparation that no graph of standard operators repeats exactly.

    Raises:
        UsageError: The filter, the policy, the operator set or another option does not allow it.
    """
    if not options.preprocess:
        return
    if options.any_size:
        raise UsageError(
            "--preprocess does not go with --any-size: the file takes images of any size and gives "
            "the network its own. Leave one of the two out."
        )
    if spec.clean_policy.ops != (Prepare(),) or spec.clean_policy.parts:
        raise UsageError(
            "--preprocess: expected images prepared by size, crop share, interpolation and crop "
            "mode, got a policy of your own. Export with --uint8, and prepare images before."
        )
    if spec.crop_mode == "none":
        return
    if options.opset < OPSET:
        raise UsageError(
            f"--preprocess: expected --opset {OPSET} or later, whose Resize filters as Pillow "
            f"does, got {options.opset}."
        )
    if spec.interpolation not in FILTERS:
        raise UsageError(
            f"--preprocess: expected interpolation {' or '.join(FILTERS)}, which ONNX has with a "
            f"filter as wide as Pillow's, got {spec.interpolation}. Export with --uint8, and "
            "prepare images before."
        )


class _Nodes:
    """Nodes and constants that are added to a graph, in order, under names of their own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output, and return the output's name."""
        name = f"prepare_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, values: ArrayLike, kind: type[np.generic] = np.int64) -> str:
        """Add a constant tensor, and return its name."""
        name = f"prepare_constant_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name


def prepare_in_graph(model: onnx.ModelProto, network: Preparation, step: int = 1) -> None:
    """Make a graph that takes pixels of the network's size take those of any size.

    Args:
        model: A model after `recal.onnx_file.editing.accept_uint8`. Its input becomes uint8
            (N, height, width, C): images of one size, which are resized and cropped.
        network: The preparation, with a filter in `FILTERS` and a crop mode other than `none`.
        step: -1 where the graph reverses the channels first, else 1.
    """
    graph, made = model.graph, _Nodes()
    place = next(n for n, node in enumerate(graph.node, 1) if node.op_type == "Transpose")
    before, others = graph.node[:place], graph.node[place:]
    planes = before[-1].output[0]
    sizes = _resized_sides(made, planes, network)
    # all four sizes, because ONNX Runtime 1.32 cannot move a transposition past `axes`
    shape = made.add("Concat", made.add("Shape", planes, start=0, end=2), sizes, axis=0)
    resized = made.add(
        "Resize", planes, "", "", shape, antialias=1, exclude_outside=1,
        coordinate_transformation_mode="half_pixel", **FILTERS[network.interpolation],
    )  # fmt: skip
    middle = _middle(made, resized, sizes, network, step)
    # the shape stays known to the rest of the graph
    fixed = made.constant([0, network.channels, network.size, network.size])
    made.nodes.append(helper.make_node("Reshape", [middle, fixed], [PREPARED], PREPARED))
    for node in others:
        node.input[:] = [PREPARED if name == planes else name for name in node.input]
    refill(graph.node, [*before, *made.nodes, *others])
    graph.initializer.extend(made.tensors)
    for place, name in ((1, "height"), (2, "width")):
        graph.input[0].type.tensor_type.shape.dim[place].dim_param = name


def _resized_sides(made: _Nodes, planes: str, network: Preparation) -> str:
    """Return height and width after resizing, int64 (2,), as `recal.policies.ops.Prepare` has."""
    sides = made.add("Shape", planes, start=2, end=4)
    short, long = (made.add(f"Reduce{which}", sides, keepdims=1) for which in ("Min", "Max"))
    prepared = [
        made.add("Equal", long, made.constant([side]))
        for side in sorted({network.size, network.published or network.size})
    ]
    known = made.add("Or", *prepared) if len(prepared) > 1 else prepared[0]
    whole = made.add("And", known, made.add("Equal", short, long))
    resized = math.floor(network.size / network.crop_share)
    both = [made.constant([length] * 2) for length in (network.size, resized)]
    side = made.add("Where", whole, *both)
    if network.crop_mode == "squash":
        return side
    if network.crop_mode == "center":
        return made.add("Div", made.add("Mul", side, sides), short)
    # in float64, and rounded half to even, as Python does
    exact = [made.add("Cast", name, to=TensorProto.DOUBLE) for name in (sides, long, side)]
    ratio = made.add("Div", *exact[1:])
    rounded = made.add("Round", made.add("Div", exact[0], ratio))
    lengths = made.add("Cast", rounded, to=TensorProto.INT64)
    return made.add("Max", lengths, made.constant([1]))


def _middle(made: _Nodes, resized: str, sizes: str, network: Preparation, step: int) -> str:
    """Return the middle square of resized planes, padded if they are smaller than it."""
    size, axes, nothing = (made.constant(v) for v in ([network.size] * 2, [2, 3], [0]))
    surplus = made.add("Cast", made.add("Sub", sizes, size), to=TensorProto.DOUBLE)
    half = made.add("Round", made.add("Mul", surplus, made.constant([0.5], np.float64)))
    start = made.add("Max", made.add("Cast", half, to=TensorProto.INT64), nothing)
    end = made.add("Add", start, size)
    cropped = made.add("Slice", resized, start, end, axes)
    if network.crop_mode != "border":
        return cropped
    missing = made.add("Max", made.add("Sub", size, sizes), nothing)
    before = made.add("Div", missing, made.constant([2]))
    pads = made.add("Concat", before, made.add("Sub", missing, before), axis=0)
    colour = network.fill[: network.channels] if network.channels <= 3 else network.fill[:1]
    fill = made.constant(np.reshape(colour[::step], (1, -1, 1, 1)), np.float32)
    # Pad has one value for all channels, which is zero after the subtraction
    levels = made.add("Sub", made.add("Cast", cropped, to=TensorProto.FLOAT), fill)
    padded = made.add("Pad", levels, pads, "", axes)
    return made.add("Cast", made.add("Add", padded, fill), to=TensorProto.UINT8)


def preparation_alone(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the part of a model that prepares images: `input` to uint8 (N, C, size, size)."""
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    end = next(number for number, n in enumerate(model.graph.node) if PREPARED in n.output)
    nodes = model.graph.node[: end + 1]
    part.graph.CopyFrom(
        helper.make_graph(
            nodes,
            "preparation",
            model.graph.input[:1],
            [helper.make_tensor_value_info(PREPARED, TensorProto.UINT8, None)],
            _used(model.graph.initializer, nodes),
        )
    )
    return part


def _used(
    tensors: Sequence[onnx.TensorProto], nodes: Sequence[onnx.NodeProto]
) -> list[onnx.TensorProto]:
    names = {name for node in nodes for name in node.input}
    return [tensor for tensor in tensors if tensor.name in names]
