"""`recal verify`, as people call it."""

import pytest


@pytest.mark.slow
def test_verify_alone_and_against_a_checkpoint(recal, split_checkpoint, class_folders, tmp_path):
    recal("export", split_checkpoint, "--variant", "aux0", "-o", "m.onnx")
    status, out, _ = recal("verify", "m.onnx")
    assert status == 0
    assert "aux0, unchanged since it was written" in out
    status, out, err = recal(
        "verify", "m.onnx", "--checkpoint", split_checkpoint, "--data", class_folders
    )
    assert status == 0, err
    assert "the same bytes when exported again" in out
    assert "From 'main'" in out
    for arguments, expected, message in (
        (
            ["--checkpoint", split_checkpoint, "--variant", "main"],
            4,
            "variants 1: sha256: expected",
        ),
        (["--variant", "main"], 2, "--variant: expected --checkpoint too"),
        (["--samples", "9"], 2, "--samples: expected --checkpoint too"),
        (["--provider", "cpu"], 2, "--provider: expected one of"),
        (
            ["--provider", "CPUExecutionProvider", "--checkpoint", split_checkpoint],
            2,
            "--checkpoint: expected it without --provider",
        ),
    ):
        status, _, err = recal("verify", "m.onnx", *arguments)
        assert status == expected
        assert message in err
    content = bytearray((tmp_path / "m.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "m.onnx").write_bytes(content)
    status, _, err = recal("verify", "m.onnx")
    assert status == 4
    assert "expected the contents that were written" in err
