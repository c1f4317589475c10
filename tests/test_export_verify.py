"""`recal verify` finds whatever was changed in a file."""

import copy
import json
from contextlib import suppress

import numpy as np
import onnx
import pytest
from msgspec.structs import replace

from recal import build, export_onnx, load_checkpoint
from recal.errors import InputError, RecalError, UsageError, VerificationError
from recal.export.forms import Float16, Patchable, Switchable
from recal.export.verify import recorded_variants, verify_against
from recal.onnx_file.engines import verify_alone
from recal.onnx_file.reading import read_model
from recal.onnx_file.record import read_entries, read_record, write_entries, write_record
from recal.onnx_file.session import OnnxNetwork
from recal.variant.statistics import EstimatedStatistics
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
    assert check.record.title == "aux0"
    assert check.probe_difference < 1e-5
    variants = recorded_variants(check.record, checkpoint, exported)
    found = verify_against(exported, checkpoint, variants, PIXELS)
    assert found.same_bytes
    proof = found.evidence.proof
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
    variant = branch_variant(checkpoint, "aux0")
    with pytest.raises(VerificationError, match=message) as caught:
        verify_against(exported, checkpoint, [variant], PIXELS)
    assert "No file was written" not in str(caught.value)
    # with the digest computed again only the checkpoint tells
    write_entries(model, read_entries(model))
    exported.write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match=message):
        verify_against(exported, checkpoint, [variant], PIXELS)


def test_another_variant_is_not_this_one(checkpoint, exported):
    variant = branch_variant(checkpoint, "main")
    with pytest.raises(VerificationError, match="variants 1: sha256: expected"):
        verify_against(exported, checkpoint, [variant], PIXELS)


def test_a_runtime_that_computes_otherwise_is_found(exported):
    model = read_model(exported)
    record = read_record(model, "m.onnx")
    (((first, *rest), *others),) = record.probe.outputs
    probe = replace(record.probe, outputs=(((first + 0.1, *rest), *others),))
    write_record(model, replace(record, probe=probe))
    exported.write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match="This engine computes otherwise"):
        verify_alone(exported)


@pytest.mark.slow
def test_every_form_is_rebuilt_to_the_same_bytes(checkpoint, tmp_path):
    path = tmp_path / "m.onnx"
    variant = branch_variant(checkpoint, "main")
    for form in ({"form": Patchable()}, {"uint8": True, "softmax": True}, {"form": Float16()}):
        export_onnx(checkpoint, variant, path, PIXELS, **form)
        assert verify_against(path, checkpoint, [variant], PIXELS).same_bytes, form


def test_files_that_recal_did_not_write_are_an_input_error(checkpoint, tmp_path):
    from recal.export.trace import to_onnx

    path = tmp_path / "m.onnx"
    path.write_bytes(to_onnx(build(checkpoint), 32, fold=True).SerializeToString())
    with pytest.raises(InputError, match="expected a file that recal wrote"):
        verify_alone(path)


def test_estimated_statistics_need_the_variant_file(checkpoint, exported):
    estimated = EstimatedStatistics(
        policy="weak", policy_sha256="", policy_text="", data_sha256="", images=1, batch_size=1,
        estimator="pooled", passes=1, seed=0, errors={},
    )  # fmt: skip
    record = verify_alone(exported).record
    held = replace(record.variants[0], statistics=estimated)
    record = replace(record, variants=(held,))
    with pytest.raises(UsageError, match="Name it with --variant"):
        recorded_variants(record, checkpoint, exported)


ODD = ["x", {}, [{}], 10**30, None]


def entries_of(model):
    return {key.removeprefix("recal."): text for key, text in read_entries(model).items()}


def with_entries(model, entries):
    write_entries(model, {f"recal.{key}": text for key, text in entries.items()})
    return model


KEYS = [
    ("variants",), ("variants", 0, "name"), ("variants", 0, "affine"), ("variants", 0, "sha256"),
    ("variants", 0, "statistics"), ("variants", 0, "statistics", "source"),
    ("variants", 0, "statistics", "branch"), ("options",), ("options", "batch"),
    ("options", "opset"), ("options", "uint8"), ("model",), ("model", "size"), ("model", "family"),
    ("probe",), ("probe", "outputs"), ("probe", "largest"), ("parity",), ("parity", "main"),
    ("versions",), ("classes",), ("accuracies",), ("int8",), ("format",),
]  # fmt: skip


@pytest.fixture(scope="module")
def switchable(split_checkpoint, tmp_path_factory):
    checkpoint = load_checkpoint(split_checkpoint)
    variants = {name: branch_variant(checkpoint, name) for name in ("main", "aux0")}
    path = tmp_path_factory.mktemp("switchable") / "s.onnx"
    export_onnx(checkpoint, variants, path, PIXELS[:4], form=Switchable())
    return path


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_records_of_other_types_end_in_one_error_whoever_wrote_their_digest(
    key, switchable, checkpoint, tmp_path
):
    model, path = onnx.load(switchable), tmp_path / "m.onnx"
    entries = entries_of(model)
    content = {key[0]: json.loads(entries.get(key[0], "null"))}
    variants = [branch_variant(checkpoint, name) for name in ("main", "aux0")]
    for odd in ODD:
        place = changed = copy.deepcopy(content)
        for step in key[:-1]:
            place = place[step]
        place[key[-1]] = odd
        with_entries(model, {**entries, key[0]: json.dumps(changed[key[0]])})
        path.write_bytes(model.SerializeToString())
        for use in (
            lambda: OnnxNetwork(path),
            lambda: verify_alone(path),
            lambda: recorded_variants(read_record(read_model(path), "m.onnx"), checkpoint, path),
            lambda: verify_against(path, checkpoint, variants, PIXELS[:4]),
        ):
            with suppress(RecalError):
                use()


def test_variants_of_one_name_are_refused(exported):
    model = read_model(exported)
    entries = entries_of(model)
    twice = json.dumps(2 * json.loads(entries["variants"]))
    with_entries(model, {**entries, "form": "switchable", "variants": twice})
    with pytest.raises(InputError, match="variants: expected different names, got aux0, aux0"):
        read_record(model, "m.onnx")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "NaN", "\u2028", "1e999"])
def test_entries_that_are_no_json_end_in_one_error(text, exported):
    model = read_model(exported)
    entries = entries_of(model)
    for key in ("format", "options", "variants", "probe", "parity"):
        with_entries(model, {**entries, key: text})
        exported.write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match=key):
            verify_alone(exported)


def test_forms_and_their_records_go_together(exported):
    model = read_model(exported)
    entries = entries_of(model)
    for form, message in (
        ("int8", "int8: expected it in int8 files alone"),
        ("switchable", "variants: expected one"),
        ("float8", "expected one of float32, float16"),
    ):
        with_entries(model, {**entries, "form": form})
        exported.write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match=message):
            verify_alone(exported)
