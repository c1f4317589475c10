"""Norm layers of other classes: replaced only where a plain BatchNorm is shown to be the same."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from recal.calibration.calibrate import calibrate
from recal.checkpoint.checkpoint import load_checkpoint
from recal.errors import InputError
from recal.export.export import export_onnx
from recal.export.forms import Patchable
from recal.export.subject import make_subjects
from recal.networks.names import create_network
from recal.onnx_file.session import OnnxNetwork
from recal.variant.build import build, build_classifier, convert
from recal.variant.comparison import computes_the_same, normalises
from recal.variant.plain import PlainBatchNorm, batch_norms
from recal.variant.variant import branch_variant
from tests.dual_networks import randomise

NORMS = """
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

class Norm(nn.Module):
    def __init__(self, c, eps=1e-5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))
        self.register_buffer("running_mean", torch.zeros(c))
        self.register_buffer("running_var", torch.ones(c))
        self.epsilon = eps

class ABN(Norm):
    "In-place ABN: BatchNorm, then leaky ReLU."
    def forward(self, x):
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                         self.training, 0.1, self.epsilon)
        return F.leaky_relu(x, 0.01)

class AbsABN(Norm):
    "InPlaceABN's CUDA form: the weight is |weight| + eps, and nothing follows."
    def forward(self, x):
        weight = self.weight.abs() + self.epsilon
        return F.batch_norm(x, self.running_mean, self.running_var, weight,
                            self.bias, self.training, 0.1, self.epsilon)

class EpsLess(Norm):
    "Frozen BatchNorm of the first detection codes: no epsilon."
    def forward(self, x):
        scale = self.weight * self.running_var.rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

class OtherEps(Norm):
    "Frozen BatchNorm whose epsilon has another name and value."
    def __init__(self, c):
        super().__init__(c, 1e-3)
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                            False, 0.0, self.epsilon)

class Clamped(Norm):
    "Differs from BatchNorm where a variance is tiny only."
    def forward(self, x):
        var = self.running_var.clamp_min(1e-5)
        return F.batch_norm(x, self.running_mean, var, self.weight, self.bias, False, 0.0, 0.0)

class Ignores(Norm):
    "Owns statistics, and normalises each batch by its own."
    def forward(self, x):
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.1, self.epsilon)

class SyncABN(nn.SyncBatchNorm):
    def forward(self, x):
        return F.leaky_relu(super().forward(x), 0.01)

class DualABN(nn.Module):
    "Branches that are ABN layers."
    def __init__(self, c):
        super().__init__()
        self.bn = nn.ModuleList(ABN(c) for _ in range(2))
    def forward(self, x):
        return self.bn[0](x)

class Net(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), norm(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3), norm(6)
        self.fc = nn.Linear(6, 4)
    def forward(self, x):
        x = self.norm2(self.conv2(self.norm(self.conv(x))))
        return self.fc(x.mean((2, 3)))
"""
KEPT = ("ABN", "AbsABN", "Clamped", "Ignores", "SyncABN")
REPLACED = ("EpsLess", "OtherEps", "FrozenBatchNorm2d")


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "norms.py"
    names = (*KEPT, *REPLACED, "DualABN")
    path.write_text(
        NORMS + "".join(f"\ndef make_{n}(): return Net({n})" for n in names), encoding="utf-8"
    )
    return path


def network_of(code, name, tmp_path):
    """Return the user's network with random tensors, negative weights included, and its file."""
    arch = f"python:{code}:make_{name}"
    network = randomise(create_network(arch, 4, trusted=True))
    for key, tensor in network.state_dict().items():
        if key.endswith("running_var"):
            tensor[:3] = torch.tensor([1e-7, 1e-5, 1e-3])
    torch.save(network.state_dict(), tmp_path / "f.pth")
    checkpoint = load_checkpoint(tmp_path / "f.pth")
    return network, checkpoint.overridden(arch=arch, classes=4, size=16)


@pytest.mark.parametrize("name", [*KEPT, *REPLACED])
def test_norm_layers_of_other_classes_compute_what_the_users_network_does(name, code, tmp_path):
    network, checkpoint = network_of(code, name, tmp_path)
    built = build(checkpoint)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = network.double()(images)
        torch.testing.assert_close(built.double()(images), expected, rtol=1e-9, atol=1e-9)
    plain = isinstance(built.norm, PlainBatchNorm)
    assert plain == (name in REPLACED)
    assert name == "Ignores" or list(batch_norms(built)) == ["norm", "norm2"]


@pytest.mark.parametrize("name", ["ABN", "FrozenBatchNorm2d"])
def test_converted_files_load_into_the_users_network(name, code, tmp_path):
    network, checkpoint = network_of(code, name, tmp_path)
    notes = convert(checkpoint, "main", tmp_path / "plain.pth")
    assert any("loads it with strict=True and computes what the variant does" in n for n in notes)
    state = torch.load(tmp_path / "plain.pth", weights_only=True)
    assert state.keys() == network.state_dict().keys()


@pytest.mark.parametrize("name", ["ABN", "AbsABN", "EpsLess", "FrozenBatchNorm2d"])
def test_files_are_proven_against_the_users_untouched_network(name, code, tmp_path):
    network, checkpoint = network_of(code, name, tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    (subject,) = make_subjects(checkpoint, {"main": branch_variant(checkpoint, "main")}, images)
    assert type(subject.reference.norm).__name__ == name
    export_onnx(checkpoint, "main", tmp_path / "m.onnx", images)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = network(x).numpy()
    found = OnnxNetwork(tmp_path / "m.onnx").outputs(x.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_a_file_whose_layers_cannot_be_replaced_is_refused_by_name(code, tmp_path):
    _, checkpoint = network_of(code, "AbsABN", tmp_path)
    with pytest.raises(InputError, match=r"expected plain BatchNorm .* got another one .*norm"):
        export_onnx(checkpoint, "main", tmp_path / "m.onnx", form=Patchable())


def test_branches_that_do_more_than_normalise_are_refused_by_name(code, tmp_path):
    _, checkpoint = network_of(code, "DualABN", tmp_path)
    assert list(checkpoint.branches) == ["main", "aux0"]
    with pytest.raises(InputError, match=r"norm.bn.0: expected ABN to normalise and nothing else"):
        build(checkpoint)


@pytest.mark.parametrize("estimator", ["pooled", "consistent"])
@pytest.mark.parametrize("name", ["ABN", "AbsABN", "FrozenBatchNorm2d"])
def test_norm_layers_of_other_classes_are_calibrated(name, estimator, code, tmp_path):
    """Both estimators, on one batch, give the moments of float64 NumPy."""
    network, checkpoint = network_of(code, name, tmp_path)
    images = torch.randn(32, 3, 16, 16)
    for module in (network, build(checkpoint)):
        found = calibrate(module, [images], estimator=estimator)
        with torch.no_grad():
            reference = network.double()
            x = reference.conv(images.double())
            for norm, after in (("norm", reference.conv2), ("norm2", None)):
                mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
                layer, own = found.get_submodule(norm), reference.get_submodule(norm)
                np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(layer.running_var, var, rtol=1e-4)
                own.running_mean.copy_(mean)
                own.running_var.copy_(var)
                x = after(own(x)) if after else x
            network.float()


def test_a_rebuilt_network_that_computes_something_else_is_refused_by_name(tmp_path):
    """The class picks its branch by the place of its input, which no layer alone shows."""
    code = """
import torch
from torch import nn
class Dual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.ModuleList(nn.BatchNorm2d(c) for _ in range(2))
        self.aligned = True
    def forward(self, x):
        return x if type(self.bn[1]) is nn.BatchNorm2d else self.bn[0](x)
def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), Dual(4), nn.ReLU())
"""
    (tmp_path / "odd.py").write_text(code, encoding="utf-8")
    arch = f"python:{tmp_path / 'odd.py'}:make"
    torch.save(randomise(create_network(arch, 4, trusted=True)).state_dict(), tmp_path / "f.pth")
    checkpoint = load_checkpoint(tmp_path / "f.pth").overridden(arch=arch, classes=4)
    with pytest.raises(InputError, match=r"expected the network with plain BatchNorm at 1\.bn\.0"):
        build(checkpoint)


def test_a_normalisation_inside_is_compared_in_the_units_of_the_users_network(tmp_path):
    """Mean and std in levels of 0 to 255 may be meant for pixels, or for images times 255."""
    template = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([120.0, 130.0, 110.0]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([50.0, 60.0, 70.0]).view(1, 3, 1, 1))
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    def forward(self, x):
        return self.model((SCALE * x - self.mean) / self.std)
def make():
    return Net()
"""
    for scale in ("1.0", "255.0"):
        (tmp_path / f"n{scale}.py").write_text(template.replace("SCALE", scale), encoding="utf-8")
        arch = f"python:{tmp_path}/n{scale}.py:make"
        network = create_network(arch, 4, trusted=True).eval()
        randomise(network.model)
        torch.save(network.state_dict(), tmp_path / "f.pth")
        checkpoint = load_checkpoint(tmp_path / "f.pth").overridden(arch=arch, classes=4)
        if scale == "255.0":
            with pytest.raises(InputError, match="expected the network with plain BatchNorm"):
                build(checkpoint)
            continue
        pair = build_classifier(checkpoint)
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(pair.network(x), network(x * network.std + network.mean))
        torch.testing.assert_close(pair.own(x), pair.network(x))


class Silent(nn.Module):
    """Returns no tensor."""

    def forward(self, x):
        return None


def test_comparison_tells_epsilons_and_activations_apart():
    plain = PlainBatchNorm(5)
    assert computes_the_same(nn.BatchNorm2d(5), plain, 5)
    assert computes_the_same(nn.BatchNorm1d(5), plain, 5)
    assert computes_the_same(FrozenBatchNorm2d(5), plain, 5)
    assert computes_the_same(FrozenBatchNorm2d(5, eps=1e-6), plain, 5) is False
    assert computes_the_same(nn.BatchNorm2d(5, eps=1.1e-5), plain, 5) is False
    assert computes_the_same(nn.Sequential(nn.BatchNorm2d(5), nn.LeakyReLU()), plain, 5) is False
    assert computes_the_same(nn.Bilinear(5, 5, 5), plain, 5) is None
    assert computes_the_same(Silent(), plain, 5) is None


def test_layers_that_ignore_their_statistics_are_recognised(code, tmp_path):
    for name, expected in (("ABN", True), ("AbsABN", True), ("Clamped", True), ("Ignores", False)):
        network = create_network(f"python:{code}:make_{name}", 4, trusted=True)
        assert normalises(network.norm) is expected


def test_a_network_that_ignores_all_statistics_is_refused_by_calibration(code, tmp_path):
    _, checkpoint = network_of(code, "Ignores", tmp_path)
    with pytest.raises(InputError, match="does not normalise by those of its other layers"):
        calibrate(build(checkpoint), [torch.randn(4, 3, 16, 16)])
