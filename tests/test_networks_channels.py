"""Networks of grey images and of images of more channels, from arrays to ONNX files."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from recal import calibrate, evaluate, export_onnx, load_checkpoint
from recal.data.folders import open_images
from recal.data.images import with_channels
from recal.data.normalise import Normalisation
from recal.errors import InputError, UsageError
from recal.export.forms import Float16, Int8, Patchable
from recal.export.int8_images import held_out_images, range_images
from recal.networks.names import create_network
from recal.onnx_file.session import OnnxNetwork
from recal.policies.policy import load_policy
from recal.policies.preparation import Preparation
from recal.policies.prepared import PreparedImages
from recal.variant.build import build, convert
from recal.variant.statistics import BranchStatistics
from tests.dual_networks import randomise

MEAN, STD = (0.3, 0.4, 0.5, 0.6, 0.45), (0.2, 0.3, 0.4, 0.5, 0.35)


def pixels_of(channels, count=24):
    rng = np.random.default_rng(channels)
    return rng.integers(0, 256, (count, 32, 32, channels), dtype=np.uint8)


def prepared(source, policy, seed, channels):
    return PreparedImages(source, policy, seed, Preparation(size=32, channels=channels))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("channels")


def checkpoint_of(channels, folder):
    """Return a network of random tensors, its checkpoint, and a file of images with labels."""
    torch.manual_seed(channels)
    network = randomise(create_network("wrn10_1", 10, channels=channels)).eval()
    path = folder / f"wrn{channels}.pth"
    torch.save(network.state_dict(), path)
    images = pixels_of(channels)
    labels = np.arange(len(images)) % 10
    np.savez(folder / f"d{channels}.npz", images=images, labels=labels)
    checkpoint = load_checkpoint(path).overridden(mean=MEAN[:channels], std=STD[:channels])
    return network, checkpoint, folder / f"d{channels}.npz"


def inputs_of(pixels):
    """Return normalised images, float32 (N, C, H, W), by the formula."""
    channels = pixels.shape[3]
    x = (pixels / 255.0 - np.array(MEAN[:channels])) / np.array(STD[:channels])
    return torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_statistics_are_those_of_a_training_mode_pass(channels, folder):
    network, checkpoint, data = checkpoint_of(channels, folder)
    assert checkpoint.spec.channels == channels
    variant = calibrate(checkpoint, mode="clean", data=data, samples=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    with torch.no_grad():
        network(inputs_of(pixels_of(channels)))
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            found = variant.tensors[f"{name}.running_mean"]
            scale = module.running_var.sqrt().numpy()
            np.testing.assert_allclose(
                found / scale, module.running_mean.numpy() / scale, atol=1e-4
            )


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("form", [None, Float16(), Patchable()])
def test_files_take_as_many_channels_and_give_the_networks_logits(channels, uint8, form, folder):
    network, checkpoint, _ = checkpoint_of(channels, folder)
    pixels, path = pixels_of(channels), folder / "m.onnx"
    export_onnx(checkpoint, "main", path, pixels, form=form, uint8=uint8)
    onnx = OnnxNetwork(path)
    assert onnx.channels == onnx.record.model.channels == channels
    with torch.no_grad():
        expected = network(inputs_of(pixels)).numpy()
    found = onnx.classify(pixels, Normalisation(MEAN[:channels], STD[:channels]))
    tolerance = (1e-2 if isinstance(form, Float16) else 1e-4) * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
@pytest.mark.parametrize("channels", [1, 4])
def test_evaluation_counts_what_the_network_gets_right(channels, backend, folder, tmp_path):
    network, checkpoint, data = checkpoint_of(channels, folder)
    run = evaluate(checkpoint, suite="cifar10", data=data, output=tmp_path / "run", backend=backend)
    pixels = pixels_of(channels)
    with torch.no_grad():
        predicted = network(inputs_of(pixels)).argmax(1).numpy()
    right = (predicted == np.arange(len(pixels)) % 10).mean()
    assert run.summary.targets[0].clean_accuracy == pytest.approx(right)


def test_colour_becomes_grey_as_pillow_makes_it_and_grey_stays(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "a.png")
    grey = np.asarray(Image.fromarray(colour).convert("L"))
    Image.fromarray(grey).save(tmp_path / "b.png")
    source = open_images(tmp_path, "train")
    images = prepared(source, load_policy("cifar", "clean"), 0, 1)
    for index in (0, 1):
        np.testing.assert_array_equal(images.read(index)[..., 0], grey)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    rgb = with_channels(every, 3, "x")
    np.testing.assert_array_equal(with_channels(rgb, 1, "x"), every)
    with pytest.raises(InputError, match=r"a.png: expected 5 channels.* got 3. Give arrays"):
        prepared(source, load_policy("cifar", "clean"), 0, 5).read(0)


def test_policies_move_all_channels_alike_and_refuse_colour_ops(folder):
    """Channel c of five gets what it gets in an RGB image with the same draws."""
    *_, data = checkpoint_of(5, folder)
    source, weak = open_images(data, "train"), load_policy("cifar", "weak")
    five = prepared(source, weak, 7, 5)
    rgb = type(source)(data, source.images[..., :3], source.labels)
    for index in range(8):
        expected = prepared(rgb, weak, 7, 3).read(index)
        np.testing.assert_array_equal(five.read(index)[..., :3], expected)
    with pytest.raises(UsageError, match=r"'strong': .* 5 channels, got rand_augment"):
        prepared(source, load_policy("cifar", "strong"), 0, 5)


@pytest.mark.parametrize("mode", ["strong", "strong_noise", "augmix", "trivialaugment"])
def test_colour_policies_take_grey_images(mode, folder):
    *_, data = checkpoint_of(1, folder)
    source = open_images(data, "train")
    images = prepared(source, load_policy("cifar", mode), 0, 1)
    read = images.batch(range(24))
    assert read.shape == (24, 32, 32, 1)
    np.testing.assert_array_equal(read, images.batch(range(24)))
    assert len({image.tobytes() for image in read}) == 24


def test_timms_and_torchvisions_networks_of_grey_images_are_recognised(tmp_path):
    torch.manual_seed(0)
    network = randomise(timm.create_model("resnet18", in_chans=1, num_classes=4)).eval()
    torch.save(network.state_dict(), tmp_path / "f.pth")
    checkpoint = load_checkpoint(tmp_path / "f.pth").overridden(mean=[0.4], std=[0.2], size=32)
    assert checkpoint.spec.arch == "torchvision:resnet18"
    for arch in ("torchvision:resnet18", "timm:resnet18"):
        given = checkpoint.overridden(arch=arch)
        assert given.spec.channels == 1
        x = torch.randn(2, 1, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(build(given)(x), network(x))


def test_the_users_callable_is_given_the_number_of_channels(tmp_path):
    code = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, in_channels=3, num_classes=10):
        super().__init__(nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(8, num_classes))
def depthwise():
    return nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
"""
    (tmp_path / "net.py").write_text(code, encoding="utf-8")
    network = create_network(f"python:{tmp_path}/net.py:Net", 4, channels=6, trusted=True)
    torch.save(network.state_dict(), tmp_path / "f.pth")
    checkpoint = load_checkpoint(tmp_path / "f.pth").overridden(
        arch=f"python:{tmp_path}/net.py:Net"
    )
    with pytest.raises(UsageError, match=r"takes images of 6 channels, got none. Give --mean"):
        _ = checkpoint.spec
    checkpoint = checkpoint.overridden(mean=[0.5] * 6, std=[0.5] * 6, size=8)
    notes = convert(checkpoint, "main", tmp_path / "plain.safetensors")
    assert "computes what the variant does" in notes[0]
    again = load_checkpoint(tmp_path / "plain.safetensors")
    assert again.facts.channels == 6
    assert again.facts.mean == (0.5,) * 6
    arch = f"python:{tmp_path}/net.py:depthwise"
    torch.save(create_network(arch, 4, trusted=True).state_dict(), tmp_path / "d.pth")
    depthwise = load_checkpoint(tmp_path / "d.pth").overridden(arch=arch, classes=8)
    assert depthwise.spec.channels == 3


def test_numbers_of_other_channels_are_refused(folder):
    _, checkpoint, _ = checkpoint_of(4, folder)
    with pytest.raises(InputError, match=r"mean: expected 4 numbers, one for each channel.* got 3"):
        _ = checkpoint.overridden(mean=[0.5] * 3).spec
    np.save(folder / "first.npy", pixels_of(4).transpose(0, 3, 1, 2))
    with pytest.raises(InputError, match=r"Put the channels last: images.transpose"):
        open_images(folder / "first.npy", "train")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("channels", [1, 4])
def test_int8_files_take_as_many_channels_and_keep_predictions(channels, symmetric, folder):
    network, checkpoint, _ = checkpoint_of(channels, folder)
    pixels, path = pixels_of(channels, 96), folder / "i.onnx"
    with torch.no_grad():
        expected = network(inputs_of(pixels)).numpy()
    np.savez(folder / "i.npz", images=pixels, labels=expected.argmax(1))
    spec = checkpoint.spec
    images = range_images(spec, BranchStatistics(branch="main"), folder / "i.npz", count=48)
    held_out = held_out_images(spec, folder / "i.npz", images)
    form = Int8(images=images, held_out=held_out, max_drop=0.2, symmetric=symmetric)
    evidence = export_onnx(checkpoint, "main", path, held_out.pixels, form=form)
    onnx = OnnxNetwork(path)
    assert onnx.channels == onnx.record.model.channels == channels
    found = onnx.classify(pixels, Normalisation(MEAN[:channels], STD[:channels]))
    # the spread of logits over classes, by which int8 rounding is small
    spread = expected.std(axis=1).mean()
    assert np.abs(found - expected).mean() < 0.2 * spread
    held = np.setdiff1d(np.arange(96), images.indices)
    agreement = (found.argmax(1) == expected.argmax(1))[held].mean()
    assert evidence.int8.proof.agreement == pytest.approx(agreement, abs=0.03)
    assert agreement > 0.8
