"""`recal export`, as people call it."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from recal.export.proof import Tolerance
from recal.onnx_file.session import OnnxNetwork


@pytest.mark.slow
def test_export_of_a_branch_says_how_it_was_compared(recal, split_checkpoint, tmp_path):
    status, out, _ = recal("export", split_checkpoint, "--variant", "aux0", "-o", "m.onnx")
    assert status == 0
    assert "Wrote m.onnx: aux0" in out
    assert "on 256 bundled Fashion-MNIST images: largest difference of a logit" in out
    assert "Largest difference from branch 'main'" in out
    assert OnnxNetwork(tmp_path / "m.onnx").record.title == "aux0"


@pytest.mark.slow
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


@pytest.mark.slow
def test_export_refuses_what_does_not_fit(recal, split_checkpoint, tmp_path):
    (tmp_path / "odd.safetensors").write_bytes(b"odd")
    for arguments, status, message in (
        (["--variant", "aux3"], 2, "expected a branch out of main, aux0, got 'aux3'"),
        (
            ["--variant", "v.safetensors"],
            3,
            "v.safetensors: expected a checkpoint or a variant, but it does not",
        ),
        (["--variant", "odd.safetensors"], 3, "odd.safetensors: expected"),
        (["-o", "/proc/no/m.onnx"], 1, "cannot be written"),
        (["--data", "nowhere"], 3, "but it does not exist"),
    ):
        found, _, err = recal("export", split_checkpoint, *arguments)
        assert found == status, err
        assert message in err
    assert not list(tmp_path.glob("*.onnx"))


def test_failed_proof_exits_with_4(recal, split_checkpoint, monkeypatch, tmp_path):
    tight = Tolerance(images=1e-12, hostile=1e-3)
    monkeypatch.setattr("recal.export.forms.Float32.allowed", tight)
    monkeypatch.setattr("recal.export.proof.SLACK", 0.0)
    status, _, err = recal("export", split_checkpoint, "-o", "m.onnx")
    assert status == 4
    assert "No file was written" in err
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.slow
def test_accuracies_come_from_a_run_of_the_same_variant(
    recal, split_checkpoint, class_folders, tmp_path
):
    recal(
        "eval", f"{split_checkpoint}:main", "--suite", "cifar10", "--data", class_folders,
        "-o", "run",
    )  # fmt: skip
    (tmp_path / "names.txt").write_text(
        "\n".join(f"thing {i}" for i in range(10)), encoding="utf-8"
    )
    status, _, err = recal(
        "export", split_checkpoint, "-o", "m.onnx", "--run", "run", "--class-names", "names.txt"
    )
    assert status == 0, err
    record = OnnxNetwork(tmp_path / "m.onnx").record
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))[
        "summary"
    ][0]
    assert record.accuracies.clean_accuracy == summary["clean_accuracy"]
    assert record.classes[3] == "thing 3"
    for arguments, message in (
        (["--variant", "aux0", "--run", "run"], "expected a run of the variant that is exported"),
        (["--run", "nowhere"], "nowhere: expected the folder of a run"),
    ):
        status, _, err = recal("export", split_checkpoint, "-o", "n.onnx", *arguments)
        assert status == 3
        assert message in err
    assert not (tmp_path / "n.onnx").exists()


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # what a full disk would hold
sys.argv = ["recal", *sys.argv[1:]]
from recal.cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["export", "patch"])
def test_a_disk_that_is_full_leaves_the_good_file_and_nothing_else(
    recal, split_checkpoint, class_folders, tmp_path, command
):
    recal("export", split_checkpoint, "--patchable", "-o", "base.onnx")
    recal("calibrate", split_checkpoint, "--data", class_folders, "-o", "v.safetensors")
    target = tmp_path / "out" / "m.onnx"
    target.parent.mkdir()
    target.write_bytes(b"good")
    arguments = {"export": [split_checkpoint], "patch": ["base.onnx", "v.safetensors"]}[command]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, command, *map(str, arguments), "-o", str(target)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "m.onnx: cannot be written (File too large)" in done.stderr
    assert "Traceback" not in done.stderr
    assert target.read_bytes() == b"good"
    assert [p.name for p in target.parent.iterdir()] == ["m.onnx"]


@pytest.mark.slow
def test_a_folder_that_is_read_only_is_told_and_stays_as_it_is(
    recal, split_checkpoint, tmp_path, monkeypatch
):
    """By the error that the system gives, because the owner of all files passes over modes."""
    target = tmp_path / "m.onnx"
    target.write_bytes(b"good")

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("recal.files.tempfile.mkstemp", read_only)
    status, _, err = recal("export", split_checkpoint, "-o", target)
    assert status == 1
    assert "m.onnx: cannot be written (Read-only file system)" in err
    assert target.read_bytes() == b"good"


def test_networks_of_ones_own_are_exported_and_culprits_named(recal, tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Odd(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.special.bessel_j0(x)\n"
        "def make(num_classes, act=nn.ReLU):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(act()),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))\n"
        "def odd(num_classes):\n"
        "    return make(num_classes, Odd)\n",
        encoding="utf-8",
    )
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Sequential(torch.nn.ReLU()),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 10),
    )  # fmt: skip
    torch.save(network.state_dict(), tmp_path / "c.pth")
    status, _, err = recal("export", "c.pth", "--arch", "python:net.py:make", "-o", "m.onnx")
    assert status == 0, err
    status, _, err = recal("export", "c.pth", "--arch", "python:net.py:odd", "-o", "odd.onnx")
    assert status == 3
    assert "2.0 (Odd): expected operations that ONNX has" in err
    assert "bessel_j0" in err
    assert not (tmp_path / "odd.onnx").exists()
