"""A patched file is, byte for byte, a fresh export of the variant; all of it without torch."""

import dataclasses
import subprocess
import sys

import numpy as np
import onnx
import pytest
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper

from recal import export_onnx, load_checkpoint
from recal.data.images import ArraySource
from recal.errors import InputError, RecalError, VerificationError
from recal.export.forms import Patchable
from recal.onnx_file.patch import patch_file, patch_model
from recal.onnx_file.reading import graph_bytes, read_model
from recal.onnx_file.recalibrate import recalibrate
from recal.onnx_file.record import read_record
from recal.onnx_file.session import OnnxNetwork
from recal.policies.ops import CenterCrop, Pad, Resize
from recal.policies.policy import load_policy
from recal.policies.preparation import Preparation
from recal.policies.prepared import PreparedImages
from recal.variant.variant import branch_variant, load_variant, save_variant

PIXELS = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)
PATCHABLE = Patchable()


@pytest.fixture
def checkpoint(split_checkpoint):
    return load_checkpoint(split_checkpoint)


@pytest.fixture
def base(exported, tmp_path):
    path = tmp_path / "base.onnx"
    path.write_bytes(exported("--variant", "main", "--patchable"))
    return path


@pytest.fixture
def variant(checkpoint, tmp_path):
    path = tmp_path / "aux0.safetensors"
    save_variant(branch_variant(checkpoint, "aux0"), path)
    return path


def test_patched_file_is_a_fresh_export(checkpoint, base, variant, tmp_path):
    fresh = tmp_path / "fresh.onnx"
    export_onnx(checkpoint, load_variant(variant), fresh, PIXELS, form=PATCHABLE)
    patch_file(base, variant, tmp_path / "patched.onnx")
    patched = read_model(tmp_path / "patched.onnx")
    assert graph_bytes(patched) == graph_bytes(read_model(fresh))
    assert graph_bytes(patched) != graph_bytes(read_model(base))
    ours, theirs = read_record(patched, "patched"), read_record(read_model(fresh), "fresh")
    for key in ("form", "variants", "weights_sha256", "model", "probe", "options"):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert not ours.parity, "that proof was of the base file"
    assert variant.stat().st_size < 20_000


def test_patched_file_computes_the_variant_and_not_the_base(base, variant, tmp_path, checkpoint):
    import torch

    from recal import build

    patch_file(base, variant, tmp_path / "p.onnx")
    inputs = np.random.default_rng(1).standard_normal((5, 3, 32, 32), dtype=np.float32)
    found = OnnxNetwork(tmp_path / "p.onnx").logits(inputs)
    with torch.no_grad():
        own, other = (
            build(checkpoint, b)(torch.from_numpy(inputs)).numpy() for b in ("aux0", "main")
        )
    assert np.abs(found - own).max() < 1e-4 * max(1, np.abs(own).max())
    assert np.abs(found - other).max() > 0.1


@pytest.mark.slow
def test_what_does_not_fit_is_refused_and_nothing_is_written(checkpoint, base, variant, tmp_path):
    output = tmp_path / "out.onnx"
    output.write_bytes(b"good")
    folded = tmp_path / "folded.onnx"
    export_onnx(checkpoint, "main", folded, PIXELS)
    pixels = tmp_path / "pixels.onnx"
    export_onnx(checkpoint, "main", pixels, PIXELS, form=PATCHABLE, uint8=True)
    found = load_variant(variant)

    def changed(name, drop=None, **fields):
        tensors = {k: t for k, t in found.tensors.items() if k.rpartition(".")[0] != drop}
        path = tmp_path / f"{name}.safetensors"
        save_variant(dataclasses.replace(found, tensors=tensors, **fields), path)
        return path

    other_mean = structs.replace(found.spec, mean=(0.5, 0.5, 0.5))
    for onnx_file, patch, message in (
        (folded, variant, "expected a patchable file"),
        (base, changed("others", weights_sha256="0" * 64), "expected a variant for the weights"),
        (base, changed("short", drop="bn1"), "expected the tensor 'bn1.bias'"),
        (pixels, changed("mean", spec=other_mean), "expected mean"),
        (base, base, "expected a variant"),
        (variant, variant, "expected an ONNX network"),
    ):
        with pytest.raises(InputError, match=message):
            patch_file(onnx_file, patch, output)
    assert output.read_bytes() == b"good"


def test_a_changed_base_is_refused(base, variant, tmp_path):
    model = onnx.load(base)
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    base.write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match="expected the contents that were written"):
        patch_file(base, variant, tmp_path / "p.onnx")


def test_tensors_that_the_runtime_ignores_are_noticed(base, variant, monkeypatch):
    monkeypatch.setattr("recal.onnx_file.patch.noise_difference", lambda *_, **__: 0.0)
    with pytest.raises(VerificationError, match="does not use the new tensors"):
        patch_model(read_model(base), load_variant(variant), "base", "variant")


def test_a_folder_that_cannot_be_written_is_an_error(base, variant):
    with pytest.raises(RecalError, match="cannot be written"):
        patch_file(base, variant, base / "below" / "a-file.onnx")


def test_variant_files_are_read_and_written_without_torch(variant, tmp_path):
    code = """
import sys
sys.modules["torch"] = None
from recal.variant.variant import load_variant, save_variant
found = load_variant(sys.argv[1])
save_variant(found, sys.argv[2])
print(found.label, found.sha256)
"""
    command = [sys.executable, "-c", code, variant, tmp_path / "again.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    known = load_variant(variant)
    assert done.stdout == f"{known.label} {known.sha256}\n"
    assert (tmp_path / "again.safetensors").read_bytes() == variant.read_bytes()


def foreign_model():
    """Return a network with BatchNorm that another exporter could have written."""
    rng = np.random.default_rng(0)
    arrays = {
        "k": rng.standard_normal((4, 3, 3, 3)), "g": np.ones(4), "b": np.zeros(4),
        "m": rng.standard_normal(4), "v": np.full(4, 2.0), "w": rng.standard_normal((4, 2)),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"], epsilon=1e-5),
        helper.make_node("GlobalAveragePool", ["n"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)


def test_foreign_files_are_recalibrated_and_patched_too(checkpoint, tmp_path):
    """Against the closed form: one convolution in float64, moments of all values."""
    from numpy.lib.stride_tricks import sliding_window_view

    model, spec = foreign_model(), checkpoint.spec
    source, policy = ArraySource(tmp_path, PIXELS, None), load_policy("cifar", "clean")
    images = PreparedImages(source, policy, 0, spec.preparation)
    variant = recalibrate(model, images, spec, samples=None, batch_size=32, where="foreign")
    x = (PIXELS / 255 - np.array(spec.mean)) / np.array(spec.std)
    padded = np.pad(x.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (1, 1), (1, 1)))
    kernel = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    values = np.einsum("nchwij,ocij->onhw", sliding_window_view(padded, (3, 3), (2, 3)), kernel)
    flat = values.reshape(4, -1)
    np.testing.assert_allclose(variant.tensors["m.running_mean"], flat.mean(1), atol=1e-5)
    np.testing.assert_allclose(variant.tensors["m.running_var"], flat.var(1), rtol=1e-5)
    patched = patch_model(model, variant, "foreign", "variant")
    arrays = {t.name: numpy_helper.to_array(t) for t in patched.graph.initializer}
    np.testing.assert_array_equal(arrays["v"], variant.tensors["m.running_var"])
    other = foreign_model()
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    with pytest.raises(InputError, match="expected a variant for the weights"):
        patch_model(other, variant, "foreign", "variant")


def test_preparation_without_torch_is_torchvisions():
    from PIL import Image
    from torchvision.transforms import InterpolationMode, v2

    rng = np.random.default_rng(0)
    for height, width in ((28, 28), (33, 47), (64, 31), (256, 341), (20, 90), (29, 28)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for own, theirs in (
            (Pad(size=32), v2.CenterCrop(32)),
            (CenterCrop(size=27), v2.CenterCrop(27)),
            (Resize(size=40), v2.Resize(40, InterpolationMode.BICUBIC)),
            (Resize(size=40, interpolation="bilinear"), v2.Resize(40)),
        ):
            np.testing.assert_array_equal(
                np.asarray(own.transform(Preparation(size=32))(image)), np.asarray(theirs(image))
            )
