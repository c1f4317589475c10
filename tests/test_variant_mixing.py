"""Mixtures of variants against closed forms and against the images that they come from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from recal import calibrate, load_checkpoint
from recal.calibration.estimators import one_pass
from recal.data.folders import open_images
from recal.data.images import FileSource
from recal.errors import InputError, UsageError
from recal.networks.spec import ModelSpec
from recal.variant.mixing import blend_with_prior, mix
from recal.variant.statistics import BranchStatistics, EstimatedStatistics
from recal.variant.variant import Variant, branch_variant, load_variant, save_variant

SPEC = ModelSpec(
    arch="wrn10_1", classes=10, family="cifar", mean=(0.5,) * 3, std=(0.2,) * 3, size=32
)


def estimated(images):
    return EstimatedStatistics(
        policy="weak", policy_sha256="", policy_text="", data_sha256="", images=images,
        batch_size=1, estimator="pooled", passes=1, seed=0, errors={},
    )  # fmt: skip


def make_variant(seed, images=None):
    rng = np.random.default_rng(seed)
    values = {
        "bn.weight": rng.normal(size=5), "bn.bias": rng.normal(size=5),
        "bn.running_mean": rng.normal(0, 5, 5), "bn.running_var": rng.uniform(0.01, 4, 5),
    }  # fmt: skip
    return Variant(
        tensors={name: v.astype(np.float32) for name, v in values.items()},
        weights_sha256="0" * 64,
        spec=SPEC,
        affine="main" if seed % 2 else "aux0",
        statistics=BranchStatistics(branch="main") if images is None else estimated(images),
        versions={"recal": "0"},
    )


@pytest.mark.slow
@given(st.integers(0, 999), st.lists(st.integers(0, 5), min_size=2, max_size=4))
def test_mixture_has_the_moments_of_values_drawn_from_its_parts(seed, counts):
    if not sum(counts):
        counts = [1] * len(counts)
    weights = np.array(counts) / sum(counts)
    variants = [make_variant(seed + i) for i in range(len(counts))]
    mixed = mix(variants, weights.tolist())
    means, variances = (
        np.stack([v.tensors[f"bn.{leaf}"].astype(np.float64) for v in variants])
        for leaf in ("running_mean", "running_var")
    )
    w = weights[:, None]
    mean = (w * means).sum(0)
    # E[x^2] - E[x]^2, the other form of the same
    variance = (w * (variances + means**2)).sum(0) - mean**2
    np.testing.assert_allclose(mixed.tensors["bn.running_mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed.tensors["bn.running_var"], variance, rtol=1e-5)
    lowest = np.stack([v.tensors["bn.weight"] for v in variants]).min(0)
    assert (mixed.tensors["bn.weight"] >= lowest - 1e-6).all()


@given(st.integers(0, 999))
def test_weights_of_zero_and_one_give_back_the_ends_to_the_bit(seed):
    ends = make_variant(seed), make_variant(seed + 1)
    for weights, end in (([1, 0], ends[0]), ([0, 1], ends[1])):
        mixed = mix(ends, weights)
        assert all(np.array_equal(mixed.tensors[n], end.tensors[n]) for n in end.tensors)


def test_sets_of_whole_batches_mixed_by_their_shares_equal_pooling_them(
    split_checkpoint, class_folders
):
    checkpoint = load_checkpoint(split_checkpoint)
    source = open_images(class_folders, "train")
    # clean images, so that the batches are the same in part and whole; one layer deep, since
    # later layers depend on who shares a batch only through whole batches, which these are
    parts = [FileSource(source.where, source.paths[i::2], source.labels[i::2]) for i in (0, 1)]
    pooled = [calibrate(checkpoint, mode="clean", data=part, batch_size=30) for part in parts]
    mixed = mix(pooled, [0.5, 0.5])
    from recal.data.batches import Batches
    from recal.data.normalise import normalise
    from recal.data.sampling import seeded_batches
    from recal.policies.policy import load_policy
    from recal.policies.prepared import PreparedTogether
    from recal.variant.build import build

    spec = checkpoint.spec
    batches = [
        normalise(batch, spec.normalisation, torch.device("cpu"))
        for part in parts
        for (batch,) in Batches(
            PreparedTogether(part, [load_policy("cifar", "clean")], 0, spec.preparation),
            seeded_batches(30, 30, 30, 0),
        )
    ]
    pooled = one_pass(build(checkpoint), batches)
    assert set(pooled) == set(checkpoint.layers)
    for name, moments in pooled.items():
        found = mixed.tensors[f"{name}.running_var"]
        np.testing.assert_allclose(found, moments.variance, rtol=1e-5)


@settings(max_examples=25)
@given(
    st.lists(st.integers(2, 7), min_size=1, max_size=4),
    st.lists(st.integers(2, 7), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_any_sets_of_whole_batches_mixed_by_their_shares_equal_pooling_them(ones, others, seed):
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Conv2d(4, 5, 3), torch.nn.BatchNorm2d(5),
    )  # fmt: skip
    sets = [[torch.randn(n, 3, 6, 6) + torch.randn(3, 1, 1) for n in s] for s in (ones, others)]
    variants = [
        replace(
            make_variant(1),
            tensors={
                f"{name}.{leaf}": value.float().numpy()
                for name, estimate in one_pass(network, batches).items()
                for leaf, value in (
                    ("running_mean", estimate.mean), ("running_var", estimate.variance)
                )
            },
        )
        for batches in sets
    ]  # fmt: skip
    share = sum(ones) / (sum(ones) + sum(others))
    mixed = mix(variants, [share, 1 - share])
    pooled = one_pass(network, sets[0] + sets[1])
    assert set(pooled) == {"1", "4"}
    for name, estimate in pooled.items():
        spread = estimate.variance.sqrt()
        shift = torch.from_numpy(mixed.tensors[f"{name}.running_mean"]) - estimate.mean
        assert (shift.abs() <= 1e-6 * (spread + estimate.mean.abs())).all()
        np.testing.assert_allclose(
            mixed.tensors[f"{name}.running_var"], estimate.variance, rtol=1e-5
        )


def test_prior_is_schneiders_blend():
    source, adapted = make_variant(1), make_variant(3, images=48)
    blended = blend_with_prior(source, adapted, 16)
    for leaf in ("running_mean", "running_var"):
        expected = 0.25 * source.tensors[f"bn.{leaf}"] + 0.75 * adapted.tensors[f"bn.{leaf}"]
        np.testing.assert_allclose(blended.tensors[f"bn.{leaf}"], expected, rtol=1e-6)
    assert np.array_equal(blended.tensors["bn.weight"], source.tensors["bn.weight"])
    nothing = blend_with_prior(source, adapted, 0)
    assert np.array_equal(nothing.tensors["bn.running_var"], adapted.tensors["bn.running_var"])


def test_mixture_is_saved_and_says_what_it_is_of(tmp_path):
    mixed = mix([make_variant(1), make_variant(2)], [0.75, 0.25])
    assert mixed.label == "0.75 main + 0.25 aux0, statistics of main"
    save_variant(mixed, tmp_path / "m.safetensors")
    loaded = load_variant(tmp_path / "m.safetensors")
    assert loaded.label == mixed.label
    assert loaded.sha256 == mixed.sha256
    assert loaded.statistics == mixed.statistics
    assert loaded.statistics.weights == (0.75, 0.25)


def test_what_cannot_be_mixed_is_refused():
    a, b = make_variant(1), make_variant(2)
    for weights in ([0.5, 0.6], [-0.5, 1.5], [float("nan"), 1], [1]):
        with pytest.raises(UsageError, match="expected"):
            mix([a, b], weights)
    with pytest.raises(InputError, match="of the same weights"):
        mix([a, replace(b, weights_sha256="1" * 64)], [0.5, 0.5])
    with pytest.raises(InputError, match="same architecture"):
        mix([a, replace(b, spec=structs.replace(SPEC, size=64))], [0.5, 0.5])
    with pytest.raises(InputError, match="same BatchNorm layers"):
        mix([a, replace(b, tensors={"bn.running_mean": np.zeros(5, np.float32)})], [0.5, 0.5])
    with pytest.raises(UsageError, match="expected statistics estimated on images"):
        blend_with_prior(a, b, 16)
    with pytest.raises(UsageError, match="images >= 0"):
        blend_with_prior(a, make_variant(3, images=5), -1)


def test_command_mixes_sweeps_and_blends(recal, split_checkpoint, class_folders, tmp_path):
    status, out, _ = recal(
        "mix", "main=0.75", "aux0=0.25", "--checkpoint", split_checkpoint, "-o", "m.safetensors"
    )
    assert status == 0
    assert "0.75 main + 0.25 aux0" in out
    status, out, _ = recal(
        "mix", f"{split_checkpoint}:main", f"{split_checkpoint}:aux0", "--sweep", 3, "-o", "path"
    )
    assert status == 0
    assert f"Next: recal eval --checkpoint {split_checkpoint} path/*.safetensors" in out
    files = sorted((tmp_path / "path").iterdir())
    assert [f.name for f in files] == [f"mix-{s}.safetensors" for s in ("0.000", "0.500", "1.000")]
    end = branch_variant(load_checkpoint(split_checkpoint), "aux0", spec=SPEC)
    last = load_variant(files[-1])
    assert all(np.array_equal(last.tensors[name], end.tensors[name]) for name in end.tensors)
    recal("calibrate", split_checkpoint, "--data", class_folders, "-o", "v.safetensors")
    status, out, _ = recal(
        "mix", split_checkpoint, "v.safetensors", "--prior", 16, "-o", "p.safetensors"
    )
    assert status == 0
    assert "prior 16" in out
    for arguments, message in (
        (["main=0.7", "aux0"], "a weight for each variant, or for none"),
        (["main=0.7", "aux0=0.7"], "of sum 1, got 0.7, 0.7"),
        (["main", "aux0", "--sweep", "3", "--prior", "2"], "expected one of them"),
        (["main=1", "aux0=0", "--sweep", "3"], "two variants without weights"),
    ):
        status, _, err = recal(
            "mix", *arguments, "--checkpoint", split_checkpoint, "-o", "x.safetensors"
        )
        assert status == 2, err
        assert message in err
    assert not (tmp_path / "x.safetensors").exists()
