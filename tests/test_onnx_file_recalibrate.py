"""Statistics that ONNX Runtime estimates are those of the PyTorch path."""

import warnings

import numpy as np
import pytest
import torch
from msgspec import structs

from recal import build, calibrate, export_onnx, load_checkpoint
from recal.export.forms import Patchable
from recal.networks.names import create_network
from recal.onnx_file.session import OnnxNetwork
from recal.variant.variant import load_variant

PIXELS = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("form", [{}, {"uint8": True}, {"opset": 15}], ids=str)
@pytest.mark.parametrize("mode", ["clean", "strong"])
def test_same_numbers_as_pytorch(recal, split_checkpoint, class_folders, tmp_path, mode, form):
    checkpoint = load_checkpoint(split_checkpoint)
    export_onnx(checkpoint, "aux0", tmp_path / "m.onnx", PIXELS, form=Patchable(), **form)
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
            scale = np.sqrt(expected.tensors[name.replace("mean", "var")])
        elif name.endswith("running_var"):
            scale = tensor
        difference = np.abs(found.tensors[name] - tensor) / scale
        assert difference.max() < 1e-5, name
    own = {"batch_size": 17, "passes": 7, "errors": found.statistics.errors}
    assert found.statistics == structs.replace(expected.statistics, **own), "same images and draws"
    for layer, error in expected.statistics.errors.items():
        assert structs.asdict(found.statistics.errors[layer]) == pytest.approx(
            structs.asdict(error), rel=2e-3
        ), layer
    moved = "block1.layer.0.bn1.running_mean"
    stored = checkpoint.branch("aux0")[moved]
    assert np.abs(found.tensors[moved] - stored.numpy()).max() > 0.01


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_cannot_be_recalibrated_says_why(recal, split_checkpoint, class_folders):
    recal("export", split_checkpoint, "-o", "folded.onnx")
    recal("export", split_checkpoint, "-o", "m.onnx", "--patchable")
    for arguments, status, message in (
        (["folded.onnx"], 3, "expected a patchable file"),
        (["m.onnx", "--affine", "aux0"], 2, "an ONNX file has one branch only"),
        (["m.onnx", "--estimator", "pooled"], 2, "allows 'consistent' only"),
        (["none.onnx"], 3, "expected an ONNX file, but it does not exist"),
        (["m.onnx", "--mode", "odd"], 2, "--mode"),
        (["m.onnx", "--device", "cuda"], 2, "--device: an ONNX file does not allow this option"),
        (["m.onnx", "--min-samples", "10000"], 3, "expected at least 10000 images"),
    ):
        found, _, err = recal("calibrate", *arguments, "--data", class_folders)
        assert found == status, err
        assert message in err


@pytest.mark.slow
def test_broken_images_of_a_device_are_named_and_left_out_only_on_request(
    recal, split_checkpoint, class_folders, tmp_path
):
    folder = tmp_path / "camera"
    folder.mkdir()
    for i, path in enumerate(sorted(class_folders.glob("train/*/*.png"))[:20]):
        (folder / f"{i:02d}.png").write_bytes(path.read_bytes()[: 40 if i in (4, 9) else None])
    recal("export", split_checkpoint, "-o", "m.onnx", "--patchable")
    arguments = ["m.onnx", "--mode", "clean", "--data", folder, "-o", "v.safetensors"]
    status, _, err = recal("calibrate", *arguments)
    assert status == 3
    assert "2 out of 20 that cannot be decoded" in err
    assert not (tmp_path / "v.safetensors").exists()
    status, out, err = recal("calibrate", *arguments, "--skip-broken")
    assert status == 0, err
    assert "from 18 images" in out
    assert "warning: 2 images cannot be decoded and were left out: " in err
    statistics = load_variant(tmp_path / "v.safetensors").estimated
    assert sorted(statistics.skipped) == ["04.png", "09.png"]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A function that has torch.onnx write torchvision's resnet18, unfolded, and its weights."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    network = create_network("torchvision:resnet18", 10).eval()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.3)
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 1.5)
    torch.save(network.state_dict(), folder / "c.pth")

    def write(name, *, training=False, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracing exporter is deprecated
            torch.onnx.export(
                network.train(training), (torch.zeros(3, 3, 32, 32),), folder / name, dynamo=False,
                do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
                input_names=["image"], output_names=["score"], **options,
            )  # fmt: skip
        network.eval()
        return folder / name

    return write


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"image": {0: "n"}, "score": {0: "n"}}, None], ids=str)
def test_files_of_another_exporter_are_recalibrated(recal, foreign, class_folders, tmp_path, axes):
    """Of any batch and of a fixed one, against the PyTorch path; then patched, and run."""
    model = foreign("m.onnx", dynamic_axes=axes)
    where = ["--data", class_folders, "--mode", "clean", "--family", "cifar"]
    status, _, err = recal("calibrate", model, *where, "--batch-size", "17", "-o", "v.safetensors")
    assert status == 0, err
    checkpoint = load_checkpoint(model.with_name("c.pth"))
    expected = calibrate(
        checkpoint.overridden(arch="torchvision:resnet18", family="cifar", size=32),
        mode="clean", data=class_folders, estimator="consistent",
    )  # fmt: skip
    found = load_variant(tmp_path / "v.safetensors")
    assert found.tensors.keys() == expected.tensors.keys()
    assert len(found.tensors) == 80
    for name, tensor in expected.tensors.items():
        own, scale = tensor, 1.0
        if name.endswith("running_mean"):
            scale = np.sqrt(expected.tensors[name.replace("mean", "var")])
        elif name.endswith("running_var"):
            scale = own
        assert (np.abs(found.tensors[name] - own) / scale).max() < 1e-5, name
    status, _, err = recal("patch", model, "v.safetensors", "-o", "p.onnx")
    assert status == 0, err
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    with torch.no_grad():
        logits = build(checkpoint, expected)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(
        OnnxNetwork(tmp_path / "p.onnx").logits(images), logits, atol=1e-4 * np.abs(logits).max()
    )


def test_files_in_training_mode_are_refused(recal, foreign, class_folders):
    model = foreign("t.onnx", training=True)
    status, _, err = recal(
        "calibrate", model, "--data", class_folders, "--mode", "clean", "--family", "cifar"
    )
    assert status == 3
    assert "node '/bn1/BatchNormalization': expected" in err
    assert "Export the network in eval mode" in err


@pytest.mark.slow
def test_layers_that_share_statistics_are_refused_and_recals_own_do_not(
    recal, class_folders, tmp_path
):
    """The exporter joins equal tensors: one layer's new statistics would be another's too."""
    network = create_network("wrn10_1", 10).eval()
    torch.save({"arch": "wrn10_1", "state_dict": network.state_dict()}, tmp_path / "c.pth")
    where = ["--data", class_folders, "--mode", "clean", "--family", "cifar"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(3, 3, 32, 32),), tmp_path / "m.onnx", dynamo=False,
            do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
    status, _, err = recal("calibrate", "m.onnx", *where)
    assert status == 3
    assert "expected statistics of its own, got" in err
    for arguments in (
        ["export", "c.pth", "--patchable", "-o", "own.onnx"],
        ["calibrate", "own.onnx", *where, "-o", "v.safetensors"],
        ["patch", "own.onnx", "v.safetensors", "-o", "p.onnx"],
        ["verify", "p.onnx", "--checkpoint", "c.pth", "--variant", "v.safetensors"],
        ["export", "c.pth", "--switchable", "main,v.safetensors", "-o", "s.onnx"],
    ):
        status, _, err = recal(*arguments)
        assert status == 0, (arguments, err)
