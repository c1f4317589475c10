"""Statistics that ONNX Runtime estimates are those of the PyTorch path."""

import numpy as np
import pytest

from recal import calibrate, export_onnx, load_checkpoint
from recal.bn.variant import load_variant
from recal.deploy.export import ExportOptions

PIXELS = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("form", [{}, {"uint8": True}, {"opset": 15}], ids=str)
@pytest.mark.parametrize("mode", ["clean", "strong"])
def test_same_numbers_as_pytorch(recal, split_checkpoint, class_folders, tmp_path, mode, form):
    checkpoint = load_checkpoint(split_checkpoint)
    options = ExportOptions(patchable=True, **form)
    export_onnx(checkpoint, "aux0", tmp_path / "m.onnx", PIXELS, options=options)
    status, out, err = recal(
        "calibrate", "m.onnx", "--data", class_folders, "--mode", mode, "-o", "v.safetensors",
        "--batch-size", "17",
    )  # fmt: skip
    assert status == 0, err
    assert "by ONNX Runtime" in out
    found = load_variant(tmp_path / "v.safetensors")
    expected = calibrate(
        checkpoint, mode=mode, affine="aux0", data=class_folders, estimator="consistent"
    )
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        scale = 1.0
        if name.endswith("running_mean"):
            scale = np.sqrt(expected.tensors[name.replace("mean", "var")].numpy())
        elif name.endswith("running_var"):
            scale = tensor.numpy()
        difference = np.abs(found.tensors[name].numpy() - tensor.numpy()) / scale
        assert difference.max() < 1e-5, name
    same = {**expected.statistics, "batch_size": 17}
    assert found.statistics == same, "images, draws and policy are the same"
    moved = "block1.layer.0.bn1.running_mean"
    stored = checkpoint.branch("aux0")[moved]
    assert (found.tensors[moved] - stored).abs().max() > 0.01


def test_a_device_recalibrates_itself(recal, split_checkpoint, class_folders):
    for arguments in (
        ["export", split_checkpoint, "--patchable", "-o", "m.onnx"],
        ["calibrate", "m.onnx", "--mode", "clean", "--data", class_folders, "-o", "v.safetensors"],
        ["patch", "m.onnx", "v.safetensors", "-o", "p.onnx"],
        ["verify", "p.onnx"],
        ["verify", "p.onnx", "--checkpoint", split_checkpoint, "--variant", "v.safetensors"],
    ):
        status, out, err = recal(*arguments)
        assert status == 0, (arguments, err)
    assert "the same bytes when exported again" in out


def test_what_cannot_be_recalibrated_says_why(recal, split_checkpoint, class_folders):
    recal("export", split_checkpoint, "-o", "folded.onnx")
    recal("export", split_checkpoint, "-o", "m.onnx", "--patchable")
    for arguments, status, message in (
        (["folded.onnx"], 3, "expected a patchable file"),
        (["m.onnx", "--affine", "aux0"], 2, "an ONNX file holds one branch only"),
        (["m.onnx", "--estimator", "pooled"], 2, "only 'consistent'"),
        (["none.onnx"], 3, "expected an ONNX file, got nothing there"),
        (["m.onnx", "--mode", "odd"], 2, "--mode"),
    ):
        found, _, err = recal("calibrate", *arguments, "--data", class_folders)
        assert found == status, err
        assert message in err
