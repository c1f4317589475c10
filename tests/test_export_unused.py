"""BatchNorm layers that the forward pass never uses, such as auxiliary heads of training."""

import warnings

import numpy as np
import pytest
import torch

from recal.calibration.calibrate import calibrate
from recal.checkpoint.checkpoint import load_checkpoint
from recal.errors import RecalWarning
from recal.export.export import export_onnx
from recal.export.forms import Float32, Patchable, Switchable
from recal.export.trace import to_onnx
from recal.networks.names import create_network
from recal.onnx_file.editing import batch_norm_nodes
from recal.onnx_file.patch import patch_file
from recal.onnx_file.session import OnnxNetwork
from recal.variant.build import build
from recal.variant.plain import batch_norms
from recal.variant.variant import branch_variant, save_variant
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
