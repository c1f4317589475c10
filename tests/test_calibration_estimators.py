"""Estimators against independent float64 computations.

In float64 here, where only the method counts; test_calibration.py has float32 on a real network.
"""

import copy
import threading
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recal import calibrate
from recal.calibration.consistent import consistent
from recal.calibration.estimators import ESTIMATORS, merge_found, one_pass
from recal.calibration.hooks import MAX_LANES, Listener, observe
from recal.errors import InputError

# `Small` has a layer that never runs, which calibrate names
pytestmark = pytest.mark.filterwarnings("ignore::recal.errors.RecalWarning")

pooled = partial(one_pass, estimator="pooled")
mean_of_batches = partial(one_pass, estimator="mean-of-batches")
ema = partial(one_pass, estimator="ema")


def run(name, network, batches):
    if name == "consistent":
        return consistent(network, batches).layers
    return one_pass(network, batches, estimator=name)


class Small(nn.Module):
    """Three BN layers in sequence, one that never runs, and dropout."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(4, 5, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 6)
        self.bn3 = nn.BatchNorm1d(6)
        self.unused = nn.BatchNorm2d(7)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(self.drop(x))))
        return self.bn3(self.fc(x.mean((2, 3))))


# the layers that see images
LAYERS = ("bn1", "bn2", "bn3")


def make_network(seed=0):
    torch.manual_seed(seed)
    network = Small()
    for layer in (network.bn1, network.bn2, network.bn3, network.unused):
        layer.weight.data.uniform_(0.5, 1.5)
        layer.bias.data.normal_()
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return network.eval()


def make_images(count, seed=0):
    rng = np.random.default_rng(seed)
    # every image has a brightness of its own, as photographs have
    images = rng.normal(0.3, 1, (count, 3, 6, 6)) + rng.normal(0, 1, (count, 3, 1, 1))
    return torch.from_numpy(images.astype(np.float32))


def float64_reference(network, batches, *, together):
    """Compute statistics in float64 NumPy from torch's float64 linear layers alone.

    `together`: normalise by the moments of all images (consistent); else by each batch's (pooled).
    """
    net = copy.deepcopy(network).double()
    linear = [
        net.conv1,
        lambda x: net.conv2(torch.relu(x)),
        lambda x: net.fc(torch.relu(x).mean((2, 3))),
    ]
    norms = list(LAYERS)
    inputs = [batch.double() for batch in batches]
    statistics = {}
    with torch.no_grad():
        for step, name in zip(linear, norms, strict=True):
            outputs = [step(x).numpy() for x in inputs]
            axes = (0, *range(2, outputs[0].ndim))
            values = np.concatenate(outputs)
            statistics[name] = values.mean(axes), values.var(axes)
            layer = getattr(net, name)
            inputs = []
            for out in outputs:
                source = values if together else out
                shape = (1, -1) + (1,) * (out.ndim - 2)
                mean, var = (m(source, axis=axes).reshape(shape) for m in (np.mean, np.var))
                affine = layer.weight, layer.bias
                gamma, beta = (t.detach().numpy().reshape(shape) for t in affine)
                normal = (out - mean) / np.sqrt(var + layer.eps) * gamma + beta
                inputs.append(torch.from_numpy(normal))
    return statistics


def assert_statistics(moments, expected, tolerance):
    assert set(moments) == set(expected)
    for name, (mean, variance) in expected.items():
        np.testing.assert_allclose(moments[name].variance, variance, rtol=tolerance)
        shift = (moments[name].mean.numpy() - mean) / np.sqrt(variance)
        assert np.abs(shift).max() <= tolerance


# ragged last batches, which unweighted means of batch statistics count in full
SPLITS = [[32], [8, 8, 8, 8], [20, 12], [15, 14, 3]]


@pytest.mark.parametrize("split", SPLITS)
def test_pooled_matches_float64_on_any_split(split):
    batches = list(make_images(32).double().split(split))
    network = make_network().double()
    expected = float64_reference(network, batches, together=False)
    assert_statistics(pooled(network, batches), expected, 1e-12)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("memory", "passes"), [(None, 1), (0, 3)])
def test_consistent_is_one_forward_of_all_images_whatever_the_split(split, memory, passes):
    images, network = make_images(32).double(), make_network().double()
    expected = float64_reference(network, [images], together=True)
    found = consistent(network, list(images.split(split)), memory=memory)
    assert_statistics(found.layers, expected, 1e-12)
    assert found.passes == passes
    assert_statistics(pooled(network, [images]), expected, 1e-12)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(0, 100))
def test_consistent_does_not_depend_on_the_split(sizes, seed):
    images, network = make_images(sum(sizes) + 1, seed).double(), make_network(seed).double()
    whole = consistent(network, [images]).layers
    parts = consistent(network, list(images.split([*sizes, 1]))).layers
    assert set(parts) == set(whole) == set(LAYERS)
    for name, moments in whole.items():
        np.testing.assert_allclose(parts[name].mean, moments.mean, atol=1e-11)
        np.testing.assert_allclose(parts[name].variance, moments.variance, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimating_leaves_the_network_as_it_was_even_after_an_error(name):
    network = make_network().train()
    network.bn2.eval()
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]

    def batches():
        yield make_images(4)
        raise RuntimeError("no more images")

    with pytest.raises(RuntimeError, match="no more images"):
        run(name, network, batches())
    run(name, network, [make_images(4)])
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert modes == [module.training for module in network.modules()]
    assert not network.bn1._forward_hooks
    assert not network.bn1._forward_pre_hooks


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_layer_without_data_is_left_out_and_a_stored_nan_does_no_harm(name):
    network = make_network()
    if name != "ema":  # which goes on from what is stored
        network.bn1.running_mean.fill_(float("nan"))
    moments = run(name, network, [make_images(8)])
    assert set(moments) == {"bn1", "bn2", "bn3"}
    assert all(m.mean.isfinite().all() for m in moments.values())


def test_calibrate_on_a_module_gives_a_copy_with_the_new_statistics():
    network = make_network()
    batches = list(make_images(32).split(8))
    stored = network.bn1.running_mean.clone()
    calibrated = calibrate(network, batches, estimator="consistent")
    expected = float64_reference(network, batches, together=True)
    assert torch.equal(network.bn1.running_mean, stored)
    assert torch.equal(calibrated.unused.running_mean, network.unused.running_mean)
    assert not calibrated.training
    for name, (mean, variance) in expected.items():
        layer = getattr(calibrated, name)
        np.testing.assert_allclose(layer.running_var, variance, rtol=2e-6)
        np.testing.assert_allclose(layer.running_mean, mean, atol=2e-6)


@pytest.mark.parametrize("estimator", ["pooled", "consistent"])
def test_compiled_modules_are_not_compiled_for_it(estimator):
    def refuse(_graph, _inputs):
        raise AssertionError("compiled")

    network, batches = make_network(), [make_images(8, seed) for seed in range(3)]
    expected = calibrate(network, batches, estimator=estimator)
    compiled = torch.compile(copy.deepcopy(network), backend=refuse)
    found = calibrate(compiled, batches, estimator=estimator)
    assert type(found) is type(compiled)
    assert len(found.state_dict()) == len(expected.state_dict()) > 0
    for name, values in expected.state_dict().items():
        assert torch.equal(found.state_dict()[f"_orig_mod.{name}"], values), name


@pytest.mark.parametrize("estimator", ["pooled", "consistent"])
def test_loaders_of_images_and_labels_are_taken_as_they_are(estimator):
    network, images = make_network(), make_images(12)
    pairs = torch.utils.data.TensorDataset(images, torch.arange(12))
    found = calibrate(network, torch.utils.data.DataLoader(pairs, 4), estimator=estimator)
    expected = calibrate(network, list(images.split(4)), estimator=estimator)
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, values in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], values), name
    with pytest.raises(InputError, match="expected batches of images as tensors"):
        calibrate(network, [{"pictures": images}], estimator=estimator)


def test_an_iterator_is_read_once_or_refused():
    network, batches = make_network(), list(make_images(12).split(4))
    found = calibrate(network, iter(batches), estimator="consistent")
    expected = calibrate(network, batches, estimator="consistent")
    assert torch.equal(found.bn3.running_var, expected.bn3.running_var)
    # what measures the first batch has read it
    with pytest.raises(InputError, match="expected batches that can be read again"):
        consistent(network, iter(batches), memory=0)


def test_a_batch_of_one_value_a_channel_is_refused_with_advice():
    with pytest.raises(InputError, match="--estimator consistent"):
        calibrate(make_network(), [make_images(8), make_images(1)])


def test_no_images_and_images_with_nan_are_refused():
    with pytest.raises(InputError, match="expected at least one image, got none"):
        calibrate(make_network(), [])
    images = make_images(4)
    images[2, 1, 3, 3] = float("nan")
    with pytest.raises(InputError, match="layer bn1: expected finite values"):
        calibrate(make_network(), [images])


def updated_by_torch(network, batches):
    """Let torch's own `update_bn` re-estimate a copy, with dropout off as in every estimator."""
    network = copy.deepcopy(network)
    network.drop = nn.Identity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.optim.swa_utils.update_bn(batches, network)
    return network


@pytest.mark.parametrize("split", SPLITS)
def test_mean_of_batches_is_what_update_bn_computes(split):
    batches = list(make_images(32).double().split(split))
    network = make_network().double()
    found = mean_of_batches(network, batches)
    peer = updated_by_torch(network, batches)
    assert set(found) == set(LAYERS)
    for name, moments in found.items():
        layer = getattr(peer, name)
        np.testing.assert_allclose(moments.mean, layer.running_mean, rtol=1e-12)
        np.testing.assert_allclose(moments.variance, layer.running_var, rtol=1e-12)


def test_ema_goes_on_from_the_stored_statistics_as_training_does():
    batches = list(make_images(32).double().split(8))
    network = make_network().double()
    first = [network.conv1(batch).detach().numpy() for batch in batches]
    mean, variance = network.bn1.running_mean.numpy(), network.bn1.running_var.numpy()
    for values in first:
        mean = 0.9 * mean + 0.1 * values.mean((0, 2, 3))
        variance = 0.9 * variance + 0.1 * values.var((0, 2, 3), ddof=1)
    found = ema(network, batches)
    np.testing.assert_allclose(found["bn1"].mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found["bn1"].variance, variance, rtol=1e-12)


def test_pooled_counts_what_lies_between_batches_and_the_mean_of_batches_does_not():
    network = nn.Sequential(nn.BatchNorm2d(1))
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 4, 1, 2, 2)) + 3 * np.arange(4)[:, None, None, None, None]
    batches = list(torch.from_numpy(values))
    truth = values.var()
    np.testing.assert_allclose(pooled(network.double(), batches)["0"].variance, [truth], rtol=1e-12)
    assert float(mean_of_batches(network, batches)["0"].variance) < 0.2 * truth


@pytest.mark.parametrize("by_batch", [True, False])
def test_nothing_leaves_the_device_while_batches_run(by_batch):
    # tensors on the meta device hold no values: whatever asks for one fails
    network = make_network().to("meta")
    listening = Listener(network, by_batch=by_batch)
    found = [listening(make_images(4).to("meta")) for _ in range(2)]
    merged = merge_found(found)
    assert set(merged) == {"bn1", "bn2", "bn3"}
    assert all(moments.sums.device.type == "meta" for moments in merged.values())


def test_batches_are_read_only_as_fast_as_they_are_used():
    # memory must not grow with the number of images
    started, finished = [], []

    def batches():
        for number in range(40):
            started.append(number)
            assert len(started) - len(finished) <= MAX_LANES + 2
            yield {"a": make_images(2)}

    network = make_network()
    for _ in observe({"a": network}, batches(), listen=partial(Listener, by_batch=False)):
        finished.append(None)
    assert len(finished) == 40


def test_threads_are_given_back_whatever_happens():
    before = torch.get_num_threads()

    def fails():
        yield make_images(4)
        raise RuntimeError("no more")

    for estimator in ESTIMATORS:
        with pytest.raises(RuntimeError, match="no more"):
            run(estimator, make_network(), fails())
        assert torch.get_num_threads() == before


class OddOrder(nn.Module):
    """Visits its two layers in an order that depends on the images."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        layers = [self.one, self.two] if float(x.mean()) > 0 else [self.two, self.one]
        return layers[1](layers[0](x))


@pytest.mark.parametrize("memory", [None, 0])
def test_a_network_without_one_order_of_layers_is_refused_by_consistent(memory):
    images = make_images(8).abs()
    with pytest.raises(InputError, match="in the same order"):
        consistent(OddOrder(), [images, -images], memory=memory)


def test_an_error_in_one_of_many_waiting_passes_ends_them_all():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.norm(x)
            if float(x.max()) > 20:
                raise RuntimeError("too bright")
            return x

    batches = [make_images(4, seed) for seed in range(6)]
    batches[3] = batches[3].clone()
    batches[3][0, 0, 0, 0] = 1e6
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="too bright"):
        consistent(Fails(), batches)
    assert threading.active_count() == before
