"""int8 files: made of the variant's own images, judged by what they lose, the same each time."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from msgspec import structs
from PIL import Image

from recal import build, export_onnx, load_checkpoint
from recal.data.normalise import normalise_array
from recal.datasets.catalogue import wnids
from recal.errors import InputError, UsageError, VerificationError
from recal.export import forms, int8
from recal.export.forms import Int8
from recal.export.int8 import activation_ranges, judge
from recal.export.int8_images import HeldOutImages, held_out_images, range_images, variant_policy
from recal.export.subject import make_subjects
from recal.export.trace import to_onnx
from recal.export.verify import verify_against
from recal.onnx_file.record import read_entries, read_record, write_entries
from recal.policies.policy import load_policy, read_policy
from recal.variant.statistics import BranchStatistics, EstimatedStatistics
from recal.variant.variant import branch_variant

CLEAN = BranchStatistics(branch="main")
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def checkpoint(split_checkpoint):
    return load_checkpoint(split_checkpoint)


def subject_of(checkpoint, branch, pixels):
    variant = branch_variant(checkpoint, branch)
    return make_subjects(checkpoint, {branch: variant}, pixels)[0]


@pytest.fixture
def made_of(checkpoint, class_folders):
    spec = checkpoint.spec
    images = range_images(spec, CLEAN, class_folders, count=40)
    return images, held_out_images(spec, class_folders, images)


def exported(checkpoint, path, made_of, *, branch="main", max_drop=1.0, **form):
    images, held_out = made_of
    int8 = Int8(images=images, held_out=held_out, max_drop=max_drop)
    return export_onnx(checkpoint, branch, path, held_out.pixels, form=int8, **form)


def test_symmetric_file_has_no_zero_points_and_keeps_its_predictions(checkpoint, made_of, tmp_path):
    images, held_out = made_of
    form = Int8(images=images, held_out=held_out, max_drop=0.2, symmetric=True)
    path = tmp_path / "m.onnx"
    evidence = export_onnx(checkpoint, "main", path, held_out.pixels, form=form)
    assert evidence.int8.symmetric
    assert evidence.int8.proof.agreement > 0.8
    graph = onnx.load(path).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        assert arrays[node.input[2]].dtype == np.int8
        assert not arrays[node.input[2]].any()
    checked = verify_against(path, checkpoint, [branch_variant(checkpoint, "main")], PIXELS)
    assert checked.same_bytes


@pytest.mark.slow
def test_file_is_8_bits_per_channel_plain_and_reproducible(checkpoint, made_of, tmp_path):
    for name in ("a", "b"):
        exported(checkpoint, tmp_path / name, made_of, branch="aux0")
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    for word in (b"aux_bn", b"/tmp", str(tmp_path).encode(), b"onnx.quant", b".onnx"):
        assert word not in content, word
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    readers = {node.output[0]: node for node in model.graph.node}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 9
    for node in convolutions:
        weight = readers[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        assert arrays[weight.input[0]].dtype == np.int8
        assert arrays[weight.input[1]].shape == arrays[weight.input[0]].shape[:1]
        assert readers[node.input[0]].op_type == "DequantizeLinear"
    export_onnx(checkpoint, "aux0", tmp_path / "c", made_of[1].pixels)
    assert len(content) < 0.6 * (tmp_path / "c").stat().st_size


@pytest.mark.slow
def test_ranges_are_those_of_the_images(checkpoint, made_of, tmp_path):
    """The input's scale and zero point, from the images alone."""
    exported(checkpoint, tmp_path / "m.onnx", made_of)
    model = onnx.load(tmp_path / "m.onnx")
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    spec = checkpoint.spec
    images = normalise_array(made_of[0].pixels, spec.normalisation).astype(np.float64)
    low, high = min(0.0, images.min()), max(0.0, images.max())
    (first,) = (n for n in model.graph.node if n.input[0] == "input")
    assert first.op_type == "QuantizeLinear"
    assert arrays[first.input[1]] == pytest.approx((high - low) / 255, rel=1e-5)
    assert arrays[first.input[2]] == round(-low / ((high - low) / 255))
    record = read_record(model, "m.onnx").int8
    assert record.ranges["input"] == pytest.approx([images.min(), images.max()])
    assert record.range_images.policy == "clean"
    assert record.range_images.images == 40


@pytest.mark.slow
@pytest.mark.parametrize("form", [{}, {"uint8": True, "softmax": True}, {"batch": 3}], ids=str)
def test_what_is_lost_is_counted_right(checkpoint, made_of, tmp_path, form):
    proof = exported(checkpoint, tmp_path / "m.onnx", made_of, **form).int8.proof
    held_out, spec = made_of[1], checkpoint.spec
    images = normalise_array(held_out.pixels, spec.normalisation)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    inputs, size = held_out.pixels if "uint8" in form else images, form.get("batch", 1)
    found = np.concatenate(
        [session.run(None, {"input": inputs[i : i + size]})[0] for i in range(0, 39, size)]
    )
    with torch.no_grad():
        exact = build(checkpoint)(torch.from_numpy(images)).numpy()[: len(found)]
    held = held_out.answers[: len(found), 0]
    assert len(held_out.answers) == 40
    own, other = exact.argmax(1), found.argmax(1)
    slack = 2 / 40  # an image that is not in these whole batches, and one that is on the edge
    assert proof.agreement == pytest.approx((own == other).mean(), abs=slack)
    assert proof.accuracies["pytorch"] == pytest.approx((own == held).mean(), abs=slack)
    assert proof.accuracies["int8"] == pytest.approx((other == held).mean(), abs=slack)
    assert proof.drop == proof.accuracies["pytorch"] - proof.accuracies["int8"]
    assert proof.accuracies["folded"] == proof.accuracies["pytorch"]
    assert 0 < proof.error < 0.3
    assert abs(proof.rivals["aux0"]) < 0.25


@pytest.fixture
def narrow(monkeypatch):
    """Ranges of a tenth of what activations need, which no prediction survives."""
    real = forms.activation_ranges

    def tenths(*arguments):
        return {k: (low / 10, high / 10) for k, (low, high) in real(*arguments).items()}

    monkeypatch.setattr(forms, "activation_ranges", tenths)
    monkeypatch.setattr(int8, "LARGEST_ERROR", 100.0)


@pytest.mark.slow
def test_too_much_loss_is_refused_and_a_good_file_stays(checkpoint, made_of, tmp_path, narrow):
    images, held_out = made_of
    good = tmp_path / "m.onnx"
    good.write_bytes(b"good")
    plain = HeldOutImages(pixels=held_out.pixels, answers=None, what="images")
    with pytest.raises(VerificationError, match="of predictions to change, got"):
        exported(checkpoint, good, (images, plain), max_drop=0.0)
    own = build(checkpoint)(torch.from_numpy(
        normalise_array(held_out.pixels, checkpoint.spec.normalisation)
    )).argmax(1).numpy()  # fmt: skip
    right = HeldOutImages(pixels=held_out.pixels, answers=own[:, None], what="images")
    with pytest.raises(VerificationError, match=r"of accuracy to be lost, got .* \(100\.00% in fl"):
        exported(checkpoint, good, (images, right), max_drop=0.01)
    assert good.read_bytes() == b"good"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.slow
def test_outputs_far_off_are_refused_whatever_is_predicted(checkpoint, made_of, tmp_path, narrow):
    int8.LARGEST_ERROR = 0.01
    with pytest.raises(VerificationError, match=r"within 0\.01 of the spread"):
        exported(checkpoint, tmp_path / "m.onnx", made_of)
    assert not list(tmp_path.iterdir())


def test_loss_is_of_labels_where_there_are_any(checkpoint, made_of):
    """A network whose predictions all change, none of which had been right, loses nothing."""
    subject = subject_of(checkpoint, "main", made_of[1].pixels)
    model = to_onnx(subject.network, 32, fold=True).SerializeToString()
    other = to_onnx(build(checkpoint), 32, fold=True)
    (bias,) = (t for t in other.graph.initializer if t.name == "fc.bias")
    values = onnx.numpy_helper.to_array(bias)
    pixels = made_of[1].pixels
    shift = np.zeros_like(values)
    shift[3] = 0.05
    bias.CopyFrom(onnx.numpy_helper.from_array(values + shift, "fc.bias"))
    changed = other.SerializeToString()
    for labels, drop in ((None, None), (np.full((40, 1), 9), 0.0)):
        held_out = HeldOutImages(pixels=pixels, answers=labels, what="images")
        proof = judge(changed, model, replace(subject, rivals={}), held_out, max_drop=1.0)
        if labels is None:
            assert proof.drop == pytest.approx(1 - proof.agreement)
            assert proof.accuracies == {}
        else:
            right = proof.accuracies
            assert proof.drop == right["pytorch"] - right["int8"]
            assert abs(proof.drop - drop) <= 1 - proof.agreement


def test_outputs_that_point_to_another_branch_are_refused(checkpoint, made_of):
    """No bound on logits would tell, but the way that the error goes."""
    variant = branch_variant(checkpoint, "main")
    near = dict(variant.tensors)
    near["bn1.weight"] = near["bn1.weight"] * 1.05
    near_variant = type(variant)(**{**vars(variant), "tensors": near})
    networks = {n: build(checkpoint, v) for n, v in (("own", variant), ("near", near_variant))}
    models = {n: to_onnx(v, 32, fold=True).SerializeToString() for n, v in networks.items()}
    held_out = made_of[1]
    rivals = {"near": networks["near"], "same": networks["own"]}
    subject = replace(subject_of(checkpoint, "main", held_out.pixels), rivals=rivals)
    proof = judge(models["own"], models["own"], subject, held_out)
    assert abs(proof.rivals["near"]) < 1e-3
    assert proof.indistinct == ("same",)
    with pytest.raises(VerificationError, match=r"than to branch 'near', got 1\.00 of the way"):
        judge(models["near"], models["own"], subject, held_out, max_drop=1.0)


@pytest.mark.slow
def test_verify_rebuilds_it_and_finds_tampering(checkpoint, made_of, tmp_path):
    path = tmp_path / "m.onnx"
    exported(checkpoint, path, made_of)
    variant = branch_variant(checkpoint, "main")
    pixels = made_of[1].pixels
    found = verify_against(path, checkpoint, [variant], pixels)
    assert found.same_bytes
    assert found.evidence.int8.proof.agreement > 0.8
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] ^= 1  # one step of one weight
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    write_entries(model, read_entries(model))  # with the digest computed again
    path.write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match="got others in"):
        verify_against(path, checkpoint, [variant], pixels)
    entries = read_entries(model)
    made = json.loads(entries["recal.int8"])
    for odd, message in (
        ({}, "int8: ranges, range_images, max_drop, proof missing"),
        ({**made, "ranges": {"input": "x"}}, "int8: ranges: input: expected a list"),
        ({**made, "ranges": {"input": [0.0, 1.0]}}, "expected the ranges"),
        ({**made, "range_images": {}}, "int8: range_images: policy, .* missing"),
        ({**made, "max_drop": 7}, "int8: max_drop: expected a number from 0 to 1, got 7"),
    ):
        write_entries(model, {**entries, "recal.int8": json.dumps(odd)})
        path.write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match=message):
            verify_against(path, checkpoint, [variant], pixels)


@pytest.mark.slow
def test_verify_takes_the_ranges_from_the_images_again(
    checkpoint, made_of, class_folders, tmp_path, monkeypatch
):
    path, held_out = tmp_path / "m.onnx", made_of[1]
    exported(checkpoint, path, made_of)
    arguments = checkpoint, [branch_variant(checkpoint, "main")], held_out.pixels
    found = verify_against(path, *arguments, class_folders)
    assert found.same_ranges
    assert found.evidence.int8.proof.images == 40
    assert set(found.evidence.int8.proof.accuracies) == {"pytorch", "folded", "int8"}
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(class_folders / "test", elsewhere)
    other = verify_against(path, *arguments, elsewhere)
    assert not other.same_ranges
    assert other.evidence.int8.proof.accuracies == {}

    # a file made of wrong ranges throughout: nothing but the images can tell
    def widened(*given):
        return {n: (low, high + 1.0) for n, (low, high) in activation_ranges(*given).items()}

    with monkeypatch.context() as patched:
        patched.setattr(forms, "activation_ranges", widened)
        exported(checkpoint, path, made_of)
    assert verify_against(path, *arguments).same_bytes
    with pytest.raises(VerificationError, match=r"tensor '.*': expected the range .* to "):
        verify_against(path, *arguments, class_folders)


def estimated(policy, sha256, text):
    return EstimatedStatistics(
        policy=policy, policy_sha256=sha256, policy_text=text, data_sha256="", images=1,
        batch_size=1, estimator="pooled", passes=1, seed=0, errors={},
    )  # fmt: skip


def test_policy_is_the_variants_own(checkpoint, tmp_path):
    spec = checkpoint.spec
    assert variant_policy(spec, CLEAN).name == "clean"
    weak = load_policy("cifar", "weak")
    assert variant_policy(spec, estimated("weak", weak.sha256, weak.text)) == weak
    text = 'summary = "Mine."\n[[op]]\nname = "random_horizontal_flip"\np = 1.0\n'
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    mine = read_policy(tmp_path / "mine.toml")
    assert variant_policy(spec, estimated("mine", mine.sha256, text)) == mine
    # a user's file that bears the name of a shipped one is still the user's
    assert variant_policy(spec, estimated("weak", mine.sha256, text)).text == text
    with pytest.raises(UsageError, match="Name it with --policy"):
        variant_policy(spec, estimated("mine", mine.sha256, f"{text}{text}"))


def test_images_of_a_folder_without_splits_serve_for_one_purpose(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    spec = checkpoint.spec
    images = range_images(spec, CLEAN, tmp_path, count=8)
    held_out = held_out_images(spec, tmp_path, images)
    assert held_out.answers is None
    assert len(held_out.pixels) == 4
    seen = {image.tobytes() for image in images.pixels}
    assert not seen.intersection(image.tobytes() for image in held_out.pixels)
    images = range_images(spec, CLEAN, tmp_path, count=12)
    with pytest.raises(InputError, match="Take fewer with --int8-samples"):
        held_out_images(spec, tmp_path, images)


def test_labels_of_other_classes_are_no_labels(checkpoint, class_folders):
    spec = checkpoint.spec
    images = range_images(spec, CLEAN, class_folders, count=8)
    fits = held_out_images(spec, class_folders, images)
    assert fits.answers is not None
    other = structs.replace(spec, classes=20)
    assert held_out_images(other, class_folders, images).answers is None


def test_a_part_of_imagenets_folders_are_its_classes(checkpoint, tmp_path):
    order = wnids("imagenet")
    for number in (7, 999, 300):
        folder = tmp_path / order[number]
        folder.mkdir()
        for i in range(6):
            Image.new("RGB", (32, 32), (i, number % 256, 0)).save(folder / f"{i}.png")
    spec = structs.replace(checkpoint.spec, classes=1000)
    images = range_images(spec, CLEAN, tmp_path, count=9)
    assert images.record.class_balanced
    held_out = held_out_images(spec, tmp_path, images)
    assert sorted(held_out.answers[:, 0].tolist()) == [7] * 3 + [300] * 3 + [999] * 3
    assert [int(pixels[0, 0, 1]) for pixels in held_out.pixels] == (
        held_out.answers[:, 0] % 256
    ).tolist()
    (tmp_path / order[7]).rename(tmp_path / "cats")
    strange = held_out_images(spec, tmp_path, images)
    assert strange.answers is None


@pytest.mark.slow
def test_command_says_what_was_lost(recal, split_checkpoint, class_folders):
    recal("calibrate", split_checkpoint, "--data", class_folders, "-o", "v.safetensors")
    arguments = ["export", split_checkpoint, "--int8", "--data", class_folders, "-o", "m.onnx"]
    status, out, err = recal(*arguments, "--max-drop", "1", "--variant", "v.safetensors")
    assert status == 0, err
    assert "int8, 0.1" in out
    assert "Ranges of 60 'weak' images" in out
    assert "pytorch" in out
    assert "On the way to branch 'aux0'" in out
    status, out, err = recal("verify", "m.onnx")
    assert status == 0, err
    status, out, err = recal(
        "verify", "m.onnx", "--checkpoint", split_checkpoint, "--variant", "v.safetensors"
    )
    assert status == 0, err
    assert "int8: the same prediction as in float32" in out


@pytest.mark.slow
def test_command_exits_with_4_above_max_drop(
    recal, split_checkpoint, class_folders, tmp_path, narrow
):
    plain = tmp_path / "plain"
    plain.mkdir()
    for i, path in enumerate(sorted(class_folders.rglob("*.png"))[:30]):
        (plain / f"{i:02}.png").write_bytes(path.read_bytes())
    arguments = ["export", split_checkpoint, "--int8", "--data", plain, "-o", "n.onnx"]
    status, _, err = recal(*arguments, "--int8-samples", "10", "--mode", "strong")
    assert status == 4
    assert "at most 1.00% of predictions to change" in err
    assert "No file was written" in err
    assert not (tmp_path / "n.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fp16", "--patchable"], "--fp16 does not go with --patchable"),
        (["--int8", "--fp16"], "--int8 does not go with --fp16"),
        (["--int8", "--patchable"], "--int8 does not go with --patchable"),
        (["--int8", "--switchable", "main,aux0"], "--switchable does not go with --int8"),
        (["--fp16", "--switchable", "main,aux0"], "--switchable does not go with --fp16"),
        (["--patchable", "--switchable", "main,aux0"], "--switchable does not go with --patchable"),
        (["--variant", "main", "--switchable", "main,aux0"], "does not go with --variant"),
        (["--run", "x", "--switchable", "main,aux0"], "does not go with --run"),
        (["--max-drop", "0.1"], "--max-drop: expected --int8 too"),
        (["--int8-samples", "9"], "--int8-samples: expected --int8 too"),
        (["--int8", "--mode", "weak", "--policy", "x"], "--policy: expected it instead"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_combinations_without_sense_are_wrong_use(recal, split_checkpoint, options, message):
    status, _, err = recal("export", split_checkpoint, "-o", "m.onnx", *options)
    assert status == 2, err
    assert message in err
