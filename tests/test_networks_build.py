"""Building plain networks: kinds of BatchNorm, own classes, what does not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from recal.checkpoint.checkpoint import load_checkpoint
from recal.errors import InputError, UsageError
from recal.variant.build import build
from recal.variant.plain import InstanceBatchNorm, PlainBatchNorm, batch_norms
from recal.variant.variant import branch_variant, load_variant, save_variant
from tests import dual_networks
from tests.dual_networks import NORMS, Network, randomise

CODE = f"python:{Path(dual_networks.__file__)}"


def written(tmp_path, code):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\n" + code, encoding="utf-8"
    )
    return f"python:{tmp_path}/own.py:make"


def loaded(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "f.pth")
    return load_checkpoint(tmp_path / "f.pth")


KINDS = {
    "BatchNorm1d": (nn.BatchNorm1d, nn.Linear(3, 4), (5, 3)),
    "BatchNorm1d over a sequence": (nn.BatchNorm1d, nn.Conv1d(3, 4, 3), (5, 3, 8)),
    "BatchNorm2d": (nn.BatchNorm2d, nn.Conv2d(3, 4, 3), (5, 3, 8, 8)),
    "BatchNorm3d": (nn.BatchNorm3d, nn.Conv3d(3, 4, 3), (5, 3, 6, 6, 6)),
    "SyncBatchNorm": (nn.SyncBatchNorm, nn.Conv2d(3, 4, 3), (5, 3, 8, 8)),
    "BatchNormAct2d": (BatchNormAct2d, nn.Conv2d(3, 4, 3), (5, 3, 8, 8)),
    "FrozenBatchNorm2d": (FrozenBatchNorm2d, nn.Conv2d(3, 4, 3), (5, 3, 8, 8)),
    "FrozenBatchNormAct2d": (FrozenBatchNormAct2d, nn.Conv2d(3, 4, 3), (5, 3, 8, 8)),
    "BatchNorm2d without affine": (
        lambda c: nn.BatchNorm2d(c, affine=False), nn.Conv2d(3, 4, 3), (5, 3, 8, 8)
    ),
    "BatchNorm2d with another epsilon": (
        lambda c: nn.BatchNorm2d(c, eps=0.1), nn.Conv2d(3, 4, 3), (5, 3, 8, 8)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_batch_norm_builds_to_the_same_outputs(kind, tmp_path, monkeypatch):
    norm, before, shape = KINDS[kind]
    network = randomise(nn.Sequential(before, norm(4)))
    monkeypatch.setattr(
        dual_networks, "kind", lambda: nn.Sequential(before, norm(4)), raising=False
    )
    checkpoint = loaded(network, tmp_path)
    built = build(checkpoint.overridden(arch="python:tests.dual_networks:kind", classes=4))
    images = torch.randn(shape)
    with torch.no_grad():
        expected = network(images)
        torch.testing.assert_close(built(images), expected, atol=1e-6, rtol=1e-6)
    (layer,) = batch_norms(built).values()
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    assert not isinstance(layer, nn.SyncBatchNorm)
    # and it is one whose statistics can be estimated
    layer.train()
    built(images)
    assert not torch.equal(layer.running_mean, checkpoint.branch("main")["1.running_mean"])


def test_auxiliary_branches_of_frozen_batch_norm_build(tmp_path):
    code = """
class Dual(nn.Module):
    def __init__(self, c):
        super().__init__()
        from torchvision.ops import FrozenBatchNorm2d
        self.BN_c, self.BN_a = FrozenBatchNorm2d(c), FrozenBatchNorm2d(c)
    def forward(self, x):
        return self.BN_c(x)
def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), Dual(4))
"""
    arch = written(tmp_path, code)
    from recal.networks.names import create_network

    network = randomise(create_network(arch, 4, trusted=True))
    checkpoint = loaded(network, tmp_path)
    images = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        expected = network[1].BN_a(network[0](images))
        built = build(checkpoint.overridden(arch=arch, classes=4), "aux0")
        torch.testing.assert_close(built(images), expected, atol=1e-6, rtol=1e-6)


def test_own_dual_class_keeps_what_it_does_after_normalising(tmp_path):
    """A dual norm whose forward also applies an activation, and takes the branch as an argument."""
    code = """
class Dual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn = nn.ModuleList(nn.BatchNorm2d(c) for _ in range(2))
    def forward(self, x, which=0):
        return torch.tanh(self.bn[which](x)) + 1
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), Dual(4), nn.Linear(4, 2)
    def forward(self, x, which=0):
        return self.fc(self.norm(self.conv(x), which).mean((2, 3)))
def make():
    return Net()
"""
    arch = written(tmp_path, code)
    from recal.networks.names import create_network

    network = randomise(create_network(arch, 2, trusted=True))
    checkpoint = loaded(network, tmp_path)
    assert checkpoint.layout.name == "dubn"
    images = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        for which, branch in enumerate(("main", "aux0")):
            built = build(checkpoint.overridden(arch=arch), branch)
            for asked in (0, 1):  # whatever branch the code asks for, it is the one that was built
                torch.testing.assert_close(built(images, asked), network(images, which))
    assert list(batch_norms(built)) == ["norm"]


def test_subclass_of_batch_norm_that_does_more_is_refused(tmp_path):
    code = """
class Mix(nn.BatchNorm2d):
    def __init__(self, c):
        super().__init__(c)
        self.aux_bn = nn.BatchNorm2d(c)
    def forward(self, x):
        return torch.relu(super().forward(x))
def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), Mix(4))
"""
    arch = written(tmp_path, code)
    from recal.networks.names import create_network

    checkpoint = loaded(randomise(create_network(arch, 4, trusted=True)), tmp_path)
    with pytest.raises(InputError, match=r"1: expected Mix to normalise and nothing else"):
        build(checkpoint.overridden(arch=arch, classes=4))


def test_own_class_with_buffers_in_the_place_of_modules_is_refused(tmp_path):
    code = """
class Dual(nn.Module):
    def __init__(self, c):
        super().__init__()
        for name, value in (("c_running_mean", 0.), ("c_running_var", 1.), ("a_running_mean", 0.),
                            ("a_running_var", 1.)):
            self.register_buffer(name, torch.full((c,), value))
def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), Dual(4))
"""
    arch = written(tmp_path, code)
    (tmp_path / "own.toml").write_text(
        '[[branch]]\nkey = "{layer}.c_{leaf}"\n[[branch]]\nkey = "{layer}.a_{leaf}"\n',
        encoding="utf-8",
    )
    from recal.networks.names import create_network

    torch.save(create_network(arch, 4, trusted=True).state_dict(), tmp_path / "f.pth")
    checkpoint = load_checkpoint(tmp_path / "f.pth", layout=str(tmp_path / "own.toml"))
    assert list(checkpoint.branches) == ["main", "aux0"]
    with pytest.raises(InputError, match=r"1: expected BatchNorm modules for its branches"):
        build(checkpoint.overridden(arch=arch, classes=4))


def test_timms_split_norm_keeps_the_activation_of_batch_norm_act(tmp_path):
    import timm
    from timm.layers import convert_splitbn_model

    torch.manual_seed(0)
    network = convert_splitbn_model(timm.create_model("mobilenetv2_035", num_classes=3), 2)
    network = randomise(network)
    checkpoint = loaded(network, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
        for layer in network.modules():
            if hasattr(layer, "aux_bn"):
                layer.load_state_dict(layer.aux_bn[0].state_dict(), strict=False)
        expected_aux = network(images)
        assert (expected - expected_aux).abs().max() > 1e-3
        for branch, reference in (("main", expected), ("aux0", expected_aux)):
            built = build(checkpoint.overridden(arch="timm:mobilenetv2_035"), branch)
            torch.testing.assert_close(built(images), reference, atol=1e-5, rtol=1e-4)


def test_dubin_builds_on_recals_own_resnet_without_arch(tmp_path):
    """AugMax's ResNet-18 with DuBIN: instance norm goes beside BatchNorm where the file has it."""
    from recal.networks.names import create_network

    network = create_network("cifar_resnet18", 10)
    for stage in ("layer1", "layer2", "layer3"):
        for block in network.get_submodule(stage):
            block.bn1 = dual_networks.DuBIN(block.bn1.num_features)
    for path, module in list(network.named_modules()):
        inside = ".BN." in path or (path.endswith((".BN", ".0", ".1")) and ".bn" in path)
        if type(module) is nn.BatchNorm2d and not inside:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, dual_networks.DuBN(module.num_features))
    network = randomise(network)
    checkpoint = loaded(network, tmp_path)
    assert checkpoint.layout.name == "dubin"
    assert checkpoint.spec.arch == "cifar_resnet18"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for position, branch in enumerate(("main", "aux0")):
            expected = dual_networks.use_branch(network, position)(images)
            built = build(checkpoint, branch)
            torch.testing.assert_close(built(images), expected, atol=1e-6, rtol=1e-5)
    assert isinstance(built.layer1[0].bn1, InstanceBatchNorm)


def test_shared_checkpoint_in_memory_is_not_changed_by_building(tmp_path):
    checkpoint = loaded(randomise(Network(NORMS["dubn"])), tmp_path)
    before = {k: v.clone() for k, v in checkpoint.branch("aux0").items()}
    built = build(checkpoint.overridden(arch=f"{CODE}:plain"), "aux0")
    for parameter in built.parameters():
        parameter.fill_(7.0)
    for layer in batch_norms(built).values():
        layer.running_mean.fill_(7.0)
    for key, tensor in checkpoint.branch("aux0").items():
        assert torch.equal(tensor, before[key])


def test_weights_that_do_not_fit_are_named(tmp_path):
    checkpoint = loaded(randomise(Network(NORMS["dubn"])), tmp_path)
    with pytest.raises(InputError, match=r"do not fit: missing block1.*unexpected body"):
        build(checkpoint.overridden(arch="wrn16_1", classes=5))
    with pytest.raises(InputError, match=r"fc.weight: expected shape \(9, 6\), got \(5, 6\)"):
        build(checkpoint.overridden(arch=f"{CODE}:plain", classes=9))


def test_variant_that_names_code_runs_it_only_when_asked(tmp_path):
    arch = f"{CODE}:plain"
    checkpoint = loaded(randomise(Network(NORMS["dubn"])), tmp_path)
    variant = branch_variant(checkpoint.overridden(arch=arch), "aux0")
    build(checkpoint, variant)  # the user named it just now
    save_variant(variant, tmp_path / "v.safetensors")
    read = load_variant(tmp_path / "v.safetensors")
    with pytest.raises(UsageError, match="was found in a file"):
        build(checkpoint, read)
    images = torch.randn(2, 3, 8, 8)
    built = build(checkpoint.overridden(arch=arch), read)
    torch.testing.assert_close(built(images), build(checkpoint, variant)(images))


def test_own_dual_class_is_calibrated_as_the_plain_network_is(tmp_path, class_folders):
    from recal.calibration.calibrate import calibrate

    torch.save(randomise(Network(NORMS["once-for-all"], 10)).state_dict(), tmp_path / "f.pth")
    checkpoint = load_checkpoint(tmp_path / "f.pth")
    variants = [
        calibrate(
            checkpoint.overridden(arch=f"{CODE}:{arch}"),
            mode="clean",
            affine="aux0",
            data=class_folders,
            batch_size=20,
            estimator=estimator,
        )
        for estimator in ("pooled", "consistent")
        for arch in ("plain", "once_for_all")
    ]
    for plain, own in (variants[:2], variants[2:]):
        assert plain.tensors.keys() == own.tensors.keys()
        for key, tensor in plain.tensors.items():
            np.testing.assert_allclose(own.tensors[key], tensor, rtol=1.3e-6, atol=1e-5)
        stored = checkpoint.branch("aux0")["norm1.running_mean"]
        assert not np.allclose(plain.tensors["norm1.running_mean"], stored)
    images = torch.randn(2, 3, 32, 32)
    built = [build(checkpoint.overridden(arch=f"{CODE}:{a}"), v)(images)
             for v, a in zip(variants, ("plain", "once_for_all") * 2, strict=True)]  # fmt: skip
    torch.testing.assert_close(built[0], built[1])


def test_variant_of_other_weights_is_refused(tmp_path):
    first = loaded(randomise(Network(NORMS["dubn"])), tmp_path)
    variant = branch_variant(first.overridden(arch="wrn16_1"), "main")
    second = loaded(randomise(Network(NORMS["dubn"]), seed=3), tmp_path)
    with pytest.raises(InputError, match="expected the weights that the variant was made for"):
        build(second, variant)


def test_plain_batch_norm_ignores_which_branch_it_is_asked_for():
    layer = PlainBatchNorm(3).eval()
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(layer(x, 1, y="adversarial"), layer(x))
    with pytest.raises(ValueError, match="2 dimensions"):
        layer(torch.ones(3))


def test_network_without_batch_norm_is_refused():
    with pytest.raises(InputError, match="expected a network with BatchNorm layers"):
        batch_norms(nn.Linear(2, 2))
