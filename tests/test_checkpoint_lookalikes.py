"""BatchNorm layers that look like branches, in a layout that recal does not know."""

import pathlib

import pytest
import timm
import torch
import torchvision
from torch import nn

from recal.checkpoint.checkpoint import load_checkpoint
from recal.checkpoint.lookalikes import find_lookalikes
from recal.networks.names import create_network
from recal.variant.build import build
from tests import dual_networks
from tests.dual_networks import Listed, Named, Network, randomise

PLAIN = f"python:{pathlib.Path(dual_networks.__file__)}:plain"
IMAGES = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(1))


class CleanAndNoise(Named):
    names, branches = ("clean_bn", "noise_bn"), 2


class SlimmableGroups(nn.Module):
    """Once-for-all adversarial training's slimmable networks: a list of widths in each branch."""

    def __init__(self, channels):
        super().__init__()
        for name in ("BN_c", "BN_a"):
            widths = (channels // 2, channels)
            setattr(self, name, nn.ModuleList(nn.BatchNorm2d(width) for width in widths))


class OneBranch(Listed):
    """ACL's files of one branch."""

    attribute, branches = "bn_list", 1


class MixedBlock(nn.Module):
    """Siblings of the block's own layers, under another name than any that is known."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.bn1_hard, self.bn2_hard = nn.BatchNorm2d(8), nn.BatchNorm2d(8)


def save(network, path):
    torch.save(randomise(network).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("network", "names"),
    [
        (Network(CleanAndNoise), "norm1.clean_bn and norm1.noise_bn"),
        (Network(SlimmableGroups), "norm1.BN_c and norm1.BN_a"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), MixedBlock()), "1.bn1 and 1.bn1_hard look"),
    ],
)
def test_unknown_branches_are_named_by_every_command_that_warns(network, names, recal, tmp_path):
    path = save(network, tmp_path / "f.pth")
    checkpoint = load_checkpoint(path)
    assert checkpoint.layout.name == "plain"
    (doubt,) = (found for found in checkpoint.doubts if found.kind == "unknown-branches")
    assert names in doubt.sentence
    assert "--layout mine.toml" in doubt.sentence
    assert not load_checkpoint(path, layout="plain").doubts
    for command in (["inspect", path], ["convert", path, "-o", "g.pth"]):
        status, _, err = recal(*command)
        assert status == 0
        assert names in " ".join(err.split())


def test_branches_are_built_by_the_description_that_the_warning_gives(tmp_path):
    network = randomise(Network(CleanAndNoise))
    path = save(network, tmp_path / "f.pth")
    (doubt,) = load_checkpoint(path).doubts
    entries = doubt.follows.partition("in a file, ")[2].partition(", and give")[0]
    described = entries.replace(", ", "\n").replace("]] ", "]]\n")
    (tmp_path / "mine.toml").write_text(described, encoding="utf-8")
    checkpoint = load_checkpoint(path, layout=str(tmp_path / "mine.toml"))
    assert list(checkpoint.branches) == ["main", "aux0"]
    for branch, position in (("main", 0), ("aux0", 1)):
        with torch.no_grad():
            expected = dual_networks.use_branch(network, position)(IMAGES)
            found = build(checkpoint.overridden(arch=PLAIN), branch)(IMAGES)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_file_of_one_branch_simply_works(tmp_path):
    network = randomise(Network(OneBranch))
    checkpoint = load_checkpoint(save(network, tmp_path / "f.pth"))
    assert (checkpoint.layout.name, list(checkpoint.branches)) == ("acl", ["main"])
    assert not checkpoint.doubts
    with torch.no_grad():
        found = build(checkpoint.overridden(arch=PLAIN))(IMAGES)
        torch.testing.assert_close(found, network(IMAGES), rtol=1e-6, atol=1e-6)


def test_layout_of_one_branch_can_be_described(tmp_path):
    class Only(Named):
        names = ("my_norm",)

    network = randomise(Network(Only))
    path = save(network, tmp_path / "f.pth")
    text = '[[branch]]\nkey = "{layer}.my_norm.{leaf}"\n'
    (tmp_path / "one.toml").write_text(text, encoding="utf-8")
    checkpoint = load_checkpoint(path, layout=str(tmp_path / "one.toml"))
    with torch.no_grad():
        found = build(checkpoint.overridden(arch=PLAIN))(IMAGES)
        torch.testing.assert_close(found, network(IMAGES), rtol=1e-6, atol=1e-6)


def groups(name):
    with torch.device("meta"):
        if name.startswith("timm:"):
            network = timm.create_model(name.removeprefix("timm:"))
        elif name.startswith("torchvision:"):
            name = name.removeprefix("torchvision:")
            extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            network = torchvision.models.get_model(name, weights=None, **extra)
        else:
            network = create_network(name, 10)
    return find_lookalikes(network.state_dict())


@pytest.mark.parametrize(
    "name",
    ["wrn16_1", "cifar_resnet20", "preactresnet18_bn", "resnext29_4x32", "timm:resnet18",
     "timm:res2net50_26w_4s", "timm:efficientnet_b0", "timm:repvgg_a0", "timm:mobileone_s0",
     "timm:dla34", "timm:hrnet_w18_small", "timm:fastvit_t8", "torchvision:densenet121",
     "torchvision:resnet50", "torchvision:shufflenet_v2_x0_5", "torchvision:googlenet"],
)  # fmt: skip
def test_ordinary_networks_have_no_lookalikes(name):
    assert not groups(name)


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_no_network_of_timm_has_lookalikes(module):
    for name in timm.list_models(module=module)[:2]:
        assert not groups(f"timm:{name}"), name
