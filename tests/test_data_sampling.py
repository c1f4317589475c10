"""Draws depend on the seed and the image alone."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from recal.data.batches import Batches
from recal.data.folders import open_images
from recal.data.sampling import even_over_classes, keyed_draws, seeded_batches
from recal.errors import InputError
from recal.policies.families import load_family
from recal.policies.policy import load_policy
from recal.policies.prepared import PreparedImages, PreparedTogether

CIFAR = load_family("cifar").preparation


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_equal_keys_draw_alike_and_other_keys_do_not():
    with keyed_draws(1, 2):
        first = draw()
    with keyed_draws(1, 2):
        again = draw()
    with keyed_draws(1, 3):
        other = draw()
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_the_generators_go_on_as_if_nothing_had_been_drawn():
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = draw(), draw()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = draw()

    def fails_inside():
        with keyed_draws(0):
            draw()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails_inside()
    assert (before, draw()) == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_augmented_batches_do_not_depend_on_workers(class_folders, workers):
    source = open_images(class_folders, "train")
    images = PreparedTogether(source, [load_policy("cifar", "strong_noise")], 3, CIFAR)
    batches = seeded_batches(len(source), 20, 8, seed=1)
    here = [batch for (batch,) in Batches(images, batches)]
    there = [batch for (batch,) in Batches(images, batches, workers=workers)]
    assert [len(batch) for batch in here] == [8, 8, 4]
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_several_policies_read_together_draw_as_each_does_alone(class_folders):
    source = open_images(class_folders, "train")
    reads = []

    class Counted:
        where = source.where

        def __len__(self):
            return len(source)

        def __getitem__(self, index):
            reads.append(index)
            return source[index]

    names = ["strong_noise", "clean", "weak", "half_strong", "augmix", "cutout"]
    policies = [load_policy("cifar", name) for name in names]
    indices = np.array([11, 3, 59, 0])
    torch.manual_seed(1)
    together = PreparedTogether(Counted(), policies, 7, CIFAR).batch_all(indices)
    assert reads == indices.tolist(), "each image is decoded once"
    after = draw()
    for policy, batch in zip(policies, together, strict=True):
        alone = PreparedImages(source, policy, 7, CIFAR)
        assert np.array_equal(batch, np.stack([alone.read(int(i)) for i in indices]))
        assert np.array_equal(batch, alone.batch(indices[::-1])[::-1])
    one = PreparedTogether(source, policies, 7, CIFAR).batch_all([59])
    assert all(np.array_equal(a[0], b[2]) for a, b in zip(one, together, strict=True))
    torch.manual_seed(1)
    assert float(torch.rand(())) == after[2]


def test_weak_policy_is_a_shifted_window_of_the_reflected_image():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    windows = [padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    windows += [window[:, ::-1] for window in windows]
    transform = load_policy("cifar", "weak").transform(CIFAR)
    seen = set()
    for key in range(200):
        with keyed_draws(key):
            out = transform(image)
        seen.add(next(i for i, window in enumerate(windows) if np.array_equal(out, window)))
    assert len(seen) > 100, "200 draws of 162 windows should see most of them"


def test_gaussian_noise_has_the_declared_spread():
    policy = load_policy("cifar", "strong_noise")
    from recal.policies.ops import GaussianNoise

    (noise,) = (op for op in policy.ops if isinstance(op, GaussianNoise))
    transform = noise.transform(CIFAR)
    from PIL import Image

    grey = Image.fromarray(np.full((32, 32, 3), 128, np.uint8))
    deviations = []
    for key in range(400):
        with keyed_draws(key):
            deviations.append(np.std(np.asarray(transform(grey)).astype(float)) / 255)
    # U(0, 0.2): mean 0.1, largest below 0.2 but for the noise's own error
    assert abs(np.mean(deviations) - 0.1) < 4 * 0.2 / np.sqrt(12 * 400)
    assert max(deviations) < 0.21


def test_an_image_of_another_size_is_refused(class_folders):
    source = open_images(class_folders, "test")
    images = PreparedImages(source, load_policy("cifar", "clean"), 0, replace(CIFAR, size=64))
    with pytest.raises(
        InputError, match=r"class0/0\.png: expected .* got 32x32 pixels: the network takes 64x64"
    ):
        images.read(0)


@given(st.data())
def test_even_sample_takes_as_many_of_each_class_as_there_are(data):
    labels = np.array(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=60)))
    count = data.draw(st.integers(1, 70))
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = even_over_classes(order, labels, count)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, len(labels))
    available = np.bincount(labels, minlength=5)
    taken = np.bincount(labels[chosen], minlength=5)
    # no class that has more to give is behind another
    for a in range(5):
        if taken[a] < available[a]:
            assert taken.max() <= taken[a] + 1
    np.testing.assert_array_equal(even_over_classes(order, None, count), order[:count])
