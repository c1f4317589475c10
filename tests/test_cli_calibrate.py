"""`recal calibrate`, as people call it."""

import shlex

import numpy as np
import pytest

from recal.variant.statistics import BranchStatistics
from recal.variant.variant import load_variant


def test_calibrate_writes_a_variant_and_says_what_it_did(
    recal, split_checkpoint, class_folders, tmp_path
):
    status, out, _ = recal(
        "calibrate", split_checkpoint, "--mode", "strong", "--data", class_folders,
        "-o", "v.safetensors", "--samples", 30, "--workers", 0,
    )  # fmt: skip
    assert status == 0
    assert "weight and bias of branch 'aux0'" in out
    assert "7 layers from 30 images (pooled, batches of 128, seed 0)" in out
    assert load_variant(tmp_path / "v.safetensors").affine == "aux0"


def test_without_a_checkpoint_the_bundled_sample_is_used_and_said_so_first(recal, tmp_path):
    status, _, err = recal("calibrate", "--mode", "weak", "--samples", 64, "--workers", 0)
    assert status == 0
    assert err.startswith("No checkpoint given: using the bundled Fashion-MNIST sample.\n")
    variant = load_variant(next(tmp_path.glob("*.safetensors")))
    assert variant.spec.family == "sample"


def test_project_file_gives_the_defaults_and_options_go_before_it(
    recal, split_checkpoint, class_folders, tmp_path
):
    (tmp_path / "recal.toml").write_text(
        f"[model]\ncheckpoint = '{split_checkpoint}'\narch = 'wrn10_1'\nmean = [0.4, 0.4, 0.4]\n"
        f"[data]\ndata = '{class_folders}'\nworkers = 0\n"
        "[calibrate]\nbatch-size = 20\nseed = 5\noutput = 'v.safetensors'\n",
        encoding="utf-8",
    )
    status, _, err = recal("calibrate", "--mode", "weak", "--seed", 6)
    assert (status, err) == (0, "")
    variant = load_variant(tmp_path / "v.safetensors")
    assert variant.spec.mean == (0.4, 0.4, 0.4)
    assert variant.statistics.batch_size == 20
    assert variant.statistics.seed == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[calibrate]\ntrust = true", "calibrate: expected one of mode,"),
        ("[calibrate]\nsample = 3", "got 'sample'. Did you mean 'samples'?"),
        ("[modle]\n", "Did you mean 'model'?"),
        ("[model]\nachr = 'x'", "recal.toml: model: expected one of"),
        ("[model", "expected TOML"),
        ("[model]\nsize = {}", "model: size: expected an integer >= 1, got {}"),
        ("[model]\nmean = [[1], 2, 3]", "model: mean 1: expected a number, got [1]"),
        ("[model]\ncheckpoint = true", "model: checkpoint: expected a string, got True"),
        ("[calibrate]\nmatrix = 1", "calibrate: matrix: expected true or false, got 1"),
    ],
)
def test_a_slip_in_the_project_file_is_refused(recal, tmp_path, text, message):
    (tmp_path / "recal.toml").write_text(text, encoding="utf-8")
    status, _, err = recal("calibrate")
    assert status == 3
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--mode", "wek"], 2, "Did you mean 'weak'?"),
        (["--mean", "124,116,104"], 3, "Divide them by 255"),
        (["--mean", "1,2"], 3, "expected 3 numbers, one for each channel"),
        (["--std", "0,0.2,0.2"], 3, "expected positive numbers"),
        (["--arch", "wrn11_1"], 2, "depth is 6 n + 4"),
        (["--arch", "wrn16_1"], 3, "weights and architecture do not fit: missing block1.layer.1"),
        (["--arch", "timm:resnt18"], 2, "timm has no model 'resnt18'"),
        (["--arch", "torchvision:resnet19"], 2, "Did you mean 'resnet1"),
        (["--family", "cfar"], 2, "Did you mean 'cifar'?"),
        (["--affine", "aux9"], 2, "expected a branch out of main, aux0"),
        (["--device", "gpu9"], 2, "--device"),
        (["--estimator", "exact"], 2, "expected one of consistent, ema"),
        (["--data", "nowhere"], 3, "nowhere: expected a folder of images, but it does not exist"),
        (["--classes", "12"], 3, "expected shape (12"),
    ],
)
def test_wrong_requests_end_in_one_line_and_leave_nothing(
    recal, split_checkpoint, class_folders, tmp_path, arguments, status, message
):
    before = set(tmp_path.iterdir())
    data = [] if "--data" in arguments else ["--data", class_folders]
    found, _, err = recal("calibrate", split_checkpoint, *data, "--workers", 0, *arguments)
    assert found == status
    assert message in err
    assert "Traceback" not in err
    assert set(tmp_path.iterdir()) == before


def test_missing_data_name_the_places(recal, split_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("RECAL_DATA", str(tmp_path / "mine"))
    status, _, err = recal("calibrate", split_checkpoint)
    assert status == 3
    environment = f"$RECAL_DATA ({tmp_path / 'mine'})"
    for place in ("--data", "recal.toml", environment, "./data", "no-cache"):
        assert place in err


def test_data_are_found_below_the_environments_folder(
    recal, split_checkpoint, class_folders, monkeypatch, tmp_path
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cifar10").symlink_to(class_folders)
    monkeypatch.setenv("RECAL_DATA", str(tmp_path / "mine"))
    status, out, _ = recal("calibrate", split_checkpoint, "--mode", "clean", "--workers", 0)
    assert status == 0
    assert "from 60 images" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected"),
        (b"no checkpoint at all", "expected"),
        (b"PK\x03\x04 half a zip", "expected"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(recal, tmp_path, content, message):
    (tmp_path / "file.pth").write_bytes(content)
    status, _, err = recal("calibrate", "file.pth")
    assert status == 3
    assert err.startswith("recal: file.pth: expected")
    assert err.count("\n") == 1


def test_a_network_without_batchnorm_is_refused(recal, tmp_path):
    import torch

    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "plain.pth")
    status, _, err = recal("calibrate", "plain.pth")
    assert status == 3
    assert "expected a network with BatchNorm" in err


def test_interrupt_ends_cleanly(recal, monkeypatch, split_checkpoint, class_folders, tmp_path):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("recal.calibration.calibrate.calibrate_matrix", interrupted)
    status, _, err = recal("calibrate", split_checkpoint, "--data", class_folders)
    assert status == 130
    assert err.strip() == "recal: interrupted"
    assert not list(tmp_path.glob("*.safetensors"))


CODE = """
from pathlib import Path
from recal.networks.names import create_network

def make(classes=10):
    Path("ran").touch()
    return create_network("wrn10_1", 10)
"""


def test_code_named_by_a_project_file_runs_only_on_trust(
    recal, split_checkpoint, class_folders, tmp_path
):
    (tmp_path / "mine.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "recal.toml").write_text(
        f"[model]\ncheckpoint = '{split_checkpoint}'\narch = 'python:mine.py:make'\n"
        f"[data]\ndata = '{class_folders}'\nworkers = 0\n",
        encoding="utf-8",
    )
    status, _, err = recal("calibrate")
    assert status == 2
    assert "--trust" in err
    assert not (tmp_path / "ran").exists()
    status, _, err = recal("calibrate", "--trust")
    assert (status, err) == (0, "")
    assert (tmp_path / "ran").exists()


def test_code_named_by_a_variant_file_is_not_run(recal, split_checkpoint, class_folders, tmp_path):
    (tmp_path / "mine.py").write_text(CODE, encoding="utf-8")
    made = ["calibrate", split_checkpoint, "--data", class_folders, "--workers", 0]
    status, _, err = recal(*made, "--arch", "python:mine.py:make", "-o", "v.safetensors")
    assert (status, err) == (0, "")
    (tmp_path / "ran").unlink()
    used = ["eval", "v.safetensors", "--checkpoint", split_checkpoint, "--data", class_folders]
    status, _, err = recal(*used, "--suite", "cifar10")
    assert status != 0
    assert not (tmp_path / "ran").exists()
    status, _, err = recal(*used, "--suite", "cifar10", "--arch", "python:mine.py:make")
    assert status == 0, err
    assert (tmp_path / "ran").exists()


def test_matrix_writes_every_affine_with_every_statistics(
    recal, split_checkpoint, class_folders, tmp_path
):
    arguments = [split_checkpoint, "--data", class_folders, "--workers", 0]
    status, out, err = recal("calibrate", *arguments, "--matrix", "-o", "table")
    assert (status, err) == (0, "")
    names = {path.stem for path in (tmp_path / "table").iterdir()}
    policies = {f"{a}-{m}" for a in ("main", "aux0") for m in ("clean", "weak", "strong")}
    assert names == policies | {"main-aux0", "aux0-main"}
    crossed = load_variant(tmp_path / "table/main-aux0.safetensors")
    assert crossed.label == "main, statistics of aux0"
    assert "Wrote 8 variants" in out
    recal("calibrate", *arguments, "--mode", "strong", "-o", "alone.safetensors")
    table = tmp_path / "table/aux0-strong.safetensors"
    assert table.read_bytes() == (tmp_path / "alone.safetensors").read_bytes()


def test_a_branchs_stored_statistics_go_with_anothers_affine(recal, split_checkpoint, tmp_path):
    status, out, _ = recal(
        "calibrate", split_checkpoint, "--affine", "aux0", "--statistics", "main", "-o", "v"
    )
    assert status == 0
    assert "Wrote v: aux0, statistics of main." in out
    assert load_variant(tmp_path / "v").statistics == BranchStatistics(branch="main")


def test_precision_is_said_and_so_is_a_tolerance_out_of_reach(
    recal, split_checkpoint, class_folders, tmp_path
):
    arguments = [split_checkpoint, "--data", class_folders, "--workers", 0, "-o", "v"]
    status, out, err = recal("calibrate", *arguments, "--tolerance", "0.01")
    assert status == 0
    assert "95 % error bounds: means within" in out
    assert "tolerance 0.01 is not reached: all 60 images give a bound of" in err
    status, out, err = recal("calibrate", *arguments, "--tolerance", "0.95")
    assert (status, err) == (0, "")
    assert "Stopped after 60 images" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "clean,weak"], "--mode: expected one without --matrix, got 2"),
        (["--affine", "main,aux0"], "--affine: expected one without --matrix, got 2"),
        (["--statistics", "aux0", "--mode", "weak"], "--mode: with --statistics nothing is"),
        (["--statistics", "aux0", "--samples", "9"], "--data: with --statistics nothing is"),
        (["--autocast", "int8"], "'int8' is not one of"),
        (["--mode", "weak", "--policy", "a.toml"], "--mode: expected it instead of --policy"),
        (["--tolerance", "2"], "--tolerance: expected a relative error between 0 and 1"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    recal, split_checkpoint, class_folders, tmp_path, arguments, message
):
    status, _, err = recal("calibrate", split_checkpoint, "--data", class_folders, *arguments)
    assert status == 2
    assert message in err
    assert not list(tmp_path.glob("*.safetensors"))


def test_autocast_changes_the_forward_pass_and_is_recorded(
    recal, split_checkpoint, class_folders, tmp_path
):
    arguments = [split_checkpoint, "--data", class_folders, "--workers", 0, "--mode", "clean"]
    assert recal("calibrate", *arguments, "-o", "full")[0] == 0
    assert recal("calibrate", *arguments, "-o", "half", "--autocast", "bfloat16")[0] == 0
    full, half = (load_variant(tmp_path / name) for name in ("full", "half"))
    assert half.statistics.autocast == "torch.bfloat16"
    assert full.sha256 != half.sha256
    for name, tensor in full.tensors.items():
        if name.endswith("running_var"):
            assert np.abs(half.tensors[name] / tensor - 1).max() < 0.05


def test_the_next_command_has_the_options_that_were_typed(
    recal, split_checkpoint, class_folders, tmp_path
):
    options = ["--family", "cifar", "--std", "0.2,0.2,0.3"]
    _, out, _ = recal(
        "calibrate", split_checkpoint, "--data", class_folders, "-o", "v.st", *options
    )
    data = f"--data {class_folders}"  # its test images are others
    following = f"recal eval {split_checkpoint} v.st {data} --family cifar --std 0.2,0.2,0.3"
    assert following in out
    status, out, _ = recal(*shlex.split(following)[1:])
    assert status == 0
    (tmp_path / "recal.toml").write_text("[model]\nfamily = 'cifar'\n", encoding="utf-8")
    _, out, _ = recal("calibrate", split_checkpoint, "--data", class_folders, "-o", "v.st")
    assert f"Next: recal eval {split_checkpoint} v.st {data}\n" in out


def test_broken_images_are_named_and_left_out_only_on_request(
    recal, split_checkpoint, class_folders, tmp_path
):
    folder = tmp_path / "camera"
    folder.mkdir()
    for i, path in enumerate(sorted(class_folders.glob("train/*/*.png"))[:30]):
        (folder / f"{i:02d}.png").write_bytes(path.read_bytes()[: 40 if i in (4, 9) else None])
    arguments = [split_checkpoint, "--data", folder, "--batch-size", 10, "-o", "v"]
    status, _, err = recal("calibrate", *arguments)
    assert status == 3
    assert "2 out of 30 that cannot be decoded" in err
    assert "04.png" in err
    assert not (tmp_path / "v").exists()
    status, out, err = recal("calibrate", *arguments, "--skip-broken")
    assert status == 0
    assert "from 28 images" in out
    assert "warning: 2 images cannot be decoded and were left out:" in err
    assert set(load_variant(tmp_path / "v").statistics.skipped) == {"04.png", "09.png"}
    status, _, err = recal("calibrate", *arguments, "--skip-broken", "--min-samples", 29)
    assert status == 3
    assert "expected at least 29 images, got 28" in err
