"""Exported files are the variant, are proven so, and are the same bytes each time."""

import hashlib
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from recal import build, export_onnx, load_checkpoint
from recal.data.normalise import Normalisation, normalise_array
from recal.errors import InputError, UsageError, VerificationError
from recal.export import forms
from recal.export.forms import Float16, Float32
from recal.export.subject import comparison_images
from recal.export.trace import to_onnx
from recal.onnx_file.editing import with_arrays
from recal.onnx_file.record import Accuracies
from recal.onnx_file.session import OnnxNetwork
from recal.variant.statistics import BranchStatistics
from recal.variant.variant import branch_variant

PIXELS = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def checkpoint(split_checkpoint):
    return load_checkpoint(split_checkpoint)


@pytest.mark.slow
def test_file_gives_the_logits_of_its_branch_and_no_other(checkpoint, tmp_path):
    inputs = normalise_array(PIXELS, checkpoint.spec.normalisation)
    for branch in ("main", "aux0"):
        path = tmp_path / f"{branch}.onnx"
        proof = export_onnx(checkpoint, branch, path, PIXELS).proof
        with torch.no_grad():
            expected = build(checkpoint, branch)(torch.from_numpy(inputs)).numpy()
        found = OnnxNetwork(path).logits(inputs)
        np.testing.assert_allclose(found, expected, atol=proof.tolerance)
        assert proof.images == 70
        assert list(proof.rivals) == [{"main": "aux0", "aux0": "main"}[branch]]
        assert not proof.indistinct
        for rival in proof.rivals.values():
            assert rival.distance > 10 * proof.tolerance
            assert rival.distance == pytest.approx(rival.expected, abs=proof.tolerance)


@pytest.mark.slow
def test_file_is_plain_self_contained_and_reproducible(checkpoint, tmp_path):
    for name in ("a", "b"):
        export_onnx(checkpoint, "aux0", tmp_path / f"{name}.onnx", PIXELS)
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]
    for word in (b"aux_bn", str(tmp_path).encode(), b"/site-packages", b".py", b"/home", b"/root"):
        assert word not in content, word
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["input"]
    assert [o.name for o in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
    # only what has no convolution before it stays: bn1 of each of the 3 blocks, and the last
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("BatchNormalization") == 4


def test_metadata_say_what_the_file_is(checkpoint, tmp_path):
    export_onnx(checkpoint.overridden(mean=(0.5, 0.5, 0.5)), "main", tmp_path / "m.onnx", PIXELS)
    record = OnnxNetwork(tmp_path / "m.onnx").record
    assert record.model.mean == (0.5, 0.5, 0.5)
    assert record.model.arch == "wrn10_1"
    assert record.weights_sha256 == checkpoint.weights_sha256
    assert record.form == "float32"
    (held,) = record.variants
    assert held.statistics == BranchStatistics(branch="main")
    assert record.parity["main"].images == 70
    stored = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(stored["recal.model"])["arch"] == "wrn10_1"


@pytest.mark.slow
def test_a_file_that_is_not_its_variant_is_refused_and_not_written(
    checkpoint, tmp_path, monkeypatch
):
    good = tmp_path / "m.onnx"
    export_onnx(checkpoint, "main", good, PIXELS)
    before = good.read_bytes()

    def exports_the_wrong_branch(_network, size, **form):
        return to_onnx(build(checkpoint, "aux0"), size, **form)

    monkeypatch.setattr(forms, "to_onnx", exports_the_wrong_branch)
    with pytest.raises(VerificationError, match=r"got a difference of .* No file was written"):
        export_onnx(checkpoint, "main", good, PIXELS)
    assert good.read_bytes() == before, "the good file that was there stays"
    with pytest.raises(VerificationError):
        export_onnx(checkpoint, "main", tmp_path / "new.onnx", PIXELS)
    assert not (tmp_path / "new.onnx").exists()


def test_nan_logits_pass_no_proof(checkpoint, tmp_path):
    broken = branch_variant(checkpoint, "main")
    broken.tensors["bn1.weight"] = np.full_like(broken.tensors["bn1.weight"], np.nan)
    with pytest.raises(VerificationError):
        export_onnx(checkpoint, broken, tmp_path / "m.onnx", PIXELS)


def test_unfolded_graph_takes_other_branches_by_name(checkpoint):
    inputs = normalise_array(PIXELS, Normalisation((0.5,) * 3, (0.25,) * 3))
    base = to_onnx(build(checkpoint, "main"), 32, fold=False)
    variant = branch_variant(checkpoint, "aux0")
    swapped = with_arrays(base, dict(variant.tensors))
    with torch.no_grad():
        expected = build(checkpoint, "aux0")(torch.from_numpy(inputs)).numpy()
    found = OnnxNetwork(swapped.SerializeToString()).logits(inputs)
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    with pytest.raises(InputError, match="expected an initialiser 'nobody'"):
        with_arrays(base, {"nobody": np.zeros(3)})


def test_training_mode_is_refused(checkpoint):
    network = build(checkpoint)
    network.block2.train()
    with pytest.raises(InputError, match="got block2 in training mode"):
        to_onnx(network, 32, fold=True)


def test_onnx_inputs_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"\x08\x07 no model")
    with pytest.raises(InputError, match=r"no\.onnx: expected an ONNX network"):
        OnnxNetwork(tmp_path / "no.onnx")
    with pytest.raises(InputError, match="but it does not exist"):
        OnnxNetwork(tmp_path / "none.onnx")


def test_bundled_images_take_the_size_of_the_network(checkpoint):
    pixels, what = comparison_images(checkpoint.overridden(size=64).spec, None, 5)
    assert pixels.shape == (5, 64, 64, 3)
    assert what == "5 bundled Fashion-MNIST images"


@pytest.mark.slow
def test_every_form_gives_what_it_says(checkpoint, tmp_path):
    """uint8, softmax, float16, fixed batch, any size and other opsets, against PyTorch."""
    spec = checkpoint.spec
    images = normalise_array(PIXELS, spec.normalisation)
    with torch.no_grad():
        logits = build(checkpoint, "aux0")(torch.from_numpy(images))
    expected = {False: logits.numpy(), True: logits.softmax(1).numpy()}
    for form, name, dtype, shape, tolerance in (
        ({"uint8": True}, "logits", "uint8", ["batch", 32, 32, 3], 1e-4),
        ({"softmax": True}, "probabilities", "float32", ["batch", 3, 32, 32], 1e-5),
        ({"form": Float16()}, "logits", "float32", ["batch", 3, 32, 32], 2e-2),
        ({"batch": 4, "opset": 13}, "logits", "float32", [4, 3, 32, 32], 1e-4),
        ({"any_size": True, "opset": 20}, "logits", "float32",
         ["batch", 3, "height", "width"], 1e-4),
        ({"uint8": True, "softmax": True, "form": Float16()}, "probabilities", "uint8",
         ["batch", 32, 32, 3], 5e-3),
    ):  # fmt: skip
        path = tmp_path / "m.onnx"
        export_onnx(checkpoint, "aux0", path, PIXELS, **form)
        session = onnxruntime.InferenceSession(path)
        (given,), (output,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.shape, output.name) == ("input", shape, name)
        assert onnx.load(path).opset_import[0].version == form.get("opset", 18)
        inputs = (PIXELS if dtype == "uint8" else images)[: form.get("batch", 70)]
        wanted = expected["softmax" in form][: len(inputs)]
        (found,) = session.run(None, {"input": inputs})
        scale = max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(found / scale, wanted / scale, atol=tolerance, err_msg=str(form))
        assert np.ptp(wanted) > 10 * tolerance
    larger = np.tile(images[:2], (1, 1, 2, 2))
    export_onnx(checkpoint, "aux0", path, PIXELS, any_size=True)
    with torch.no_grad():
        wanted = build(checkpoint, "aux0")(torch.from_numpy(larger)).numpy()
    np.testing.assert_allclose(OnnxNetwork(path).logits(larger), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_half_precision_halves_the_file(checkpoint, tmp_path):
    for name, form in (("full", Float32()), ("half", Float16())):
        export_onnx(checkpoint, "main", tmp_path / name, PIXELS, form=form)
    full, half = ((tmp_path / name).stat().st_size for name in ("full", "half"))
    assert half < 0.65 * full


@pytest.mark.slow
def test_the_network_runs_the_same_for_eval_whatever_the_form(checkpoint, tmp_path):
    spec = checkpoint.spec
    found = []
    for form in ({}, {"uint8": True}, {"softmax": True}, {"batch": 4}):
        export_onnx(checkpoint, "main", tmp_path / "m.onnx", PIXELS, **form)
        logits = OnnxNetwork(tmp_path / "m.onnx").classify(PIXELS, spec.normalisation)
        found.append(logits - logits.max(axis=1, keepdims=True))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-3)


def test_arguments_that_no_file_can_have_are_wrong_use(checkpoint, tmp_path):
    for opset, message in (
        (12, "--opset: expected a number from 13 to 20, got 12"),
        (99, "got 99"),
    ):
        with pytest.raises(UsageError, match=message):
            export_onnx(checkpoint, "main", tmp_path / "m.onnx", PIXELS, opset=opset)
    with pytest.raises(UsageError, match="batch: expected 1 image or more, got 0"):
        export_onnx(checkpoint, "main", tmp_path / "m.onnx", PIXELS, batch=0)
    with pytest.raises(UsageError, match="expected one variant or more, got none"):
        export_onnx(checkpoint, {}, tmp_path / "m.onnx", PIXELS)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_wrong_only_on_scaled_inputs_is_refused(checkpoint, tmp_path, monkeypatch):
    def clips(model, *_):
        for node in model.graph.node:
            node.input[:] = ["clipped" if name == "input" else name for name in node.input]
        bounds = [
            onnx.numpy_helper.from_array(np.float32(v), n) for n, v in (("lo", -9), ("hi", 9))
        ]
        model.graph.initializer.extend(bounds)
        model.graph.node.insert(
            0, onnx.helper.make_node("Clip", ["input", "lo", "hi"], ["clipped"])
        )
        return model

    monkeypatch.setattr(forms, "_dressed", clips)
    with pytest.raises(VerificationError, match="expected logits of hostile inputs within"):
        export_onnx(checkpoint, "main", tmp_path / "m.onnx", PIXELS)
    assert not list(tmp_path.iterdir())


def test_batch_norm_without_statistics_is_refused():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)
    )
    with pytest.raises(InputError, match="2: expected a BatchNorm with running statistics"):
        to_onnx(network.eval(), 8, fold=True)


def test_an_operation_that_onnx_lacks_is_named_with_its_module():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    network = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.ReLU(), Odd()), nn.Flatten())
    with pytest.raises(InputError, match=r"1\.1 \(Odd\): expected operations.*bessel_j0"):
        to_onnx(network.eval(), 8, fold=True)


def test_record_takes_class_names_and_accuracies(checkpoint, tmp_path):
    names = [f"class {i}" for i in range(10)]
    export_onnx(
        checkpoint, "main", tmp_path / "m.onnx", PIXELS, class_names=names,
        accuracies=Accuracies(suite="cifar10", clean_accuracy=0.5),
    )  # fmt: skip
    record = OnnxNetwork(tmp_path / "m.onnx").record
    assert list(record.classes) == names
    assert record.accuracies.clean_accuracy == 0.5
    assert record.checkpoint_sha256 == hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="expected 10 names, got 9"):
        export_onnx(checkpoint, "main", tmp_path / "m.onnx", PIXELS, class_names=names[1:])


@pytest.mark.slow
def test_images_of_another_form_are_refused_and_none_are_needed(split_checkpoint, tmp_path):
    checkpoint = load_checkpoint(split_checkpoint)
    for odd in (np.zeros((4, 32, 32, 3)), np.zeros((4, 3, 32, 32), np.uint8), PIXELS[:0]):
        with pytest.raises(InputError, match=r"expected images uint8 \(N, 32, 32, 3\), got"):
            export_onnx(checkpoint, "aux0", tmp_path / "m.onnx", odd)
    assert not list(tmp_path.iterdir())
    assert export_onnx(checkpoint, "aux0", tmp_path / "m.onnx").proof.images == 256
