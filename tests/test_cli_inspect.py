"""`recal inspect`, as people and programs call it."""

import json

import pytest
import torch
from click.testing import CliRunner
from timm.layers import convert_splitbn_model
from torch import nn

from recal.cli.inspect import command


@pytest.fixture
def split_file(tmp_path):
    """A small network with timm's split BN whose auxiliary branch was never trained."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))
    network(torch.randn(2, 3, 8, 8))
    network[1].running_mean.normal_()
    network = convert_splitbn_model(network, 2)
    network[1].aux_bn[0].reset_running_stats()
    torch.save(network.state_dict(), tmp_path / "split.pth")
    return tmp_path / "split.pth"


def inspect(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)


def test_inspect_json_is_one_document_with_the_documented_keys(split_file):
    document = json.loads(inspect(split_file, "--json").stdout)
    assert document["layout"] == "timm-splitbn"
    assert document["architecture"] is None
    assert [(b["name"], b["layers"]) for b in document["branches"]] == [("main", 1), ("aux0", 1)]
    assert any("aux0: never trained" in warning for warning in document["warnings"])


def test_inspect_text_shows_branches_and_warnings_without_an_architecture(split_file):
    text = inspect(split_file).stdout
    assert "timm-splitbn" in text
    assert "aux0 against main" in text
    assert "warning: aux0: never trained" in text
