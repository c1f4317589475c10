"""Formats, wrappers and averages: what training scripts put around the weights."""

import argparse
import io
import pathlib
import tempfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from recal.calibration.calibrate import calibrate
from recal.checkpoint.checkpoint import load_checkpoint
from recal.errors import InputError, UsageError
from recal.networks.spec import ModelOverrides
from recal.variant.build import build
from tests import dual_networks
from tests.dual_networks import NORMS, Network, Normalised, randomise

PLAIN = f"python:{pathlib.Path(dual_networks.__file__)}:plain"


@pytest.fixture
def network():
    return randomise(Network(NORMS["mixbn"]))


@pytest.fixture
def averaged():
    return randomise(Network(NORMS["mixbn"]), seed=1)


def same(checkpoint, network, dtype=torch.float32):
    """Every tensor of the file is one of the network's, and none is missing."""
    state = {k: v.to(dtype) for k, v in network.state_dict().items()}
    ours = dict(checkpoint.weights)
    for branch, infix in (("main", ""), ("aux0", "aux_bn.")):
        for key, tensor in checkpoint.branch(branch).items():
            layer, _, leaf = key.rpartition(".")
            ours[f"{layer}.{infix}{leaf}"] = tensor
    assert ours.keys() == state.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor.to(dtype), state[key], rtol=0, atol=0)


def write(content, path):
    torch.save(content, path)
    return path


names = st.text("abcXYZ019.é中", min_size=1, max_size=12)
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64,
                          torch.uint8, torch.bool, torch.complex64])  # fmt: skip
dimensions = st.lists(st.integers(0, 4), max_size=4)


@settings(max_examples=80)
@given(st.dictionaries(names, st.tuples(dtypes, dimensions), max_size=6), st.booleans())
def test_whatever_torch_saves_of_dense_tensors_is_read_as_it_was(content, new_format):
    state = {
        f"x.{name}": torch.ones(shape, dtype=dtype) for name, (dtype, shape) in content.items()
    }
    state |= {"bn.running_mean": torch.arange(3.0), "bn.running_var": torch.ones(3)}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "f.pth"
        torch.save(state, path, _use_new_zipfile_serialization=new_format)
        checkpoint = load_checkpoint(path)
    read = {**checkpoint.weights, **checkpoint.branch("main")}
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


@pytest.mark.parametrize(
    "wrapper",
    ["state_dict", "model", "net", "model_state_dict", "state_dict_ema", "model_ema", "ema"],
)
def test_wrapper_is_taken_off_and_said(wrapper, network, tmp_path):
    path = write({wrapper: network.state_dict(), "epoch": 3}, tmp_path / "f.pth")
    checkpoint = load_checkpoint(path)
    same(checkpoint, network)
    assert any(f"taken from '{wrapper}'" in note for note in checkpoint.notes)


def test_average_is_the_users_choice_and_what_was_taken_is_said(network, averaged, tmp_path):
    content = {"state_dict": network.state_dict(), "state_dict_ema": averaged.state_dict()}
    path = write(content, tmp_path / "f.pth")
    own, ema = load_checkpoint(path), load_checkpoint(path, ema=True)
    same(own, network)
    same(ema, averaged)
    assert "averaged weights under 'state_dict_ema' left; take them with --ema" in own.notes
    assert "averaged weights (EMA) taken from 'state_dict_ema'" in ema.notes
    assert own.weights_sha256 != ema.weights_sha256


def test_average_of_swa_utils_with_its_counter_is_read(network, tmp_path):
    average = torch.optim.swa_utils.AveragedModel(network)
    path = write({"model": network.state_dict(), "model_ema": average.state_dict()}, tmp_path / "f")
    same(load_checkpoint(path, ema=True), network)


def test_average_asked_for_and_absent_is_an_error(network, tmp_path):
    with pytest.raises(UsageError, match="expected averaged weights"):
        load_checkpoint(write(network.state_dict(), tmp_path / "f.pth"), ema=True)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."]
)
def test_prefixes_are_removed_and_said(prefix, network, tmp_path):
    state = {prefix + k: v for k, v in network.state_dict().items()}
    checkpoint = load_checkpoint(write(state, tmp_path / "f.pth"))
    same(checkpoint, network)
    assert f"prefix '{prefix}' removed from every name" in checkpoint.notes


def test_loss_and_metrics_beside_the_network_are_left_out(network, tmp_path):
    """As Lightning saves a module with a weighted loss."""
    state = {f"model.{k}": v for k, v in network.state_dict().items()}
    content = {"state_dict": {**state, "criterion.weight": torch.ones(5)}, "hyper_parameters": {}}
    same(load_checkpoint(write(content, tmp_path / "f.ckpt")), network)


def test_data_parallel_and_compiled_modules_are_read_as_they_save_themselves(network, tmp_path):
    for wrapped in (nn.DataParallel(network), torch.compile(network)):
        same(load_checkpoint(write(wrapped.state_dict(), tmp_path / "f.pth")), network)


@pytest.mark.parametrize("front", ["named", "sequential", "buffers"])
def test_normalisation_in_front_becomes_mean_and_std(front, tmp_path):
    network = randomise(Network(nn.BatchNorm2d))
    whole = Normalised(network)
    state = whole.state_dict()
    if front == "sequential":
        state = {
            k.replace("model.", "1.") if "model" in k else f"0.{k}": v for k, v in state.items()
        }
    elif front == "buffers":
        state = {"mu": whole.mean, "sigma": whole.std, **network.state_dict()}
    checkpoint = load_checkpoint(write(state, tmp_path / "f.pth"))
    spec = checkpoint.overridden(arch=PLAIN).spec
    assert spec.mean == pytest.approx((0.4, 0.5, 0.6))
    assert spec.std == pytest.approx((0.2, 0.3, 0.4))
    images = torch.rand(3, 3, 9, 9)
    shape = (1, 3, 1, 1)
    outside = (images - torch.tensor(spec.mean).view(shape)) / torch.tensor(spec.std).view(shape)
    own_class = PLAIN.replace(":plain", ":normalised")
    with torch.no_grad():
        for arch in (PLAIN, own_class):
            built = build(checkpoint.overridden(arch=arch))
            torch.testing.assert_close(built(outside), whole.eval()(images), atol=1e-6, rtol=1e-6)


def test_network_that_normalises_itself_wants_the_same_numbers_where_the_file_has_none(tmp_path):
    """Otherwise its own would be lost, or applied twice."""
    network = randomise(Network(nn.BatchNorm2d))
    checkpoint = load_checkpoint(write(network.state_dict(), tmp_path / "f.pth"))
    arch = PLAIN.replace(":plain", ":normalised")
    with pytest.raises(InputError, match=r"the network's own mean.*--mean 0\.4,0\.5,0\.6"):
        build(checkpoint.overridden(arch=arch))
    built = build(checkpoint.overridden(arch=arch, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)))
    images = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(built(images), network(images), atol=1e-6, rtol=1e-6)


def test_normalisation_of_bytes_is_scaled(tmp_path):
    state = {"mean": torch.tensor([125.0, 120.0, 110.0]), "std": torch.full((3,), 51.0)}
    state |= Network(nn.BatchNorm2d).state_dict()
    spec = load_checkpoint(write(state, tmp_path / "f.pth")).overridden(arch=PLAIN).spec
    assert spec.std == pytest.approx((0.2,) * 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_build_in_float32(dtype, network, tmp_path):
    path = write({k: v.to(dtype) if v.is_floating_point() else v
                  for k, v in network.state_dict().items()}, tmp_path / "f.pth")  # fmt: skip
    checkpoint = load_checkpoint(path)
    same(checkpoint, network, dtype)
    built = build(checkpoint.overridden(arch=PLAIN), "aux0")
    assert {p.dtype for p in built.parameters()} == {torch.float32}
    rounded = Network(NORMS["mixbn"])
    rounded.load_state_dict(torch.load(path, weights_only=True))
    images = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        expected = dual_networks.use_branch(rounded.eval(), 1)(images)
    torch.testing.assert_close(built(images), expected, atol=1e-6, rtol=1e-6)


def test_safetensors_is_read_whatever_it_is_called(network, tmp_path):
    save_file({k: v.clone() for k, v in network.state_dict().items()}, tmp_path / "f.pth")
    same(load_checkpoint(tmp_path / "f.pth"), network)


def test_file_from_before_torch_1_6_is_read(network, tmp_path):
    torch.save({"state_dict": network.state_dict()}, tmp_path / "f.pth",
               _use_new_zipfile_serialization=False)  # fmt: skip
    same(load_checkpoint(tmp_path / "f.pth"), network)


def test_file_without_counters_builds(network, tmp_path):
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    checkpoint = load_checkpoint(write(state, tmp_path / "f.pth"))
    assert build(checkpoint.overridden(arch=PLAIN), "aux0") is not None


def test_training_checkpoint_as_timm_writes_it_is_read(network, averaged, tmp_path):
    """With argparse.Namespace, optimizer state, NumPy scalars, paths, and the average."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    args = argparse.Namespace(
        model="resnet18", num_classes=5, mean=None, std=[0.5, 0.5, 0.5], img_size=96,
        output=pathlib.PurePosixPath("/tmp"), lr=np.float64(0.1),
    )  # fmt: skip
    content = {
        "epoch": 7, "arch": "resnet18", "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(), "version": 2, "args": args,
        "amp_scaler": {"scale": 65536.0}, "state_dict_ema": averaged.state_dict(),
        "metric": np.float32(77.5), "history": np.arange(3.0),
    }  # fmt: skip
    path = write(content, tmp_path / "checkpoint-7.pth.tar")
    same(load_checkpoint(path), network)
    same(load_checkpoint(path, ema=True), averaged)
    facts = load_checkpoint(path).facts
    assert facts == ModelOverrides(arch="resnet18", classes=5, std=(0.5,) * 3, size=96)


def test_checkpoint_of_timms_own_saver_is_read(tmp_path):
    """The real thing, with its arguments and averaged model, through convert_splitbn_model."""
    import timm
    from timm.layers import convert_splitbn_model
    from timm.utils import CheckpointSaver, ModelEmaV2

    network = randomise(convert_splitbn_model(timm.create_model("resnet10t", num_classes=4), 2))
    args = argparse.Namespace(
        model="resnet10t", num_classes=4, img_size=None, mean=None, crop_pct=0.9,
        interpolation="random", crop_mode="squash",
    )  # fmt: skip
    saver = CheckpointSaver(
        network, torch.optim.SGD(network.parameters(), 0.1), args=args,
        model_ema=ModelEmaV2(network), checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path),
    )  # fmt: skip
    saver.save_checkpoint(0, metric=np.float64(50.0))
    checkpoint = load_checkpoint(tmp_path / "last.pth.tar")
    assert checkpoint.layout.name == "timm-splitbn"
    assert checkpoint.spec.arch == "timm:resnet10t"
    # timm's configuration is of ImageNet's weights, and says nothing of another data set
    assert (checkpoint.spec.family, checkpoint.spec.size) == ("imagenet", 176)
    assert checkpoint.spec.preparation.words == "176 pixels, squash crop of 0.9, bicubic"
    tiny = checkpoint.overridden(family="tiny", classes=4).spec
    assert (tiny.size, tiny.mean) == (64, (0.4802, 0.4481, 0.3975))
    built = build(checkpoint)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(built(images), network(images), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning"
)
def test_torchscript_is_refused_with_advice(tmp_path):
    script = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(),
                             torch.ones(1, 3, 2, 2))  # fmt: skip
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    (tmp_path / "f.pt").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"TorchScript program.*state_dict"):
        load_checkpoint(tmp_path / "f.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "got a dictionary with no keys"),
        ({"epoch": 3}, "got a dictionary with epoch"),
        ([1, 2], "got a list"),
        ({"fc.weight": torch.ones(2, 3)}, "no running_mean among them"),
        (torch.ones(3), "got a Tensor"),
    ],
)
def test_file_without_weights_is_refused(content, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_checkpoint(write(content, tmp_path / "f.pth"))


def test_several_networks_in_one_file_are_refused_by_name(tmp_path):
    state = Network(nn.BatchNorm2d).state_dict()
    with pytest.raises(InputError, match="generator, discriminator"):
        load_checkpoint(write({"generator": state, "discriminator": state}, tmp_path / "f.pth"))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"", "an empty file"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"<!DOCTYPE html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"\x08\x07\x12\x07pytorch", "ONNX"),
        (b"hello, world", "neither a PyTorch nor a safetensors file"),
        (b"\x00" * 257 + b"ustar  \x00", "tar archive"),
    ],
)
def test_file_of_another_kind_is_named(head, message, tmp_path):
    (tmp_path / "f.pth").write_bytes(head)
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path / "f.pth")


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="but it does not exist"):
        load_checkpoint(tmp_path / "none.pth")
    with pytest.raises(InputError, match="got a folder"):
        load_checkpoint(tmp_path)


def test_variant_in_the_place_of_a_checkpoint_is_named(network, tmp_path):
    from recal.variant.variant import branch_variant, save_variant

    checkpoint = load_checkpoint(write(network.state_dict(), tmp_path / "f.pth"))
    variant = branch_variant(checkpoint.overridden(arch="wrn16_1"), "aux0")
    save_variant(variant, tmp_path / "v.safetensors")
    with pytest.raises(InputError, match="got a variant"):
        load_checkpoint(tmp_path / "v.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_half_precision_statistics_without_a_finite_value_are_read_and_repaired(
    tmp_path, network, value
):
    """In the other byte order they are small numbers, which is no reason to refuse the file."""
    state = {key: tensor.half() for key, tensor in network.state_dict().items()}
    lost = {
        key: torch.full_like(tensor, value) if "running_" in key else tensor
        for key, tensor in state.items()
    }
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    repaired, expected = (
        calibrate(build(load_checkpoint(write(content, tmp_path / name)).overridden(arch=PLAIN)),
                  [images])
        for name, content in (("lost.pth", lost), ("whole.pth", state))
    )  # fmt: skip
    assert all(tensor.isfinite().all() for tensor in repaired.state_dict().values())
    torch.testing.assert_close(repaired(images), expected(images), rtol=0, atol=0)
