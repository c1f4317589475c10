"""`recal inspect`, as people and programs call it."""

import json

import pytest
import torch
from timm.layers import convert_splitbn_model
from torch import nn

from recal.networks.names import create_network
from tests.dual_networks import NORMS, Network, randomise


@pytest.fixture
def split_file(tmp_path):
    """A small network with timm's split BN whose auxiliary branch was never trained."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(9, 5))
    network[1].running_mean.normal_()
    network = convert_splitbn_model(network, 2)
    network[1].aux_bn[0].reset_running_stats()
    torch.save(network.state_dict(), tmp_path / "split.pth")
    return tmp_path / "split.pth"


def test_json_is_one_document_with_the_documented_keys(recal, split_file):
    status, out, _ = recal("inspect", split_file, "--json")
    document = json.loads(out)
    assert status == 0
    assert document["layout"] == "timm-splitbn"
    assert document["architecture"] is None
    assert [(b["name"], b["layers"]) for b in document["branches"]] == [("main", 1), ("aux0", 1)]
    assert set(document["branches"][1]["distances"][0]) == {
        "layer", "mean_shift", "log_variance_ratio", "symmetric_kl", "affine_distance",
    }  # fmt: skip
    assert any("aux0: never trained" in warning for warning in document["warnings"])
    assert "score" not in document["branches"][0]


def test_json_of_broken_statistics_is_still_json(recal, tmp_path):
    state = randomise(Network(NORMS["mixbn"])).state_dict()
    state["norm1.aux_bn.running_mean"][0] = float("nan")
    torch.save(state, tmp_path / "f.pth")
    _, out, _ = recal("inspect", "f.pth", "--json")
    document = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["branches"][1]["distances"][0]["symmetric_kl"] is None


def test_text_shows_branches_bars_and_warnings_without_an_architecture(recal, split_file):
    status, out, err = recal("inspect", split_file)
    assert status == 0
    for text in ("timm-splitbn", "aux0 against main", "█"):
        assert text in out
    assert "warning: aux0: never trained" in err


def test_bundled_sample_is_used_and_said_where_no_checkpoint_is_named(recal):
    status, out, err = recal("inspect", "--json")
    assert status == 0
    assert "using the bundled Fashion-MNIST sample" in err
    assert [b["name"] for b in json.loads(out)["branches"]] == ["main", "aux0"]


def test_data_adds_accuracy_and_distance_of_every_branch(recal, split_checkpoint, class_folders):
    status, out, _ = recal("inspect", split_checkpoint, "--data", class_folders, "--json")
    assert status == 0
    for branch in json.loads(out)["branches"]:
        assert branch["score"]["images"] == 40
        assert 0 <= branch["score"]["accuracy"] <= 1
        assert branch["score"]["data_distance"] > 0
    _, out, _ = recal("inspect", split_checkpoint, "--data", class_folders, "--samples", "20")
    assert "on 20 clean images" in out
    assert "aux0: accuracy" in out


def test_options_of_images_are_refused_without_any(recal, split_checkpoint):
    status, _, err = recal("inspect", split_checkpoint, "--samples", 9)
    assert status == 2
    assert "--samples: expected --data too" in err


def test_plot_is_written_beside_the_text(recal, split_checkpoint, tmp_path):
    status, out, _ = recal("inspect", split_checkpoint, "--plot", "distances.svg")
    assert status == 0
    assert "Wrote distances.svg" in out
    assert "<svg" in (tmp_path / "distances.svg").read_text(encoding="utf-8")


def test_layout_and_roles_are_options(recal, tmp_path):
    torch.save(randomise(Network(NORMS["acl"])).state_dict(), tmp_path / "f.pth")
    _, _, err = recal("inspect", "f.pth")
    assert "warning: the roles are in doubt" in err
    _, out, err = recal("inspect", "f.pth", "--layout", "acl-reversed")
    assert "No warnings" in out
    assert err == ""
    _, out, _ = recal("inspect", "f.pth", "--roles", "main=1")
    assert "roles as given: main = 1" in out


def test_average_is_an_option_and_what_was_taken_is_said(recal, tmp_path):
    states = {name: randomise(Network(NORMS["mixbn"]), seed).state_dict()
              for seed, name in enumerate(("state_dict", "state_dict_ema"))}  # fmt: skip
    torch.save(states, tmp_path / "f.pth")
    _, out, _ = recal("inspect", "f.pth")
    assert "take them with --ema" in " ".join(out.split())
    _, out, _ = recal("inspect", "f.pth", "--ema")
    assert "averaged weights (EMA) taken from 'state_dict_ema'" in " ".join(out.split())


def test_architecture_is_told_where_the_keys_determine_it(recal, tmp_path):
    torch.save(create_network("wrn10_2", 10).state_dict(), tmp_path / "f.pth")
    _, out, _ = recal("inspect", "f.pth", "--json")
    assert json.loads(out)["architecture"] == "wrn10_2"


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 3, "got an empty file"),
        (b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.", 3, "would call posix.system"),
    ],
)
def test_bad_files_end_with_their_status_and_one_line(recal, content, status, message, tmp_path):
    (tmp_path / "f.pth").write_bytes(content)
    found, out, err = recal("inspect", "f.pth")
    assert found == status
    assert not out
    assert message in err
    assert err.count("\n") == 1


def test_unknown_layout_is_wrong_use(recal, split_file):
    status, _, err = recal("inspect", split_file, "--layout", "mixbm")
    assert status == 2
    assert "Did you mean 'mixbn'" in err


def test_a_slip_in_a_table_that_inspect_does_not_use_is_found(recal, split_file, tmp_path):
    (tmp_path / "recal.toml").write_text("[data]\ndat = 'x'\n", encoding="utf-8")
    status, _, err = recal("inspect", "f.pth")
    assert status == 3
    assert "recal.toml: data: expected one of data, workers, got 'dat'" in err
