"""`recal convert`: the file is an ordinary checkpoint for those who load it."""

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from timm.layers import convert_splitbn_model

from recal.checkpoint.checkpoint import load_checkpoint
from recal.variant.build import build
from recal.variant.variant import branch_variant, save_variant
from tests import dual_networks
from tests.dual_networks import NORMS, Network, randomise

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def split_file(network, path):
    network = randomise(convert_splitbn_model(network, 2))
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, path)
    return load_checkpoint(path)


@torch.no_grad()
def same(network, checkpoint, branch, **asked):
    expected = build(checkpoint.overridden(**asked), branch)(IMAGES)
    torch.testing.assert_close(network.eval()(IMAGES), expected, atol=1e-6, rtol=1e-6)
    other = build(checkpoint.overridden(**asked), "main" if branch == "aux0" else "aux0")(IMAGES)
    assert (expected - other).abs().max() > 1e-3


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_timm_loads_the_file_with_its_own_loader(suffix, recal, tmp_path):
    checkpoint = split_file(timm.create_model("resnet10t", num_classes=4), tmp_path / "f.pth")
    out = tmp_path / f"plain.{suffix}"
    status, text, _ = recal(
        "convert", "f.pth", "--variant", "aux0", "-o", out, "--arch", "timm:resnet10t"
    )
    assert status == 0
    assert "timm:resnet10t loads it with strict=True and computes what the variant does" in text
    network = timm.create_model("resnet10t", num_classes=4)
    timm.models.load_checkpoint(network, str(out), strict=True)
    same(network, checkpoint, "aux0", arch="timm:resnet10t")


@pytest.mark.slow
def test_torchvision_loads_the_file(recal, tmp_path):
    checkpoint = split_file(torchvision.models.resnet18(num_classes=6), tmp_path / "f.pth")
    status, text, _ = recal("convert", "f.pth", "-o", "plain.pth")
    assert status == 0
    assert "torchvision:resnet18 loads it with strict=True" in text
    network = torchvision.models.resnet18(num_classes=6)
    network.load_state_dict(torch.load(tmp_path / "plain.pth", weights_only=True), strict=True)
    same(network, checkpoint, "main")


def test_code_of_ones_own_loads_the_file_and_no_architecture_is_needed(recal, tmp_path):
    torch.save(randomise(Network(NORMS["once-for-all"])).state_dict(), tmp_path / "f.pth")
    status, text, _ = recal("convert", "f.pth", "--variant", "aux0", "-o", "plain.pth")
    assert status == 0
    assert "not loaded again, because the checkpoint names no architecture" in text
    network = dual_networks.plain()
    network.load_state_dict(torch.load(tmp_path / "plain.pth", weights_only=True), strict=True)
    same(
        network,
        load_checkpoint(tmp_path / "f.pth"),
        "aux0",
        arch="python:tests.dual_networks:plain",
    )


def test_class_that_holds_the_branches_itself_is_said_not_to_load_the_file(recal, tmp_path):
    torch.save(randomise(Network(NORMS["mixbn"])).state_dict(), tmp_path / "f.pth")
    arch = f"python:{dual_networks.__file__}:mixbn"
    status, text, _ = recal("convert", "f.pth", "-o", "plain.pth", "--arch", arch, "--size", "9")
    assert status == 0
    assert "is not plain" in text
    dual_networks.plain().load_state_dict(torch.load(tmp_path / "plain.pth"), strict=True)


def test_variants_file_is_converted_and_the_result_is_read_back(recal, split_checkpoint, tmp_path):
    checkpoint = load_checkpoint(split_checkpoint)
    mixed = branch_variant(checkpoint, "aux0", statistics="main")
    save_variant(mixed, tmp_path / "v.variant")
    status, _, _ = recal("convert", split_checkpoint, "--variant", "v.variant",
                         "-o", "plain.safetensors")  # fmt: skip
    assert status == 0
    plain = load_checkpoint(tmp_path / "plain.safetensors")
    assert plain.weights_sha256 == checkpoint.weights_sha256
    assert list(plain.branches) == ["main"]
    assert plain.spec == checkpoint.spec
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(build(plain)(images), build(checkpoint, mixed)(images))


def test_same_request_gives_the_same_bytes_and_no_local_path(recal, split_checkpoint, tmp_path):
    for name in ("a.safetensors", "b.safetensors", "a.pth", "b.pth"):
        recal("convert", split_checkpoint, "-o", name)
    for suffix in ("safetensors", "pth"):
        first, second = ((tmp_path / f"{n}.{suffix}").read_bytes() for n in "ab")
        assert first == second
        assert str(tmp_path).encode() not in first
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert list(file.metadata()) == ["recal.checkpoint"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("-o", "plain.onnx"), 2, "expected a name in .safetensors, .pth, .pt"),
        (("--variant", "aux7", "-o", "plain.pth"), 2, "Did you mean 'aux0'"),
        (("--arch", "wrn16_2", "-o", "plain.pth"), 3, "weights and architecture do not fit"),
        (("--variant", "none.safetensors", "-o", "plain.pth"), 3, "but it does not exist"),
    ],
)
def test_slips_end_with_their_status_and_write_nothing(
    recal, split_checkpoint, arguments, status, message, tmp_path
):
    found, _, err = recal("convert", split_checkpoint, *arguments)
    assert found == status
    assert message in err
    assert not list(tmp_path.glob("plain*"))


def test_variant_of_other_weights_is_refused(recal, split_checkpoint, tmp_path):
    other = split_file(timm.create_model("resnet10t", num_classes=4), tmp_path / "f.pth")
    save_variant(
        branch_variant(other.overridden(arch="timm:resnet10t"), "main"),
        tmp_path / "v.safetensors",
    )
    status, _, err = recal("convert", split_checkpoint, "--variant", "v.safetensors", "-o", "p.pth")
    assert status == 3
    assert "expected the weights that the variant was made for" in err
