"""The number of classes is that of the network's logits."""

import pathlib

import pytest
import torch
import torchvision
from torch import nn

from recal.checkpoint.checkpoint import load_checkpoint
from recal.errors import InputError
from recal.export.export import export_onnx
from recal.networks.names import create_network
from recal.onnx_file.session import OnnxNetwork
from recal.variant.variant import branch_variant
from tests.dual_networks import NORMS, Network, randomise

HERE = f"python:{pathlib.Path(__file__)}"


class Projected(nn.Module):
    """A classifier before the projection head of contrastive training, which is the last matrix."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc, self.projection = nn.Linear(8, num_classes), nn.Linear(8, 128)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def stubborn():
    """A network whose code takes no number of classes."""
    return Projected(10)


def write(network, path):
    torch.save(network.state_dict(), path)
    return load_checkpoint(path)


@pytest.mark.parametrize("maker", ["Projected", "stubborn"])
def test_classes_are_the_logits_and_not_the_last_matrix(maker, tmp_path):
    torch.manual_seed(0)
    checkpoint = write(Projected(), tmp_path / "f.pth").overridden(arch=f"{HERE}:{maker}", size=16)
    assert checkpoint.spec.classes == 10
    export_onnx(checkpoint, "main", tmp_path / "f.onnx")
    network = OnnxNetwork(tmp_path / "f.onnx")
    assert network.record.model.classes == network.classes == 10


def test_number_of_classes_that_the_network_does_not_have_is_refused(tmp_path):
    checkpoint = write(Projected(), tmp_path / "f.pth").overridden(arch=f"{HERE}:stubborn", size=16)
    wrong = checkpoint.overridden(classes=128)
    with pytest.raises(InputError, match=r"expected 128 logits.*got 10\. Give --classes 10"):
        export_onnx(wrong, branch_variant(wrong, "main"), tmp_path / "f.onnx")
    assert not (tmp_path / "f.onnx").exists()


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121", "resnet18"])
def test_classes_of_known_networks_are_told_from_their_tensors(name, tmp_path):
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None, num_classes=7)
    network = network.to_empty(device="cpu")
    checkpoint = write(network, tmp_path / "f.pth")
    assert checkpoint.overridden(arch=f"torchvision:{name}").spec.classes == 7


def test_classes_of_a_network_with_branches_of_its_own_class(tmp_path):
    dual = f"python:{pathlib.Path(__file__).with_name('dual_networks.py')}:dubn"
    checkpoint = write(randomise(Network(NORMS["dubn"], 6)), tmp_path / "f.pth")
    assert checkpoint.overridden(arch=dual, size=9).spec.classes == 6
    assert write(create_network("wrn10_1", 7), tmp_path / "g.pth").spec.classes == 7
