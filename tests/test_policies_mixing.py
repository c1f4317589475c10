"""Policies of pairs of images, adversarial images, and ops as the papers have them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recal import build, calibrate, load_checkpoint
from recal.attacks.gradient import random_starts
from recal.data.images import ArraySource
from recal.data.sampling import keyed_draws
from recal.errors import InputError, UsageError
from recal.networks.spec import ModelSpec
from recal.policies.ops import Cutout, RandAugment
from recal.policies.policy import Policy, load_policy, read_policy
from recal.policies.prepared import PreparedImages, PreparedTogether
from recal.suites.suite import load_suite
from recal.variant.plain import batch_norms
from tests.test_evaluation_attacks import Normalised, pgd

SPEC = ModelSpec(
    arch="wrn10_1", classes=10, family="cifar", mean=(0.5,) * 3, std=(0.5,) * 3, size=32
)
MIX = "summary = 'a'\n[mix]\nmethod = '{}'\nalpha = {}\n"


def constant_images(*levels):
    images = np.stack([np.full((32, 32, 3), level, np.uint8) for level in levels])
    return ArraySource(Path("test"), images, None)


def mixed(method, alpha, source, seed=0):
    policy = Policy.from_text("mix", MIX.format(method, alpha))
    return PreparedImages(source, policy, seed, SPEC.preparation)


def test_mixup_is_the_weighted_mean_of_two_images():
    # half of 1000 images are 0, half 200: a mixed image is 200 times the share of the brighter
    images = mixed("mixup", 0.5, constant_images(*[0, 200] * 500)).batch(range(1000)) / 200
    assert (np.ptp(images, axis=(1, 2, 3)) == 0).all()
    shares = images[:, 0, 0, 0]
    one_kind = (shares == 0) | (shares == 1)
    assert 0.4 < one_kind.mean() < 0.7, "half of the partners are of the same kind"
    # lambda ~ Beta(1/2, 1/2) has mean 1/2 and variance 1/8
    others = shares[~one_kind]
    assert abs(others.mean() - 0.5) < 0.06
    assert abs(others.var() - 0.125) < 0.03


def test_cutmix_puts_a_rectangle_of_another_image_in():
    images = mixed("cutmix", 1.0, constant_images(*range(200))).batch(range(200))
    for index, image in enumerate(images):
        other = image[..., 0] != index
        assert len(np.unique(image[..., 0][other])) <= 1
        rows, columns = other.any(1), other.any(0)
        assert other.sum() == rows.sum() * columns.sum(), "a rectangle"
        for line in (rows, columns):
            assert (np.diff(np.flatnonzero(line)) == 1).all()
    # without cuts at the border, 1 - lambda is uniform with mean 1/2; the cuts make it smaller
    share = (images[..., 0] != np.arange(200)[:, None, None]).mean()
    assert 0.25 < share < 0.5


@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_mixed_images_belong_to_seed_and_index(method):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    source = ArraySource(Path("test"), pixels, None)
    images = mixed(method, 1.0, source)
    whole = images.batch(range(20))
    assert np.array_equal(images.batch([13, 4]), whole[[13, 4]])
    assert not np.array_equal(mixed(method, 1.0, source, seed=1).batch(range(20)), whole)
    together = PreparedTogether(source, [images.policy], 0, SPEC.preparation)
    chosen = together.mixing_with(np.array([5]))
    (found,) = chosen.batch_all([5, 7])
    assert np.array_equal(found[0], source[5]), "its own partner"
    assert not np.array_equal(found[1], source[7])


def test_a_tolerance_and_mixing_do_not_go_together(split_checkpoint, class_folders):
    policy = Policy.from_text("mix", MIX.format("mixup", 1.0))
    with pytest.raises(UsageError, match="--tolerance: expected a policy that mixes no images"):
        calibrate(
            load_checkpoint(split_checkpoint), mode=policy, data=class_folders, tolerance=0.1,
            min_images=1,
        )  # fmt: skip


def test_every_drawn_op_is_applied_with_p_one(monkeypatch):
    from timm.data import auto_augment

    made, real = [], auto_augment.rand_augment_transform
    monkeypatch.setattr(
        auto_augment, "rand_augment_transform", lambda *a: (made.append(real(*a)), made[-1])[1]
    )
    RandAugment(n=3, p=1.0, fill=(0, 0, 0)).transform(SPEC.preparation)
    RandAugment(fill=(0, 0, 0)).transform(SPEC.preparation)
    applied = [{op.prob for op in transform.ops} for transform in made]
    assert (applied[0], applied[-1]) == ({1.0}, {0.5})


def test_the_papers_cutout_may_leave_the_image():
    from PIL import Image

    cut = Cutout(inside=False).transform(SPEC.preparation)
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    black = []
    for index in range(400):
        with keyed_draws(0, index):
            black.append(np.asarray(cut(white))[..., 0] == 0)
    areas = np.array([mask.sum() for mask in black])
    assert areas.max() == 16**2
    assert areas.min() >= 8**2
    # a length of 16 around a centre uniform over 32 covers 14 pixels on average
    assert abs(areas.mean() - 14**2) < 8


@pytest.mark.parametrize("start", [False, True])
def test_adversarial_statistics_are_of_the_networks_own_images(
    split_checkpoint, class_folders, tmp_path, start
):
    from recal.data.folders import open_images

    text = (
        "summary = 'a'\n[attack]\nmethod = 'pgd'\nnorm = 'linf'\nradius = 8\nstep = 4\nsteps = 2\n"
    )
    policy = Policy.from_text("pgd", text + f"random_start = {str(start).lower()}\n")
    checkpoint = load_checkpoint(split_checkpoint)
    found = calibrate(
        checkpoint, mode=policy, affine="aux0", data=class_folders, estimator="consistent",
        batch_size=7, min_images=1, samples=12, seed=3,
    )  # fmt: skip
    source = open_images(class_folders, "train")
    used = np.random.default_rng(3).permutation(len(source))[:12]
    x = torch.from_numpy(np.stack([source[i] for i in used])).permute(0, 3, 1, 2) / 255
    model = Normalised(checkpoint, "aux0").eval()
    starts = random_starts(policy.attack, 3, used, (3, 32, 32))
    with torch.no_grad():
        y = model(x).argmax(1)
    adversarial = pgd(model, x, y, policy.attack, starts)
    seen = {}
    network = build(checkpoint, "aux0").train()
    for name, layer in batch_norms(network).items():
        layer.register_forward_pre_hook(lambda _m, i, name=name: seen.update({name: i[0].double()}))
    with torch.no_grad():
        network((adversarial - model.mean) / model.std)
    for name, values in seen.items():
        mean, var = found.tensors[f"{name}.running_mean"], found.tensors[f"{name}.running_var"]
        np.testing.assert_allclose(mean, values.mean((0, 2, 3)), rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(var, values.var((0, 2, 3), correction=0), rtol=5e-3, atol=2e-3)


def test_commands_without_a_network_refuse_adversarial_policies():
    images = PreparedImages(constant_images(3), load_policy("cifar", "pgd"), 0, SPEC.preparation)
    with pytest.raises(UsageError, match="policy 'pgd': expected a policy without"):
        images.batch([0])


@pytest.mark.parametrize("family", ["cifar", "imagenet", "tiny"])
def test_families_have_policies_of_mixed_and_adversarial_images(family):
    """The adversarial ones are as strong as the suites' attacks, or as those of CIFAR."""
    suite = load_suite("imagenet-pgd" if family == "imagenet" else "cifar10-pgd")
    assert load_policy(family, "pgd").attack == suite.attack["pgd_linf"]
    fgsm = load_policy(family, "fgsm").attack
    assert (fgsm.radius, fgsm.step, fgsm.steps) == (suite.attack["pgd_linf"].radius,) * 2 + (1,)
    # Zhang et al., arXiv 1710.09412, sections 3.1 and 3.2; Yun et al., arXiv 1905.04899
    assert load_policy(family, "mixup").mix.alpha == (0.2 if family == "imagenet" else 1)
    assert load_policy(family, "cutmix").mix.alpha == 1
    weak = load_policy(family, "weak").ops
    assert all(load_policy(family, name).ops == weak for name in ("mixup", "cutmix", "pgd", "fgsm"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MIX.format("mixup", 0), "expected a number > 0 and <= 100, got 0"),
        (MIX.format("mixin", 1), "Did you mean 'mixup'"),
        ("summary = 'a'\n[attack]\nmethod = 'pgd'\nnorm = 'linf'\nstep = 1\nsteps = 1", "radius"),
    ],
)
def test_slips_are_errors(tmp_path, text, message):
    (tmp_path / "p.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_policy(tmp_path / "p.toml")
