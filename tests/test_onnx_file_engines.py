"""Files are checked on other engines, which are named, and differences are placed."""

import onnx
import onnxruntime
import pytest
from msgspec.structs import replace

from recal.errors import InputError, UsageError, VerificationError
from recal.onnx_file import engines
from recal.onnx_file.engines import CPU, OPENVINO, engines_at_hand, verify_alone
from recal.onnx_file.reading import read_model
from recal.onnx_file.record import read_record, write_record

AZURE = "AzureExecutionProvider"


@pytest.fixture
def file(exported, tmp_path):
    """A function that writes an export made with the given options."""

    def write(*options):
        path = tmp_path / "m.onnx"
        path.write_bytes(exported(*options))
        return path

    return write


def needs_openvino():
    pytest.importorskip("openvino", reason="openvino is not installed")


def test_an_engine_that_is_not_there_is_named_among_those_that_are(file, monkeypatch):
    with pytest.raises(UsageError, match=r"--provider: expected one of .*CPUExecutionPro.*got"):
        verify_alone(file(), "QNNExecutionProvider")
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert engines_at_hand() == onnxruntime.get_available_providers()
    with pytest.raises(UsageError, match="got 'openvino'"):
        verify_alone(file(), OPENVINO)


@pytest.mark.skipif(AZURE not in onnxruntime.get_available_providers(), reason=f"no {AZURE}")
def test_a_provider_that_leaves_every_node_to_the_cpu_is_an_error(file):
    with pytest.raises(InputError, match="got every node on CPUExecutionProvider"):
        verify_alone(file(), AZURE)


def test_a_provider_that_runs_nodes_gives_the_recorded_outputs(file):
    model = read_model(file())
    title, run = engines._provider(model, CPU, "m.onnx")
    record = read_record(model, "m.onnx")
    again = engines.make_probe(model.SerializeToString(), 1, run)
    assert record.probe.deviation(again).relative < 1e-5
    assert title == f"ONNX Runtime {onnxruntime.__version__}, {CPU}"


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ((), 1e-5),
        (("--uint8", "--softmax"), 1e-5),
        (("--any-size",), 1e-5),
        (("--fixed-batch", "3"), 1e-5),
        (("--patchable",), 1e-5),
        (("--switchable", "main,aux0"), 1e-5),
        (("--fp16",), 1e-2),
    ],
)
def test_openvino_gives_the_recorded_outputs(file, options, allowed):
    needs_openvino()
    found = verify_alone(file(*options), OPENVINO)
    assert found.engine.startswith("OpenVINO 20")
    assert found.probe_difference < allowed


def changed_output(path, name=None):
    """Change one recorded output of a file: variant 2, image 2, output 4."""
    model = read_model(path)
    record = read_record(model, "m.onnx")
    rows = [[list(row) for row in image] for image in record.probe.outputs]
    rows[-1][1][3] = 30.0
    outputs = tuple(tuple(map(tuple, images)) for images in rows)
    record = replace(record, probe=replace(record.probe, largest=30.0, outputs=outputs))
    if name:
        record = replace(record, classes=tuple(f"{name}{i}" for i in range(10)))
    write_record(model, record)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("engine", [CPU, OPENVINO])
def test_a_difference_says_how_large_it_is_and_where(file, engine):
    if engine == OPENVINO:
        needs_openvino()
    path = file("--switchable", "main,aux0")
    changed_output(path)
    place = r"instead of 30 at output 4 of image 2 of variant 'aux0'\. This engine computes"
    with pytest.raises(VerificationError, match=place) as caught:
        verify_alone(path, engine)
    assert ("OpenVINO" in str(caught.value)) == (engine == OPENVINO)
    path = file()
    changed_output(path, "thing ")
    with pytest.raises(VerificationError, match=r"output 4 \('thing 3'\) of image 2\. This"):
        verify_alone(path, engine)


def test_an_operator_that_an_engine_lacks_is_its_error(file):
    needs_openvino()
    path = file()
    model = read_model(path)
    record = read_record(model, "m.onnx")
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "inner"
    model.graph.node.append(onnx.helper.make_node("OptionalGetElement", ["inner"], ["logits"]))
    write_record(model, record)
    path.write_bytes(model.SerializeToString())
    assert verify_alone(path).probe_difference < 1e-5
    message = (
        "OpenVINO .*: expected a file that it runs, got operator set 18 and an error: .*Optional"
    )
    with pytest.raises(InputError, match=message):
        verify_alone(path, OPENVINO)
