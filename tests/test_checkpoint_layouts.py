"""Every layout: real modules of it, saved, read, built, and compared with what they computed."""

from pathlib import Path

import pytest
import torch
from torch import nn

from recal.checkpoint.branches import branch_names
from recal.checkpoint.checkpoint import load_checkpoint
from recal.checkpoint.layouts import BY_NAME, LAYOUTS
from recal.errors import InputError, UsageError
from recal.variant.build import build
from recal.variant.plain import batch_norms
from tests import dual_networks
from tests.dual_networks import NORMS, Network, SiblingNetwork, randomise, use_branch

CODE = f"python:{Path(dual_networks.__file__)}"
REFUSED = {"slimmable", "det-advprop-heads"}


@pytest.fixture
def images():
    return torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(7))


def saved(network, path):
    torch.save(network.state_dict(), path)
    return path


@torch.no_grad()
def same_outputs(network, checkpoint, arch, images):
    """Compare every branch with the original; each has to differ from the others, too."""
    outputs = []
    for position, name in enumerate(branch_names(len(checkpoint.branches))):
        expected = use_branch(network, position)(images)
        built = build(checkpoint.overridden(arch=arch), name)
        torch.testing.assert_close(built(images), expected, atol=1e-6, rtol=1e-6)
        assert all((expected - other).abs().max() > 1e-2 for other in outputs)
        outputs.append(expected)


@pytest.mark.parametrize("layout", NORMS)
def test_branches_of_a_layout_equal_the_original_modules(layout, tmp_path, images):
    network = randomise(Network(NORMS[layout]))
    checkpoint = load_checkpoint(saved(network, tmp_path / "file.pth"))
    assert checkpoint.layout.name == layout
    assert len(checkpoint.branches) == NORMS[layout].branches
    assert len(checkpoint.layers) == 2
    same_outputs(network, checkpoint, f"{CODE}:plain", images)


@pytest.mark.parametrize("layout", NORMS)
def test_branches_built_in_the_users_own_dual_class_equal_the_original(layout, tmp_path, images):
    """An architecture given by python: whose own class holds the branches is made plain."""
    network = randomise(Network(NORMS[layout]))
    checkpoint = load_checkpoint(saved(network, tmp_path / "file.pth"))
    arch = f"{CODE}:{layout.replace('-', '_')}"
    if not hasattr(dual_networks, layout.replace("-", "_")):
        setattr(dual_networks, layout.replace("-", "_"), dual_networks.dual(layout))
        arch = f"python:tests.dual_networks:{layout.replace('-', '_')}"
    same_outputs(network, checkpoint, arch, images)
    assert list(batch_norms(build(checkpoint.overridden(arch=arch), "aux0"))) == checkpoint.layers


def test_siblings_in_one_block_equal_the_original_as_plain_and_as_own_class(tmp_path, images):
    network = randomise(SiblingNetwork())
    checkpoint = load_checkpoint(saved(network, tmp_path / "file.pth"))
    assert checkpoint.layout.name == "acl-legacy"
    same_outputs(network, checkpoint, f"{CODE}:plain_siblings", images)
    same_outputs(network, checkpoint, f"{CODE}:siblings", images)
    assert list(batch_norms(build(checkpoint.overridden(arch=f"{CODE}:siblings"), "aux0"))) == [
        "block.bn1",
        "block.bn2",
    ]


def test_every_row_of_the_table_is_tested_here():
    tested = {*NORMS, *REFUSED, "acl-legacy", "acl-reversed", "plain"}
    assert {layout.name for layout in LAYOUTS} == tested


@pytest.mark.parametrize(
    ("norm", "name"),
    [(dual_networks.Slimmable, "slimmable"), (dual_networks.DetAdvPropHeads, "det-advprop-heads")],
)
def test_layouts_that_cannot_be_used_are_refused_by_name(norm, name, tmp_path):
    path = saved(randomise(Network(norm)), tmp_path / "file.pth")
    with pytest.raises(InputError, match=f"layout {name} "):
        load_checkpoint(path)
    with pytest.raises(InputError, match=BY_NAME[name].writer):
        load_checkpoint(path, layout=name)


def test_plain_network_with_a_list_of_norms_beside_its_convolutions_is_no_domain_bn(
    tmp_path, images
):
    network = randomise(dual_networks.scales())
    checkpoint = load_checkpoint(saved(network, tmp_path / "file.pth"))
    assert checkpoint.layout.name == "plain"
    assert checkpoint.layers == ["layer.bns.0", "layer.bns.1"]
    with torch.no_grad():
        built = build(checkpoint.overridden(arch=f"{CODE}:scales"))(images)
        torch.testing.assert_close(built, network(images))


@pytest.mark.parametrize("name", ["res2net50_26w_4s", "res2next50"])
def test_res2net_of_timm_is_plain(name):
    import timm

    from recal.checkpoint.branches import recognise

    with torch.device("meta"):
        keys = timm.create_model(name).state_dict()
    assert any(".bns.1." in key for key in keys)
    assert recognise(keys, "file").name == "plain"


def test_lists_that_may_be_branches_or_layers_ask_for_the_layout(tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.bns = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))

    path = saved(nn.ModuleDict({"block": Block()}), tmp_path / "file.pth")
    with pytest.raises(UsageError, match=r"domain, plain\. Seen at block\..*--layout"):
        load_checkpoint(path)
    assert list(load_checkpoint(path, layout="domain").branches) == ["main", "aux0"]
    assert load_checkpoint(path, layout="plain").layers == ["block.bns.0", "block.bns.1"]


def test_roles_in_doubt_are_positions_with_a_warning_until_they_are_given(tmp_path):
    path = saved(randomise(Network(dual_networks.ACL)), tmp_path / "file.pth")
    by_position = load_checkpoint(path)
    assert "roles are in doubt" in by_position.doubts[0].sentence
    for reversed_ in (
        load_checkpoint(path, layout="acl-reversed"),
        load_checkpoint(path, roles="main=1,aux0=0"),
        load_checkpoint(path, roles={"main": 1}),
    ):
        assert not reversed_.doubts
        for ours, theirs in (("main", "aux0"), ("aux0", "main")):
            for key, tensor in by_position.branch(ours).items():
                torch.testing.assert_close(reversed_.branch(theirs)[key], tensor, equal_nan=False)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ("main=2", "positions 0 to 1, got main=2"),
        ("aux7=0", "expected main, aux0"),
        ("main=0,aux0=0", "each position once"),
        ("main", "expected main=1,aux0=0"),
        ("main=one", "expected main=1,aux0=0"),
    ],
)
def test_roles_that_do_not_fit_are_refused(roles, message, tmp_path):
    path = saved(Network(dual_networks.ACL), tmp_path / "file.pth")
    with pytest.raises(UsageError, match=message):
        load_checkpoint(path, roles=roles)


def test_layout_of_ones_own_is_read_from_toml(tmp_path, images):
    class Own(dual_networks.Named):
        names, branches = ("norm_attacked", "norm_clean"), 2

    network = randomise(Network(Own))
    path = saved(network, tmp_path / "file.pth")
    (tmp_path / "own.toml").write_text(
        'name = "own"\nroles = "main = attacked"\n'
        '[[branch]]\nkey = "{layer}.norm_attacked.{leaf}"\n'
        '[[branch]]\nkey = "{layer}.norm_clean.{leaf}"\n',
        encoding="utf-8",
    )
    assert load_checkpoint(path).layout.name == "plain"  # nothing tells that these are branches
    checkpoint = load_checkpoint(path, layout=str(tmp_path / "own.toml"))
    assert checkpoint.layout.name == "own"
    same_outputs(network, checkpoint, f"{CODE}:plain", images)


def test_layout_of_ones_own_with_numbers_and_shared_affine_is_read(tmp_path, images):
    class Own(nn.Module):
        branches, branch = 3, 0

        def __init__(self, channels):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
            self.stats = nn.ModuleList(nn.BatchNorm2d(channels, affine=False) for _ in range(3))

        def forward(self, x):
            x = self.stats[self.branch](x)
            return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)

    network = randomise(Network(Own))
    path = saved(network, tmp_path / "file.pth")
    (tmp_path / "own.toml").write_text(
        'affine = "shared"\n[[branch]]\nkey = "{layer}.stats.{index}.{leaf}"\n', encoding="utf-8"
    )
    checkpoint = load_checkpoint(path, layout=str(tmp_path / "own.toml"))
    assert list(checkpoint.branches) == ["main", "aux0", "aux1"]
    same_outputs(network, checkpoint, f"{CODE}:plain", images)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("branch = 3", "branch: expected a list, got 3"),
        ("[[branch]]\nkeys = 'a'", "Did you mean 'key'"),
        ("[[branch]]\nkey = 'norm.{leaf}'", "expected a pattern such as"),
        ("branch = []", "branch: expected at least one"),
        (
            "affine = 'both'\n[[branch]]\nkey = '{layer}.n.{index}.{leaf}'",
            "affine: expected one of own",
        ),
        ("name = 3\n[[branch]]\nkey = '{layer}.n.{index}.{leaf}'", "name: expected a string"),
        ("[[branch", "expected TOML"),
    ],
)
def test_layout_files_with_slips_are_refused(text, message, tmp_path):
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    path = saved(Network(dual_networks.ACL), tmp_path / "file.pth")
    with pytest.raises(InputError, match=message):
        load_checkpoint(path, layout=str(tmp_path / "own.toml"))


def test_unknown_layout_is_refused_with_the_nearest(tmp_path):
    path = saved(Network(dual_networks.ACL), tmp_path / "file.pth")
    with pytest.raises(UsageError, match="Did you mean 'dubin'"):
        load_checkpoint(path, layout="dubinn")


def test_layout_that_the_file_is_not_of_is_refused(tmp_path):
    path = saved(Network(dual_networks.ACL), tmp_path / "file.pth")
    with pytest.raises(InputError, match="expected branches of layout mixbn"):
        load_checkpoint(path, layout="mixbn")


def test_branch_that_lacks_a_layer_is_refused(tmp_path):
    state = Network(NORMS["once-for-all"]).state_dict()
    whole = {k: v for k, v in state.items() if not k.startswith("norm1.BN_a.running")}
    torch.save(whole, tmp_path / "file.pth")
    with pytest.raises(InputError, match="norm1 lacks branch 1"):
        load_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("layout", "key", "message"),
    [
        ("subbn", "body.1.split_bn.running_mean", "expected 2 times 6 channels, got 7"),
        ("subbn", "norm1.split_bn.running_mean", "norm1: running_mean of the splits"),
        ("sandwich", "norm1.embed.weight", r"norm1\.embed\.weight: expected shape \(3, 16\)"),
        ("shared-affine", "norm1.adv_running_mean", "different numbers of channels"),
        ("once-for-all", "norm1.BN_a.bias", r"aux0: norm1\.bias: expected a vector of \(8,\)"),
    ],
)
def test_tensors_of_the_wrong_size_are_refused(layout, key, message, tmp_path):
    state = Network(NORMS[layout]).state_dict()
    state[key] = torch.zeros(7)
    state[key.replace("mean", "var")] = torch.zeros(7)
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path / "file.pth")


def test_layer_with_one_batch_norm_serves_every_branch(tmp_path, images):
    """As where an AdvProp port left one layer unconverted."""
    network = Network(NORMS["mixbn"])
    network.norm1 = nn.BatchNorm2d(8)
    checkpoint = load_checkpoint(saved(randomise(network), tmp_path / "file.pth"))
    assert "one BatchNorm for all branches at norm1" in checkpoint.notes
    same_outputs(network, checkpoint, f"{CODE}:plain", images)
