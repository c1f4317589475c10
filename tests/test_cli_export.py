"""`recal export`, as people call it."""

import json

from recal.deploy.proof import Tolerance
from recal.deploy.runtime import OnnxNetwork


def test_export_of_a_branch_says_how_it_was_compared(recal, split_checkpoint, tmp_path):
    status, out, _ = recal("export", split_checkpoint, "--variant", "aux0", "-o", "m.onnx")
    assert status == 0
    assert "Wrote m.onnx: aux0" in out
    assert "on 256 bundled Fashion-MNIST images: largest difference of a logit" in out
    assert "Largest difference from branch 'main'" in out
    assert OnnxNetwork(tmp_path / "m.onnx").metadata["variant"] == "aux0"


def test_export_of_a_variant_compares_on_the_users_images(
    recal, split_checkpoint, class_folders, tmp_path
):
    recal("calibrate", split_checkpoint, "--data", class_folders, "-o", "v.safetensors")
    status, out, _ = recal(
        "export", split_checkpoint, "--variant", "v.safetensors", "--data", class_folders
    )
    assert status == 0
    assert f"on 40 images of {class_folders / 'test'}" in out
    assert (tmp_path / "split-v.onnx").is_file()


def test_export_refuses_what_does_not_fit(recal, split_checkpoint, tmp_path):
    for arguments, status, message in (
        (["--variant", "aux3"], 2, "expected a branch out of main, aux0, got 'aux3'"),
        (["--variant", "v.safetensors"], 3, "v.safetensors: expected a variant, got nothing there"),
        (["--variant", str(split_checkpoint)], 3, "expected a variant"),
        (["-o", "/proc/no/m.onnx"], 1, "cannot be written"),
        (["--data", "nowhere"], 3, "got nothing there"),
    ):
        found, _, err = recal("export", split_checkpoint, *arguments)
        assert found == status, err
        assert message in err
    assert not list(tmp_path.glob("*.onnx"))


def test_failed_proof_exits_with_4(recal, split_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr("recal.deploy.export.FLOAT32", Tolerance(images=1e-12, hostile=1e-3))
    monkeypatch.setattr("recal.deploy.proof.SLACK", 0.0)
    status, _, err = recal("export", split_checkpoint, "-o", "m.onnx")
    assert status == 4
    assert "No file was written" in err
    assert not (tmp_path / "m.onnx").exists()


def test_accuracies_come_from_a_run_of_the_same_variant(
    recal, split_checkpoint, class_folders, tmp_path
):
    recal(
        "eval", f"{split_checkpoint}:main", "--suite", "cifar10", "--data", class_folders,
        "-o", "run",
    )  # fmt: skip
    (tmp_path / "names.txt").write_text("\n".join(f"thing {i}" for i in range(10)))
    status, _, err = recal(
        "export", split_checkpoint, "-o", "m.onnx", "--run", "run", "--class-names", "names.txt"
    )
    assert status == 0, err
    metadata = OnnxNetwork(tmp_path / "m.onnx").metadata
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["summary"][0]
    assert metadata["accuracies"]["clean_accuracy"] == summary["clean_accuracy"]
    assert metadata["classes"][3] == "thing 3"
    for arguments, message in (
        (["--variant", "aux0", "--run", "run"], "expected a run of the variant that is exported"),
        (["--run", "nowhere"], "nowhere: expected the folder of a finished run"),
    ):
        status, _, err = recal("export", split_checkpoint, "-o", "n.onnx", *arguments)
        assert status == 3
        assert message in err
    assert not (tmp_path / "n.onnx").exists()
