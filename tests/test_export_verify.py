"""`recal verify` finds whatever was changed in a file."""

import copy

import numpy as np
import onnx
import pytest

from recal import build, export_onnx, load_checkpoint
from recal.errors import InputError, UsageError, VerificationError
from recal.export.export import ExportOptions
from recal.export.rebuild import recorded_variants, verify_against
from recal.onnx_file.reading import read_model
from recal.onnx_file.record import read_record, write_record
from recal.onnx_file.verify import verify_alone
from recal.variant.variant import branch_variant

PIXELS = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def checkpoint(split_checkpoint):
    return load_checkpoint(split_checkpoint)


@pytest.fixture
def exported(checkpoint, tmp_path):
    path = tmp_path / "m.onnx"
    export_onnx(checkpoint, "aux0", path, PIXELS)
    return path


def test_an_untouched_file_passes_alone_and_against_its_checkpoint(checkpoint, exported):
    check = verify_alone(exported)
    assert check.record["variant"] == "aux0"
    assert check.probe_difference < 1e-5
    variants = recorded_variants(check.record, checkpoint, exported)
    rebuilt = verify_against(exported, checkpoint, variants, PIXELS)
    assert rebuilt.same_bytes
    (proof,) = rebuilt.proofs.values()
    assert proof.difference <= proof.tolerance


def tamper_tensor(model):
    tensor = next(t for t in model.graph.initializer if t.name == "fc.bias")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[3] += 1e-6  # far below what any comparison of logits would see
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, "fc.bias"))


def tamper_node(model):
    next(n for n in model.graph.node if n.op_type == "Relu").op_type = "Sigmoid"


def tamper_record(model):
    entry = next(e for e in model.metadata_props if e.key == "recal.model")
    entry.value = entry.value.replace("0.4914", "0.5")


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (tamper_tensor, "the variant, got others in fc.bias"),
        (tamper_node, "difference of"),
        (tamper_record, "model: expected"),
    ],
)
def test_changes_are_found_alone_and_named_against_the_checkpoint(
    checkpoint, exported, tamper, message
):
    model = onnx.load(exported)
    tamper(model)
    exported.write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match="expected the contents that were written"):
        verify_alone(exported)
    variant = branch_variant(checkpoint, "aux0", checkpoint.spec())
    with pytest.raises(VerificationError, match=message):
        verify_against(exported, checkpoint, [variant], PIXELS)
    # with the digest computed again only the checkpoint tells
    write_record(model, read_record(model))
    exported.write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match=message):
        verify_against(exported, checkpoint, [variant], PIXELS)


def test_another_variant_is_not_this_one(checkpoint, exported):
    variant = branch_variant(checkpoint, "main", checkpoint.spec())
    with pytest.raises(VerificationError, match="variant_sha256: expected"):
        verify_against(exported, checkpoint, [variant], PIXELS)


def test_a_runtime_that_computes_otherwise_is_found(exported):
    model = read_model(exported)
    record = read_record(model)
    record["probe"]["outputs"][0][0] += 0.1
    write_record(model, record)
    exported.write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match="This ONNX Runtime computes otherwise"):
        verify_alone(exported)


def test_every_form_is_rebuilt_to_the_same_bytes(checkpoint, tmp_path):
    path = tmp_path / "m.onnx"
    variant = branch_variant(checkpoint, "main", checkpoint.spec())
    for form in ({"patchable": True}, {"uint8": True, "softmax": True}, {"fp16": True}):
        export_onnx(checkpoint, variant, path, PIXELS, options=ExportOptions(**form))
        assert verify_against(path, checkpoint, [variant], PIXELS).same_bytes, form


def test_files_that_recal_did_not_write_are_an_input_error(checkpoint, tmp_path):
    from recal.export.trace import to_onnx

    path = tmp_path / "m.onnx"
    path.write_bytes(to_onnx(build(checkpoint), 32, fold=True).SerializeToString())
    with pytest.raises(InputError, match="expected a file that recal wrote"):
        verify_alone(path)


def test_estimated_statistics_need_the_variant_file(checkpoint, exported):
    estimated = {"source": "policy", "policy": "weak", "policy_sha256": "", "policy_text": ""}
    record = {**verify_alone(exported).record, "statistics": estimated}
    with pytest.raises(UsageError, match="Name it with --variant"):
        recorded_variants(record, checkpoint, exported)


ODD = ["x", {}, [{}]]


@pytest.mark.parametrize("key", [
    ("variants",), ("variants", 0, "variant"), ("variants", 0, "affine"),
    ("variants", 0, "statistics"), ("variants", 0, "statistics", "source"),
    ("variants", 0, "statistics", "branch"), ("options", "batch"), ("options", "opset"),
    ("options", "uint8"), ("model",), ("model", "size"), ("model", "family"), ("probe",),
], ids=str)  # fmt: skip
def test_records_of_other_types_end_in_one_error_whoever_wrote_their_digest(
    key, recal, split_checkpoint, tmp_path
):
    recal("export", split_checkpoint, "--switchable", "main,aux0", "-o", "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    record = read_record(model)
    for odd in ODD:
        changed = copy.deepcopy(record)
        place = changed
        for step in key[:-1]:
            place = place[step]
        place[key[-1]] = odd
        write_record(model, changed)
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        # the probe is of no matter where the network itself is at hand
        beside = [] if key == ("probe",) else [["--checkpoint", split_checkpoint]]
        for arguments in ([], *beside):
            status, _, err = recal("verify", "m.onnx", *arguments)
            assert status in (0, 2, 3, 4), err
            assert status == 0 or err.startswith("recal: ")
