"""Hostile ONNX files end in one clear error."""

import copy
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from recal.errors import InputError
from recal.onnx_file.reading import read_model
from recal.onnx_file.session import OnnxNetwork


def small_model(**weight):
    """Return a model that flattens its input and multiplies it by `w`."""
    tensor = numpy_helper.from_array(np.ones((12, 2), np.float32), "w")
    for key, value in weight.items():
        setattr(tensor, key, value)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def with_external(location):
    model = small_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=str(location))
    return model


def test_data_inside_the_folder_are_read(tmp_path):
    (tmp_path / "w.bin").write_bytes(np.full((12, 2), 2, np.float32).tobytes())
    (tmp_path / "m.onnx").write_bytes(with_external("w.bin").SerializeToString())
    logits = OnnxNetwork(tmp_path / "m.onnx").logits(np.ones((1, 3, 2, 2), np.float32))
    assert logits.tolist() == [[24.0, 24.0]]


@pytest.mark.parametrize("how", ["absolute", "above", "link", "nested"])
def test_data_outside_the_folder_are_refused(tmp_path, how):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.ones((12, 2), np.float32).tobytes())
    folder = tmp_path / "models"
    folder.mkdir()
    location = {"absolute": secret, "link": "link.bin"}.get(how, "../secret.bin")
    (folder / "link.bin").symlink_to(secret)
    model = with_external(location)
    if how == "nested":  # in a constant, not an initialiser
        node = helper.make_node("Constant", [], ["w"])
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(
            model.graph.initializer[0]
        )
        del model.graph.initializer[:]
        model.graph.node.insert(0, node)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    for use in (read_model, OnnxNetwork):
        with pytest.raises(InputError, match=r"tensor 'w': expected data inside .*it is refused"):
            use(folder / "m.onnx")


def test_missing_external_data_are_an_input_error(tmp_path):
    (tmp_path / "m.onnx").write_bytes(with_external("none.bin").SerializeToString())
    with pytest.raises(InputError, match="external data cannot be read"):
        read_model(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("entries", "size", "dims", "message"),
    [
        ({}, 8 << 30, [12, 2], "expected 96 bytes, got 8,589,934,592 in 'w.bin'"),
        ({"length": 1 << 62}, 96, [12, 2], "expected 96 bytes, got 4,611,"),
        ({"length": 3 << 30}, 3 << 30, [3 << 28], "expected at most 2 GiB, got external data"),
        ({"offset": -5, "length": 96}, 96, [12, 2], "expected 96 bytes, got 96"),
        ({"offset": "x"}, 96, [12, 2], "external data cannot be read"),
        ({"offset": 50, "length": 96}, 96, [12, 2], "external data cannot be read"),
    ],
)
def test_external_data_of_another_size_are_refused_before_they_are_read(
    tmp_path, entries, size, dims, message
):
    with (tmp_path / "w.bin").open("wb") as file:
        os.truncate(file.fileno(), size)  # sparse: takes no room on the disk
    model = with_external("w.bin")
    model.graph.initializer[0].dims[:] = dims
    for key, value in entries.items():
        model.graph.initializer[0].external_data.add(key=key, value=str(value))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=message):
        read_model(tmp_path / "m.onnx")


def test_truncated_files_are_refused_wherever_they_end(tmp_path):
    content = small_model().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    read_model(path)
    for length in range(0, len(content) - 1, 7):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"m\.onnx"):
            OnnxNetwork(path)


def test_enormous_files_and_tensors_are_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "m.onnx"
    model = small_model()
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"tensor 'w': expected .* bytes, got 96"):
        read_model(path)
    with path.open("wb") as file:
        os.truncate(file.fileno(), 3 << 30)  # sparse: takes no room on the disk
    with pytest.raises(InputError, match="at most 2 GiB"):
        read_model(path)


SIDE = np.array([100_000, 100_000], np.int64)
BOMBS = {
    "ConstantOfShape": ([SIDE], {}),
    "Expand": ([np.ones(1, np.float32), SIDE], {}),
    "Range": ([np.float32(0), np.float32(1e10), np.float32(1)], {}),
    "MatMul": ([np.ones((100_000, 1), np.float32), np.ones((1, 100_000), np.float32)], {}),
    "Tile": (["input", np.array([1, 1, 10_000, 10_000])], {}),
    "Pad": (["input", np.array([0, 0, 0, 0, 0, 0, 50_000, 50_000])], {}),
    "Resize": (["input", "", np.array([1, 1, 1e4, 1e4], np.float32)], {}),
}


def asking(operator, inputs, **attributes):
    """Return a network that adds the sum of what an operator gives to its input."""
    names = [
        value if isinstance(value, str) else f"c{number}" for number, value in enumerate(inputs)
    ]
    nodes = [
        helper.make_node(operator, names, ["large"], **attributes),
        helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
        helper.make_node("Add", ["input", "sum"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in zip(names, inputs, strict=True)
        if not isinstance(value, str)
    ]
    shape = ["batch", 3, 8, 8]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    # what a file claims of its own shapes is not believed
    graph.value_info.append(helper.make_tensor_value_info("large", TensorProto.FLOAT, [1]))
    return model


@pytest.mark.parametrize("operator", BOMBS)
def test_few_bytes_that_unfold_to_gigabytes_are_refused_before_they_do(tmp_path, operator):
    path = tmp_path / "m.onnx"
    inputs, attributes = BOMBS[operator]
    path.write_bytes(asking(operator, inputs, **attributes).SerializeToString())
    with pytest.raises(InputError, match="'large': expected at most 2 GiB, got a graph that asks"):
        OnnxNetwork(path)


def test_constants_count_together_inside_branches_too(tmp_path):
    path = tmp_path / "m.onnx"
    model = asking("ConstantOfShape", [np.array([20_000, 20_000])])
    path.write_bytes(model.SerializeToString())
    read_model(path)
    again = copy.deepcopy(model.graph.node[0])
    again.output[0] = "more"
    model.graph.node.insert(0, again)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="expected at most 2 GiB"):
        read_model(path)

    branch = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["side"], ["inner"]),
            helper.make_node("ReduceSum", ["inner"], ["few"], keepdims=0),
        ],
        "branch", [], [helper.make_tensor_value_info("few", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(SIDE, "side")],
    )  # fmt: skip
    inside = asking("If", [np.array(True)], then_branch=branch, else_branch=branch)
    path.write_bytes(inside.SerializeToString())
    with pytest.raises(InputError, match="'inner': expected at most 2 GiB"):
        read_model(path)


def test_images_of_a_fixed_batch_are_not_taken_for_one(tmp_path):
    path = tmp_path / "m.onnx"
    inputs = ["input", np.array([1, 1, 1000, 1000])]
    model = asking("Tile", inputs)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    path.write_bytes(model.SerializeToString())
    read_model(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 30
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="'input': expected at most 2 GiB"):
        read_model(path)


def test_texts_that_are_none_are_damage(tmp_path):
    path = tmp_path / "m.onnx"
    model = small_model()
    onnx.helper.set_model_props(model, {"recal.variant": "aux0"})
    content = model.SerializeToString()
    for text in (b"logits", b"MatMul", b"batch", b"aux0", b"recal."):
        assert text in content
        path.write_bytes(content.replace(text, b"\xff" + text[1:]))
        with pytest.raises(InputError, match="names or metadata that are no UTF-8"):
            OnnxNetwork(path)


def test_other_files_are_named_as_what_they_are_not(tmp_path):
    for content in (b"", b"PK\x03\x04 zip", b"hello"):
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(InputError, match="expected an ONNX network"):
            read_model(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="got a folder"):
        read_model(tmp_path)


def test_opsets_and_operators_that_onnx_runtime_lacks_are_named(tmp_path):
    path = tmp_path / "m.onnx"
    model = small_model()
    model.opset_import[0].version = 99
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"m\.onnx: expected an ONNX network, got .*99"):
        OnnxNetwork(path)
    model = small_model()
    model.graph.node[0].op_type = "Nope"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"m\.onnx: expected an ONNX network, got .*Nope"):
        OnnxNetwork(path)
