"""The command that is suggested at the end of another: it can be run as it is printed."""

import glob
import json
import shlex
import shutil

import pytest
import torch

from recal.networks.names import create_network
from recal.onnx_file.record import read_record
from tests.dual_networks import NORMS, randomise


def suggested(out):
    """Return the words after `Next: recal`, as a shell would pass them on."""
    (line,) = (line for line in out.splitlines() if "Next: " in line)
    words = shlex.split(line.partition("Next: ")[2])
    assert words.pop(0) == "recal"
    return [name for word in words for name in (sorted(glob.glob(word)) or [word])]  # noqa: PTH207


@pytest.fixture
def awkward(tmp_path, class_folders):
    """A file that is read rightly only with every option, in folders whose names need quoting."""
    torch.manual_seed(0)
    own, other = (create_network("wrn10_1", 10) for _ in range(2))
    for network in (own, other):
        for path, layer in [*network.named_modules()]:
            if isinstance(layer, torch.nn.BatchNorm2d):
                parent, _, name = path.rpartition(".")
                setattr(network.get_submodule(parent), name, NORMS["acl"](layer.num_features))
        randomise(network)
    folder = tmp_path / "my files; $(x)"
    folder.mkdir()
    content = {"state_dict": own.state_dict(), "state_dict_ema": other.state_dict()}
    torch.save(content, folder / "it's.pth")
    shutil.copytree(class_folders, tmp_path / "pictures and labels")
    return folder / "it's.pth", tmp_path / "pictures and labels"


READ = ("--layout", "acl-reversed", "--ema", "--arch", "wrn10_1", "--mean", "0.5,0.5,0.25",
        "--std", "0.5,0.5,0.125", "--classes", "10", "--family", "cifar", "--bn-act",
        "--size", "32")  # fmt: skip


def test_calibrate_suggests_an_evaluation_of_the_same_network(recal, awkward):
    path, data = awkward
    status, out, err = recal(
        "calibrate", path, "--data", data, "--samples", 40, "-o", "a b.safetensors", *READ
    )
    assert status == 0, err
    words = suggested(out)
    assert words[:3] == ["eval", str(path), "a b.safetensors"]
    status, out, err = recal(*words, "--json", "-o", "run")
    assert status == 0, err
    found = json.loads(out)
    # the reference: the same evaluation with everything said by hand
    _, out, _ = recal("eval", path, "a b.safetensors", "--data", data, *READ, "--json", "-o", "by")
    for key in ("clean_accuracy", "target"):
        assert [r[key] for r in found["summary"]] == [r[key] for r in json.loads(out)["summary"]]
    for option in READ:
        assert option in words


def test_matrix_and_sweep_suggest_what_can_be_run(recal, awkward):
    path, data = awkward
    for command in (
        ("calibrate", path, "--data", data, "--samples", 20, "--matrix", "--mode", "clean",
         "-o", "all of them", *READ),
        ("mix", f"{path}:main", f"{path}:aux0", "--sweep", 2, "-o", "a path", *READ),
    ):  # fmt: skip
        status, out, err = recal(*map(str, command))
        assert status == 0, err
        words = suggested(out)
        extra = () if "--data" in words else ("--data", data)
        status, _, err = recal(*words, *extra, "--limit", 20)
        assert status == 0, err


def test_options_that_say_nothing_about_reading_are_left_out(recal, split_checkpoint, tmp_path):
    rows = torch.randint(0, 256, (20, 32, 32, 3), dtype=torch.uint8).numpy()
    import numpy as np

    np.save(tmp_path / "images.npy", rows)
    status, out, _ = recal(
        "calibrate", split_checkpoint, "--data", tmp_path / "images.npy", "--seed", 3,
        "--batch-size", 10, "-o", "v.st",
    )  # fmt: skip
    assert status == 0
    assert suggested(out) == ["eval", str(split_checkpoint), "v.st"]


def test_onnx_file_is_patched_as_suggested(recal, exported, class_folders, tmp_path):
    (tmp_path / "my model.onnx").write_bytes(exported("--patchable"))
    status, out, err = recal(
        "calibrate", "my model.onnx", "--data", class_folders, "--samples", 20, "-o", "w x.st",
        "--family", "cifar",
    )  # fmt: skip
    assert status == 0, err
    status, _, err = recal(*suggested(out), "-o", "patched.onnx")
    assert status == 0, err
    import onnx

    assert read_record(onnx.load(tmp_path / "patched.onnx"), "p").title != "main"
