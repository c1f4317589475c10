"""Modules as others' code makes them: quantisation-aware, half frozen, with foreign norm layers."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from recal import calibrate
from recal.errors import InputError, RecalWarning


class Net(nn.Module):
    def __init__(self, first=nn.BatchNorm2d, second=nn.BatchNorm2d):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), first(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3), second(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc(self.bn2(self.conv2(x)).mean((2, 3)))


def images_of(count):
    return 2 * torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(1)) + 1


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def quantisation_aware():
    """A network of torch.ao's fused Conv-BN modules, trained for three steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is being replaced by torchao
        from torch.ao import quantization

        torch.manual_seed(0)
        network = quantization.fuse_modules_qat(Net().train(), [["conv", "bn"], ["conv2", "bn2"]])
        network.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        network = quantization.prepare_qat(network)
        optimiser = torch.optim.SGD(network.parameters(), 0.1)
        for _ in range(3):
            network(torch.randn(16, 3, 10, 10)).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
    assert type(network.conv).__name__ == "ConvBn2d"
    return network.eval()


def statistics(network):
    return {
        name: buffer.numpy()
        for name, buffer in network.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    }


def observing(network, observed):
    from torch.ao import quantization

    network = copy.deepcopy(network)
    if not observed:
        network.apply(quantization.disable_observer)
    return network


@pytest.mark.parametrize("observed", [True, False])
def test_quantisation_aware_networks_get_the_statistics_of_torchs_own_pass(
    quantisation_aware, observed, threads
):
    network, images = observing(quantisation_aware, observed), images_of(32)
    reference = copy.deepcopy(network)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    with torch.no_grad():
        reference(images)
    count = {"conv.bn": 32 * 8 * 8, "conv2.bn": 32 * 6 * 6}
    for number in (1, 2, 4):
        threads(number)
        found = statistics(calibrate(network, [images]))
        assert len(found) == 4
        for name, expected in statistics(reference).items():
            layer, leaf = name.rsplit(".", 1)
            biased = 1 - 1 / count[layer] if leaf == "running_var" else 1
            np.testing.assert_allclose(found[name], expected * biased, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ["pooled", "ema", "mean-of-batches"])
def test_quantisation_aware_statistics_do_not_depend_on_threads(
    quantisation_aware, estimator, threads
):
    found = []
    for number in (1, 2, 4):
        threads(number)
        batches = images_of(48).split(8)
        found.append(statistics(calibrate(quantisation_aware, batches, estimator=estimator)))
    for other in found[1:]:
        for name, values in found[0].items():
            np.testing.assert_allclose(other[name], values, rtol=1e-5, atol=1e-6)


def test_consistent_takes_quantisation_aware_networks_without_observers(
    quantisation_aware, threads
):
    images = images_of(48)
    with pytest.raises(InputError, match=r"changes nothing in eval mode, got .*disable_observer"):
        calibrate(quantisation_aware, images.split(8), estimator="consistent")
    network = observing(quantisation_aware, observed=False)
    expected = statistics(calibrate(network, [images]))  # of one batch, both estimators agree
    for number in (1, 4):
        threads(number)
        found = statistics(calibrate(network, images.split(8), estimator="consistent"))
        for name, values in expected.items():
            # a value may be rounded to the next of 256 levels in another batch
            np.testing.assert_allclose(found[name], values, rtol=0.02, atol=2e-3)


class Scaled(nn.Module):
    """Keeps statistics, and normalises by something else."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        return x / 2


def reference_of(network, images):
    """Return the float64 moments at both layers, each normalised by those before it."""
    network = copy.deepcopy(network).double()
    with torch.no_grad():
        x = network.conv(images.double())
        first = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        shape = (1, -1, 1, 1)
        x = (x - first[0].view(shape)) / (first[1] + 1e-5).sqrt().view(shape)
        x = x * network.bn.weight.view(shape) + network.bn.bias.view(shape)
        x = network.conv2(torch.relu(x))
    return first, (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))


@pytest.mark.parametrize("estimator", ["pooled", "consistent"])
@pytest.mark.parametrize(
    "kinds",
    [(FrozenBatchNorm2d, nn.BatchNorm2d), (FrozenBatchNorm2d, FrozenBatchNorm2d)],
    ids=["half frozen", "frozen"],
)
def test_frozen_batch_norm_is_calibrated_as_any_other(kinds, estimator):
    torch.manual_seed(0)
    network, images = Net(*kinds).eval(), images_of(24)
    found = calibrate(network, [images], estimator=estimator)
    for name, (mean, var) in zip(("bn", "bn2"), reference_of(network, images), strict=True):
        layer = found.get_submodule(name)
        np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.running_var, var, rtol=1e-4)


def test_layers_that_keep_their_statistics_are_named():
    def instance(channels):
        return nn.InstanceNorm2d(channels, track_running_stats=True)

    for kind, named in ((Scaled, "Scaled"), (instance, "InstanceNorm2d")):
        torch.manual_seed(0)
        network = Net(nn.BatchNorm2d, kind).eval()
        network.unused = nn.BatchNorm2d(3)
        match = rf"keep theirs: bn2 \({named}\), unused \(BatchNorm2d\)"
        with pytest.warns(RecalWarning, match=match):
            found = calibrate(network, [images_of(8)])
        assert torch.equal(found.bn2.running_mean, network.bn2.running_mean)
        assert not torch.equal(found.bn.running_mean, network.bn.running_mean)
