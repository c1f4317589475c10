"""Files of quantisation-aware training (torch.ao), against torch's own network and pass."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from recal import build, calibrate, load_checkpoint
from recal.data.folders import open_images
from recal.data.images import usable_batches
from recal.errors import InputError
from recal.networks.names import create_network

CODE = """
import warnings
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(8, 6, 3, stride=2), nn.BatchNorm2d(6)
        self.bn3, self.fc = nn.BatchNorm2d(6), nn.Linear(6, 10)

    def forward(self, x):
        x = self.conv2(self.relu(self.bn(self.conv(x))))
        return self.fc(self.bn3(torch.relu(self.bn2(x))).mean((2, 3)))

def plain():
    return Net()

def fused(backend="fbgemm"):
    from torch.ao import quantization
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is being replaced by torchao
        pairs = [["conv", "bn", "relu"], ["conv2", "bn2"]]
        network = quantization.fuse_modules_qat(Net().train(), pairs)
        network.qconfig = quantization.get_default_qat_qconfig(backend)
        return quantization.prepare_qat(network)

def per_tensor():
    return fused("qnnpack")

def older():
    from torch.ao import quantization
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = quantization.fuse_modules_qat(Net().train(), [["conv", "bn", "relu"]])
        network.qconfig = quantization.get_default_qat_qconfig("fbgemm", version=0)
        return quantization.prepare_qat(network)

def graph():
    from torch.ao import quantization
    from torch.ao.quantization.quantize_fx import prepare_qat_fx
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mapping = quantization.get_default_qat_qconfig_mapping("fbgemm")
        return prepare_qat_fx(Net().train(), mapping, (torch.zeros(1, 3, 32, 32),))
"""
KINDS = ("fused", "per_tensor", "older", "graph")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(params=KINDS)
def trained(request, tmp_path, monkeypatch):
    """Return the architecture, a network after three steps, and pixels; write f.pth and d.npz."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE, encoding="utf-8")
    arch = f"python:net.py:{request.param}"
    torch.manual_seed(0)
    network = create_network(arch, 10, trusted=True)
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(3):
        network(torch.randn(16, 3, 32, 32)).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    torch.save(network.state_dict(), "f.pth")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    deployed = deployed_of(network)
    with torch.no_grad():
        labels = deployed(normalised(pixels)).argmax(1).numpy()
    labels[40:] = (labels[40:] + 1) % 10
    np.savez("d.npz", images=pixels, labels=labels)
    return arch, deployed, pixels


def deployed_of(network):
    from torch.ao import quantization

    return network.eval().apply(quantization.disable_observer)


def normalised(pixels):
    values = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(values.transpose(0, 3, 1, 2).astype(np.float32))


def checkpoint_of(arch):
    return load_checkpoint("f.pth", arch=arch).overridden(classes=10, mean=MEAN, std=STD)


OPTIONS = ("--mean", "0.4,0.5,0.6", "--std", "0.2,0.25,0.3")


def test_build_gives_torchs_outputs_with_observers_off(trained):
    arch, deployed, pixels = trained
    network = build(checkpoint_of(arch))
    x = normalised(pixels)
    with torch.no_grad():
        expected = deployed(x)
        for _ in range(2):  # observers that were on would change the second
            torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-6)
    for name, tensor in deployed.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(network.state_dict()[name], tensor), name


@pytest.mark.parametrize("estimator", ["pooled", "consistent"])
def test_calibrate_gives_the_statistics_of_torchs_own_pass(trained, estimator):
    """The reference is a training-mode pass of BatchNorm alone; its variances are unbiased."""
    arch, deployed, pixels = trained
    variant = calibrate(
        checkpoint_of(arch), mode="clean", data="d.npz", batch_size=64, estimator=estimator
    )
    counts = {}
    for name, layer in deployed.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
            layer.momentum = 1.0
            layer.register_forward_pre_hook(
                lambda _, given, name=name: counts.update({name: given[0][:, 0].numel()})
            )
    drawn = np.concatenate(batches_of(variant))
    with torch.no_grad():
        deployed(normalised(pixels)[drawn])
    assert len(counts) == 3
    for name, count in counts.items():
        layer = deployed.get_submodule(name)
        found = [variant.tensors[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var")]
        # a value may be rounded to the next of 256 levels
        close = (
            {"rtol": 1e-4, "atol": 1e-4} if estimator == "pooled" else {"rtol": 1e-2, "atol": 2e-3}
        )
        np.testing.assert_allclose(found[0], layer.running_mean, **close)
        np.testing.assert_allclose(found[1], layer.running_var * (1 - 1 / count), **close)


def batches_of(variant):
    """Return the order in which the images were read."""
    used = variant.estimated
    source = open_images(Path("d.npz"), "train")
    batches, _ = usable_batches(source, None, used.batch_size, used.seed)
    return batches


def test_inspect_eval_and_convert_give_torchs_numbers_and_export_is_refused(trained, recal):
    arch, deployed, pixels = trained
    named = ("--arch", arch, *OPTIONS)
    status, out, err = recal("inspect", "f.pth", *named, "--data", "d.npz")
    assert status == 0, err
    assert "observers are switched off" in out
    assert "main: accuracy 62.50%" in out
    common = ("--suite", "cifar10", "--data", "d.npz", "--format", "csv")
    status, out, err = recal("eval", "f.pth", *named, *common)
    assert status == 0, err
    (row,) = csv.DictReader(io.StringIO(out))
    assert float(row["clean_accuracy"]) == 0.625
    onnx = ("eval", "f.pth", *named, *common[:4], "--backend", "onnxruntime")
    for command in (onnx, ("export", "f.pth", *named, "-o", "m.onnx")):
        status, out, err = recal(*command)
        assert status != 0
        assert "simulated integers of quantisation-aware training" in err
        assert "--backend torch" in err
    status, out, err = recal("convert", "f.pth", *named, "-o", "c.pth")
    assert status == 0, err
    assert "loads it with strict=True and computes what the variant does" in out
    twin = create_network(arch, 10, trusted=True)
    twin.load_state_dict(torch.load("c.pth"))
    with torch.no_grad():
        expected = deployed(normalised(pixels))
        torch.testing.assert_close(deployed_of(twin)(normalised(pixels)), expected)


def test_a_plain_network_for_such_a_file_is_refused_with_what_to_name(trained):
    arch, *_ = trained
    plain = arch.replace(arch.rpartition(":")[2], "plain")
    with pytest.raises(InputError, match=r"as prepare_qat made it"):
        build(checkpoint_of(plain))
