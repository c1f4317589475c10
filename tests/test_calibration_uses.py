"""Layers used several times in one forward pass, or for several rows an image."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from recal import calibrate
from recal.calibration.consistent import consistent
from recal.calibration.estimators import one_pass
from recal.errors import InputError

EPS = 1e-5


class Siamese(nn.Module):
    """One encoder for two views, which are channels 0 to 2 and 3 to 5 of an image."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.last = nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)

    def encode(self, x):
        return self.conv2(torch.relu(self.bn(self.conv(x))))

    def forward(self, x):
        return self.last(self.encode(x[:, :3]) + self.encode(x[:, 3:]))


class Concatenated(Siamese):
    """The same with both views in one batch of twice as many rows."""

    def forward(self, x):
        first, second = self.encode(torch.cat([x[:, :3], x[:, 3:]])).chunk(2)
        return self.last(first + second)


class Recurrent(nn.Module):
    """A layer whose output is its next input."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.bn = nn.Conv2d(6, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = 2 * torch.relu(self.bn(self.conv(x))) + 0.5
        return x


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(input=self.conv(x))


def network_of(kind, seed=0):
    torch.manual_seed(seed)
    network = kind().eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    return network


def images_of(count, seed=0):
    """The second view is brighter, and views of one image are alike."""
    rng = np.random.default_rng(seed)
    pair = rng.normal(0, 1, (count, 2, 3, 6, 6)) + rng.normal(0, 1, (count, 1, 3, 1, 1))
    pair[:, 1] += 2
    return torch.from_numpy(pair.reshape(count, 6, 6, 6).astype(np.float32))


def inputs_of_uses(network, batches, name):
    """Return, for each batch, the float64 inputs of a layer at each use, as training gives them."""
    twin = copy.deepcopy(network).double()
    for layer in twin.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
    found = []
    layer = twin.get_submodule(name)
    layer.register_forward_pre_hook(lambda _, given: found[-1].append(given[0].numpy()))
    with torch.no_grad():
        for batch in batches:
            found.append([])
            twin(batch.double())
    return found


def totals(uses, images):
    """Return each image's number of values, sum and sum of squares over all uses: k, (N, C) x 2."""
    uses = [use.reshape(-1, images, *use.shape[1:]) for use in uses]  # halves of a batch, if any
    k = sum(use.shape[0] * use.shape[3] * use.shape[4] for use in uses)
    return (
        k,
        sum(use.sum((0, 3, 4)) for use in uses),
        sum((use**2).sum((0, 3, 4)) for use in uses),
    )


@pytest.mark.parametrize("kind", [Siamese, Concatenated, Recurrent])
def test_pooled_takes_the_moments_of_all_uses_and_counts_an_image_once(kind):
    network, batches = network_of(kind), list(images_of(40).split(16))
    found = one_pass(network, batches)["bn"]
    parts = [
        totals(uses, len(batch))
        for uses, batch in zip(inputs_of_uses(network, batches, "bn"), batches, strict=True)
    ]
    k = parts[0][0]
    sums, squares = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    n = len(sums)
    mean = sums.sum(0) / (n * k)
    variance = squares.sum(0) / (n * k) - mean**2
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-5)
    # the delta method, with an image as one draw
    of_mean = sums / k - mean
    of_variance = (squares - 2 * mean * sums) / k + mean**2 - variance
    expected = (
        of_mean.std(0, ddof=1) / np.sqrt(n) / np.sqrt(variance),
        of_variance.std(0, ddof=1) / np.sqrt(n) / variance,
    )
    assert found.moments.images == n
    for error, reference in zip(found.moments.standard_errors(), expected, strict=True):
        if kind is Concatenated:  # which rows belong to an image is not known: the safe side
            assert (error.numpy() >= reference * (1 - 1e-4)).all()
        else:
            np.testing.assert_allclose(error, reference, rtol=1e-4)


def test_frames_of_an_image_that_lie_together_are_one_draw():
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(x.flatten(0, 1))

    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (30, 4, 3, 5, 5)) + rng.normal(0, 2, (30, 1, 3, 1, 1))
    found = one_pass(Frames().double(), [torch.from_numpy(values)])["bn"].moments
    means = values.mean((1, 3, 4))
    expected = means.std(0, ddof=1) / np.sqrt(30) / values.std((0, 1, 3, 4))
    assert found.images == 30
    ratio = found.standard_errors()[0].numpy() / expected
    assert ((ratio >= 1) & (ratio < 1.2)).all()  # frames that are alike count as equal


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("kind", [Siamese, Recurrent])
def test_consistent_refuses_layers_used_several_times_by_name(kind, memory):
    batches = list(images_of(24).split(8))
    with pytest.raises(InputError, match=r"layer bn: expected one use .* Use --estimator pooled"):
        consistent(network_of(kind), batches, memory=memory)


def test_consistent_is_right_where_both_views_are_one_batch():
    """The reference normalises by the float64 moments of all images, whatever the split."""
    network, images = network_of(Concatenated), images_of(24)
    ((rows,),) = inputs_of_uses(network, [images], "bn")
    found = consistent(network, list(images.split(10))).layers["bn"]
    np.testing.assert_allclose(found.mean, rows.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.variance, rows.var((0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("kind", [Siamese, Recurrent])
def test_comparison_estimators_count_every_use_as_torch_does(kind):
    network, batches = network_of(kind), list(images_of(30).split(10))
    twin = copy.deepcopy(network)
    torch.optim.swa_utils.update_bn(batches, twin)
    found = one_pass(network, batches, estimator="mean-of-batches")["bn"]
    np.testing.assert_allclose(found.mean, twin.bn.running_mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.variance, twin.bn.running_var, rtol=1e-4)
    twin = copy.deepcopy(network).train()
    with torch.no_grad():
        for batch in batches:
            twin(batch)
    found = one_pass(network, batches, estimator="ema")["bn"]
    np.testing.assert_allclose(found.mean, twin.bn.running_mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.variance, twin.bn.running_var, rtol=1e-4)


@pytest.mark.parametrize("estimator", ["pooled", "consistent"])
def test_batch_norm_called_by_keyword_is_seen(estimator):
    network, images = network_of(ByName), images_of(12)
    found = calibrate(network, [images], estimator=estimator)
    with torch.no_grad():
        values = network.double().conv(images.double()).numpy()
    np.testing.assert_allclose(found.bn.running_mean, values.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.bn.running_var, values.var((0, 2, 3)), rtol=1e-5)
