"""`recal patch`, as people call it."""

import pytest

from recal.onnx_file.session import OnnxNetwork


@pytest.mark.slow
def test_patch_puts_a_variant_into_a_base_file(recal, split_checkpoint, class_folders, tmp_path):
    recal("calibrate", split_checkpoint, "--data", class_folders, "-o", "v.safetensors")
    recal("export", split_checkpoint, "--patchable", "-o", "m.onnx")
    status, out, err = recal("patch", "m.onnx", "v.safetensors")
    assert status == 0, err
    assert "Wrote m-v.onnx: main, weak statistics" in out
    (held,) = OnnxNetwork(tmp_path / "m-v.onnx").record.variants
    assert held.statistics.policy == "weak"
    recal("export", split_checkpoint, "-o", "folded.onnx")
    status, _, err = recal("patch", "folded.onnx", "v.safetensors", "-o", "x.onnx")
    assert status == 3
    assert "Export it with --patchable" in err
    assert not (tmp_path / "x.onnx").exists()
