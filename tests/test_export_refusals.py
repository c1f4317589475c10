"""Networks that no ONNX file can hold, or not in the form that was asked for."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from recal import load_checkpoint
from recal.errors import InputError, VerificationError
from recal.export.export import export_onnx
from recal.export.forms import Float16, Float32
from recal.export.trace import to_onnx
from recal.networks.names import create_network
from recal.onnx_file.session import OnnxNetwork
from recal.variant.independence import check_independence
from tests.dual_networks import randomise

CODE = """
import torch
from torch import nn
from torch.nn import functional

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 10)
    def features(self, x):
        return torch.relu(self.bn(self.conv(x)))
    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))

class Fixed(Net):
    def forward(self, x):
        features = self.features(x).mean((2, 3))
        return self.fc(features.reshape(torch.tensor(len(features)).item(), 6))

class Large(Net):
    def forward(self, x):
        return self.fc((self.features(x) * 6e4).mean((2, 3)) * 1e-4)
"""
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)


class Mixing(nn.Module):
    def forward(self, x):
        return functional.batch_norm(x, None, None, training=True)


class Ranking(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def checkpoint_of(name, folder):
    (folder / "net.py").write_text(CODE, encoding="utf-8")
    arch = f"python:{folder / 'net.py'}:{name}"
    torch.save(randomise(create_network(arch, 10, trusted=True)).state_dict(), folder / "f.pth")
    return load_checkpoint(folder / "f.pth").overridden(arch=arch, classes=10, family="cifar")


@pytest.mark.parametrize("module", [Mixing(), Ranking()])
def test_statistics_of_the_batch_are_refused_with_their_module(module):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), module), nn.Flatten())
    message = rf"1\.1 \({type(module).__name__}\): expected an image's output to depend on that"
    with pytest.raises(InputError, match=message):
        to_onnx(network.eval(), 8, fold=True)


def test_a_mixing_forward_is_found_behind_modules_that_follow_it():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = Ranking(), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(x.mean((2, 3)) - x.mean((0, 2, 3)))

    network = nn.Sequential(nn.ReLU(), Outer()).eval()
    with pytest.raises(InputError, match=r"where: 1 \(Outer\)"):
        check_independence(network, (3, 8, 8), "where")


def test_a_network_that_mixes_after_a_call_for_each_image_is_refused():
    class PerImage(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ReLU()

        def forward(self, x):
            outputs = torch.cat([self.inner(image[None]) for image in x])
            return outputs - outputs.mean(0)

    with pytest.raises(InputError, match=r"the network \(PerImage\)"):
        check_independence(PerImage().eval(), (3, 8, 8), "where")


def test_ordinary_networks_and_overflow_are_independent():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten()).eval()
    check_independence(network, (3, 8, 8), "where")
    network[0].weight.data.fill_(float("inf"))
    check_independence(network, (3, 8, 8), "where")


def test_a_graph_of_a_fixed_number_of_images_names_the_option(tmp_path):
    checkpoint = checkpoint_of("Fixed", tmp_path)
    with pytest.raises(InputError, match=r"node '/Reshape'.*got one that fails for 1.*batch 1\."):
        export_onnx(checkpoint, "main", tmp_path / "m.onnx", PIXELS)
    assert not (tmp_path / "m.onnx").exists()
    export_onnx(checkpoint, "main", tmp_path / "m.onnx", PIXELS, batch=1)
    assert OnnxNetwork(tmp_path / "m.onnx").batch == 1


def test_float16_names_the_tensor_that_overflows(tmp_path):
    checkpoint = checkpoint_of("Large", tmp_path)
    message = r"tensor '/Mul_output_0': expected values that float16 holds, up to 65,504, got"
    with pytest.raises(VerificationError, match=message):
        export_onnx(checkpoint, "main", tmp_path / "m.onnx", PIXELS, form=Float16())
    assert not (tmp_path / "m.onnx").exists()
    export_onnx(checkpoint, "main", tmp_path / "m.onnx", PIXELS, form=Float32())
    onnx.checker.check_model(tmp_path / "m.onnx")


def test_weights_over_two_gibibytes_are_refused_by_size():
    with torch.device("meta"):
        network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3_000_000)).eval()
    with pytest.raises(InputError, match=r"less than 2 GiB.*got 2\.2 GiB"):
        to_onnx(network, 8, fold=True)
