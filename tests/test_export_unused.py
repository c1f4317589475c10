"""BatchNorm layers that the forward pass never uses, such as auxiliary heads of training."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from recal.calibration.calibrate import calibrate
from recal.checkpoint.checkpoint import load_checkpoint
from recal.errors import InputError, RecalWarning
from recal.evaluation.backends import Predictors
from recal.evaluation.execution import Batch, ExecutionOptions, choose_execution
from recal.evaluation.targets import VariantTarget
from recal.export.export import export_onnx
from recal.export.forms import Float32, Patchable, Switchable
from recal.export.trace import to_onnx
from recal.networks.names import create_network
from recal.onnx_file.editing import batch_norm_nodes
from recal.onnx_file.patch import patch_file
from recal.onnx_file.session import OnnxNetwork
from recal.report.statistics import estimation_blocks
from recal.variant.build import build
from recal.variant.plain import batch_norms
from recal.variant.variant import branch_variant, load_variant, save_variant
from tests.dual_networks import randomise

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.aux = nn.Sequential(nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5), nn.Conv2d(5, 10, 1))
        self.fc = nn.Linear(6, 10)
    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        if self.training:
            return self.fc(x.mean((2, 3))), self.aux(x).mean((2, 3))
        return self.fc(x.mean((2, 3)))

def make():
    return Net()
"""


@pytest.fixture
def with_head(tmp_path):
    (tmp_path / "net.py").write_text(CODE, encoding="utf-8")
    arch = f"python:{tmp_path / 'net.py'}:make"
    network = randomise(create_network(arch, 10, trusted=True))
    torch.save(network.state_dict(), tmp_path / "f.pth")
    return network, load_checkpoint(tmp_path / "f.pth").overridden(arch=arch, classes=10)


def test_calibrate_names_layers_that_forward_never_uses(with_head, class_folders):
    network, checkpoint = with_head
    variant = calibrate(checkpoint, mode="clean", data=class_folders)
    assert variant.estimated.layers_without_data == ("aux.1",)
    assert np.array_equal(variant.tensors["aux.1.running_mean"], network.aux[1].running_mean)
    assert str(estimation_blocks(variant)[0]).startswith("Statistics of 1 of 2 layers from ")


@pytest.mark.parametrize("form", [Float32(), Patchable(), Switchable()])
def test_files_leave_out_layers_that_forward_never_uses_and_name_them(
    form, with_head, class_folders, tmp_path
):
    network, checkpoint = with_head
    calibrated = calibrate(checkpoint, mode="clean", data=class_folders)
    stored = branch_variant(checkpoint, "main")
    given = {"a": stored, "b": calibrated} if form.name == "switchable" else stored
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        export_onnx(checkpoint, given, tmp_path / "m.onnx", form=form)
    named = [str(w.message) for w in caught if w.category is RecalWarning]
    assert len(named) == (form.name != "float32")
    assert all("never uses aux.1" in text for text in named)
    x = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    if form.name == "switchable":
        return
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    found = OnnxNetwork(tmp_path / "m.onnx").outputs(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    if form.name == "patchable":
        save_variant(calibrated, tmp_path / "v.safetensors")
        patch_file(tmp_path / "m.onnx", tmp_path / "v.safetensors", tmp_path / "p.onnx")
        with torch.no_grad():
            expected = build(checkpoint, calibrated)(torch.from_numpy(x)).numpy()
        found = OnnxNetwork(tmp_path / "p.onnx").outputs(x)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("default::recal.errors.RecalWarning")
def test_eval_leaves_them_out_and_names_them_once(with_head, class_folders, recal):
    _, checkpoint = with_head
    arch = checkpoint.overrides.arch
    code, out, err = recal(
        "eval", checkpoint.path, "--arch", arch, "--suite", "cifar10", "--data", class_folders,
    )  # fmt: skip
    assert code == 0, err
    assert "(40 images, 1 cell)" in out
    assert err.count("warning: export: the network's forward pass never uses aux.1.") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_torchvisions_auxiliary_heads_are_left_out(name):
    network = create_network(f"torchvision:{name}", 10).eval()
    with pytest.warns(RecalWarning, match=r"never uses \w*[aA]ux"):
        model = to_onnx(network, 224, fold=False)
    used = {layer for layer in batch_norms(network) if "aux" not in layer.lower()}
    assert batch_norm_nodes(model.graph).keys() == used


@pytest.fixture
def calibrated_in_onnx(with_head, class_folders, tmp_path, recal):
    """Return the network, its checkpoint, and a variant that a patchable file was calibrated to."""
    network, checkpoint = with_head
    with pytest.warns(RecalWarning, match="never uses aux.1"):
        export_onnx(checkpoint, "main", tmp_path / "b.onnx", form=Patchable())
    status, _, err = recal(
        "calibrate", tmp_path / "b.onnx", "--mode", "clean", "--data", class_folders,
        "-o", tmp_path / "o.safetensors",
    )  # fmt: skip
    assert status == 0, err
    return network, checkpoint, tmp_path / "o.safetensors"


def test_variants_calibrated_in_onnx_keep_the_checkpoints_unused_layers(
    calibrated_in_onnx, class_folders
):
    network, checkpoint, path = calibrated_in_onnx
    variant = load_variant(path)
    assert not any(name.startswith("aux") for name in variant.tensors)
    with pytest.warns(RecalWarning, match=r"has no tensors of aux\.1, .*checkpoint's are kept"):
        built = build(checkpoint, variant)
    assert torch.equal(built.aux[1].running_mean, network.aux[1].running_mean)
    # the reference: the network itself, calibrated by torch
    own = calibrate(checkpoint, mode="clean", data=class_folders, estimator="consistent")
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected, stored = build(checkpoint, own)(x), network(x)
        torch.testing.assert_close(built(x), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, stored, atol=1e-2)


@pytest.mark.filterwarnings("default::recal.errors.RecalWarning")
def test_every_command_takes_such_a_variant_or_refuses_it_by_name(
    calibrated_in_onnx, class_folders, recal, tmp_path
):
    network, checkpoint, variant = calibrated_in_onnx
    named = ("--arch", checkpoint.overrides.arch, "--classes", "10")
    calls = {
        "eval": (checkpoint.path, variant, "--suite", "cifar10", "--data", class_folders),
        "export": (checkpoint.path, "--variant", variant, "-o", tmp_path / "v.onnx"),
        "convert": (checkpoint.path, "--variant", variant, "-o", tmp_path / "c.pth"),
    }
    for command, options in calls.items():
        status, _, err = recal(command, *options, *named)
        assert status == 0, err
        assert command == "eval" or "no tensors of aux.1" in err
    state = torch.load(tmp_path / "c.pth")
    assert torch.equal(state["aux.1.running_var"], network.aux[1].running_var)
    x = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    network.load_state_dict(state)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    found = OnnxNetwork(tmp_path / "v.onnx").outputs(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    status, _, err = recal(
        "mix", "main=0.5", f"{variant}=0.5", "--checkpoint", checkpoint.path, *named,
        "-o", tmp_path / "m.safetensors",
    )  # fmt: skip
    assert status != 0
    assert "expected the same BatchNorm layers, got 'aux.1.bias' in one only" in err


def test_a_variant_that_lacks_a_layer_in_use_is_refused(with_head):
    _, checkpoint = with_head
    stored = branch_variant(checkpoint, "main")
    tensors = {name: t for name, t in stored.tensors.items() if not name.startswith("bn.")}
    lacking = replace(stored, tensors=tensors)
    with pytest.raises(InputError, match=r"without bn\. Calibrate the checkpoint itself"):
        build(checkpoint, lacking)
    # evaluation puts the tensors of all variants into the graph of the first
    targets = [
        VariantTarget(name=n, label=n, sha256=n, spec=v.spec, checkpoint=checkpoint, variant=v)
        for n, v in (("first", stored), ("lacking", lacking))
    ]
    predictors = Predictors(targets, choose_execution(ExecutionOptions(), 32))
    batch = Batch(np.zeros((2, 32, 32, 3), np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert predictors.begin("first", batch)().shape == (2, 10)
    with pytest.raises(InputError, match=r"lacking: expected the tensor 'bn\."):
        predictors.begin("lacking", batch)()
