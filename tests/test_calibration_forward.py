"""Modules of several inputs, and batches of any kind, run as the caller says: equal to torch."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from recal import calibrate, load_checkpoint
from recal.calibration.consistent import consistent
from recal.calibration.estimators import ESTIMATORS
from recal.calibration.hooks import ForwardPass
from recal.errors import InputError, RecalWarning


class TwoInputs(nn.Module):
    """Images, and a vector of theirs, each with BatchNorm of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc, self.bn1 = nn.Linear(5, 4), nn.BatchNorm1d(4)
        self.join, self.last = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

    def forward(self, image, vector):
        x = torch.relu(self.bn(self.conv(image)))
        y = torch.relu(self.bn1(self.fc(vector)))
        return self.last(self.join(x + y[:, :, None, None]))


class Pair(nn.Module):
    """One encoder for two images: each layer of it is used twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.last = nn.BatchNorm2d(4)

    def forward(self, left, right):
        one, two = (torch.relu(self.bn(self.conv(x))) for x in (left, right))
        return self.last(one - two)


class Recurrent(nn.Module):
    """A number of steps, each of which uses one BatchNorm."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x, *, steps):
        x = self.stem(x)
        for _ in range(steps):
            x = 2 * torch.relu(self.bn(self.conv(x))) + 0.5
        return x


@dataclass
class Example:
    image: torch.Tensor
    vector: torch.Tensor


def network_of(kind):
    torch.manual_seed(0)
    network = kind().eval()
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    return network


def images_of(count, seed=0):
    return 2 * torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) + 1


def batches_of(sizes):
    """Return images, other images and vectors of each batch."""
    generator = torch.Generator().manual_seed(2)
    return [
        (images_of(n, 10 + k), images_of(n, 20 + k) + 3, torch.randn(n, 5, generator=generator))
        for k, n in enumerate(sizes)
    ]


# how each kind of network is run, and its batches
KINDS = {
    "objects": (
        TwoInputs,
        lambda network, batch: network(batch.image, vector=batch.vector),
        lambda image, _, vector: Example(image, vector),
    ),
    "tuples": (
        TwoInputs,
        lambda network, batch: network(*batch),
        lambda image, _, vector: (image, vector),
    ),
    "pair": (
        Pair,
        lambda network, batch: {"unlike": network(batch["left"], batch["right"])},
        lambda left, right, _: {"left": left, "right": right},
    ),
    "recurrent": (
        Recurrent,
        lambda network, batch: network(batch, steps=3),
        lambda image, *_: image,
    ),
}


def torchs(network, run, batches, momentum):
    """Return the network after torch's own pass with BatchNorm alone in training mode.

    The number of values of each layer's last input is its attribute `count`.
    """
    network = copy.deepcopy(network)
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train()
            layer.momentum = momentum
            if momentum is None:
                layer.reset_running_stats()
            layer.register_forward_pre_hook(
                lambda layer, given: setattr(layer, "count", given[0][:, 0].numel())
            )
    with torch.no_grad():
        for batch in batches:
            run(network, batch)
    return network


def check_statistics(found, expected, *, biased, rtol=1e-4):
    layers = dict(expected.named_modules())
    for name, buffer in found.named_buffers():
        path, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        factor = 1 - 1 / layers[path].count if biased and leaf == "running_var" else 1
        reference = expected.get_buffer(name) * factor
        np.testing.assert_allclose(buffer, reference, rtol=rtol, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("estimator", ["ema", "mean-of-batches"])
@pytest.mark.parametrize("kind", KINDS)
def test_comparison_estimators_equal_torchs_own_pass(kind, estimator):
    make, run, as_batch = KINDS[kind]
    network, batches = network_of(make), [as_batch(*b) for b in batches_of([8, 8, 5])]
    before = copy.deepcopy(network.state_dict())
    expected = torchs(network, run, batches, 0.1 if estimator == "ema" else None)
    found = calibrate(network, batches, forward=run, estimator=estimator)
    check_statistics(found, expected, biased=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("kind", ["objects", "tuples"])
@pytest.mark.parametrize("estimator", ["pooled", "consistent"])
def test_one_batch_equals_torchs_own_pass(kind, estimator):
    make, run, as_batch = KINDS[kind]
    network, batches = network_of(make), [as_batch(*b) for b in batches_of([16])]
    found = calibrate(network, batches, forward=run, estimator=estimator)
    check_statistics(found, torchs(network, run, batches, None), biased=True)


@pytest.mark.parametrize("kind", ["pair", "recurrent"])
def test_pooled_takes_the_values_of_all_uses_of_all_batches(kind):
    """The reference pools the float64 inputs of every use, normalised as in training."""
    make, run, as_batch = KINDS[kind]
    network, batches = network_of(make), [as_batch(*b) for b in batches_of([8, 5])]
    twin = copy.deepcopy(network).double()
    twin.bn.train()
    seen = []
    twin.bn.register_forward_pre_hook(
        lambda _, given: seen.append(given[0].transpose(0, 1).flatten(1).numpy())
    )
    with torch.no_grad():
        for batch in batches:
            run(twin, {k: v.double() for k, v in batch.items()} if kind == "pair" else
                batch.double())  # fmt: skip
    values = np.concatenate(seen, axis=1)
    found = calibrate(network, batches, forward=run)
    np.testing.assert_allclose(found.bn.running_mean, values.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.bn.running_var, values.var(1), rtol=1e-5)
    with pytest.raises(InputError, match=r"layer bn: expected one use .* Use --estimator pooled"):
        calibrate(network, batches, forward=run, estimator="consistent")


@pytest.mark.parametrize("memory", [None, 0])
def test_consistent_does_not_depend_on_the_split(memory):
    make, run, as_batch = KINDS["objects"]
    network, parts = network_of(make), batches_of([8, 5, 3])
    whole = [as_batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))]
    expected = calibrate(network, whole, forward=run, estimator="consistent")
    batches = [as_batch(*part) for part in parts]
    found = consistent(network, batches, forward=ForwardPass(run), memory=memory).layers
    assert set(found) == {"bn", "bn1", "last"}
    for name, layer in found.items():
        other = expected.get_submodule(name)
        np.testing.assert_allclose(layer.mean, other.running_mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer.variance, other.running_var, rtol=1e-5)


@pytest.mark.parametrize("as_iterator", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_layers_are_chosen_with_forward_too(estimator, as_iterator):
    make, run, as_batch = KINDS["tuples"]
    network, batches = network_of(make), [as_batch(*b) for b in batches_of([8, 8])]
    given = iter(batches) if as_iterator else batches
    found = calibrate(network, given, forward=run, layers="last", estimator=estimator)
    assert torch.equal(found.bn.running_var, network.bn.running_var)
    assert not torch.equal(found.last.running_var, network.last.running_var)
    if estimator == "pooled":
        with torch.no_grad():
            kept = []
            network.last.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
            for batch in batches:
                network(*batch)
        values = torch.cat(kept).double().transpose(0, 1).flatten(1)
        np.testing.assert_allclose(found.last.running_mean, values.mean(1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.last.running_var, values.var(1, correction=0), rtol=1e-4)


def test_layers_that_forward_does_not_reach_are_named():
    network = network_of(TwoInputs)
    with pytest.warns(RecalWarning, match=r"keep theirs: bn1 .*, last .*saw no data"):
        calibrate(network, [images_of(8)], forward=lambda m, x: m.bn(m.conv(x)))


def line_of(error, module, loader):
    """Run the line of an error that shows `forward=`."""
    text = str(error.value)
    start = text.index("calibrate(module, loader, forward=")
    line = text[start : text.rindex(")") + 1]
    return eval(line, {"calibrate": calibrate, "module": module, "loader": loader})


@pytest.mark.filterwarnings("ignore::recal.errors.RecalWarning")
def test_without_forward_the_error_has_a_line_to_copy():
    class OfDictionaries(Pair):
        def forward(self, batch):
            return super().forward(batch["image"], batch["other"])

    left, right, vector = batches_of([8])[0]
    pair, plain = network_of(Pair), nn.Sequential(nn.BatchNorm2d(3)).eval()
    cases = [
        (network_of(TwoInputs), (left, vector), r"TwoInputs.forward, which also needs vector"),
        (pair, (left, right), r"which also needs right"),
        (network_of(OfDictionaries), {"image": left, "other": right}, r"to run on images .* alone"),
        (plain, {"picture": left}, r"got a dictionary of picture"),
        (plain, ([left], vector), r"got a list"),
    ]
    for module, batch, match in cases:
        with pytest.raises(InputError, match=match) as error:
            calibrate(module, [batch])
        found = line_of(error, module, [batch])
        assert isinstance(found, nn.Module)
    with pytest.raises(InputError, match=r"got a Example.*forward=lambda module, batch: module"):
        calibrate(plain, [Example(left, vector)])


def test_forward_that_runs_another_module_or_training_mode_is_refused(tmp_path):
    network, batches = network_of(Pair), [batches_of([8])[0][:2]]
    for estimator in ESTIMATORS:
        with pytest.raises(InputError, match=r"forward: expected a function that runs the module"):
            calibrate(network, batches, forward=lambda _, b: network(*b), estimator=estimator)
        with pytest.raises(InputError, match=r"layer bn: expected eval mode during the forward"):
            calibrate(network, batches, forward=lambda m, b: m.train()(*b), estimator=estimator)
    with pytest.raises(InputError, match="got no batches"):
        calibrate(network, [], forward=lambda m, b: m(*b))
    torch.save(network.state_dict(), tmp_path / "f.pth")
    with pytest.raises(TypeError, match="forward goes with a module alone"):
        calibrate(load_checkpoint(tmp_path / "f.pth"), forward=lambda m, b: m(*b))
