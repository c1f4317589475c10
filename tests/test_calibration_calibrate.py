"""From a checkpoint, a policy and images to a variant file."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from recal import build, calibrate, load_checkpoint
from recal.calibration.calibrate import calibrate_matrix
from recal.calibration.rounds import Settings
from recal.data.folders import open_images
from recal.errors import InputError, UsageError
from recal.variant.variant import load_variant, save_variant


def bytes_of(checkpoint, folder, tmp_path, **options):
    path = tmp_path / "v.safetensors"
    save_variant(calibrate(load_checkpoint(checkpoint), data=folder, **options), path)
    return path.read_bytes()


def test_the_same_request_gives_the_same_bytes_whatever_the_workers(
    split_checkpoint, class_folders, tmp_path
):
    options = {"mode": "strong_noise", "batch_size": 16}
    first = bytes_of(split_checkpoint, class_folders, tmp_path, **options)
    assert first == bytes_of(split_checkpoint, class_folders, tmp_path, workers=2, **options)
    assert first != bytes_of(split_checkpoint, class_folders, tmp_path, seed=1, **options)


def test_clean_statistics_match_float64_on_the_training_images(split_checkpoint, class_folders):
    checkpoint = load_checkpoint(split_checkpoint)
    variant = calibrate(checkpoint, mode="clean", data=class_folders, estimator="consistent")
    source = open_images(class_folders, "train")
    spec = checkpoint.spec
    pixels = np.stack([source[i] for i in range(len(source))]).astype(np.float64) / 255
    pixels = ((pixels - np.array(spec.mean)) / np.array(spec.std)).transpose(0, 3, 1, 2)
    network = build(checkpoint, "main").double().train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network(torch.from_numpy(pixels))
    checked = 0
    for name, layer in network.named_modules():
        if not isinstance(layer, torch.nn.BatchNorm2d):
            continue
        count = 60 * {16: 1024, 32: 256, 64: 64}[layer.num_features]
        if name == "block2.layer.0.bn1":
            count = 60 * 1024
        if name == "block3.layer.0.bn1":
            count = 60 * 256
        biased = layer.running_var.numpy() * (count - 1) / count
        found_mean = variant.tensors[f"{name}.running_mean"].astype(np.float64)
        found_var = variant.tensors[f"{name}.running_var"].astype(np.float64)
        assert np.abs((found_mean - layer.running_mean.numpy()) / np.sqrt(biased)).max() < 1e-6
        assert np.abs(found_var / biased - 1).max() < 1e-6
        checked += 1
    assert checked == 7


def test_affine_comes_from_the_branch_that_suits_the_mode(split_checkpoint, class_folders):
    checkpoint = load_checkpoint(split_checkpoint)
    for mode, branch in (("clean", "main"), ("weak", "main"), ("strong", "aux0")):
        variant = calibrate(checkpoint, mode=mode, data=class_folders, samples=10)
        assert variant.affine == branch
        lender = checkpoint.branch(branch)
        assert np.array_equal(variant.tensors["bn1.weight"], lender["bn1.weight"])
    crossed = calibrate(checkpoint, mode="weak", affine="aux0", data=class_folders, samples=10)
    assert np.array_equal(crossed.tensors["bn1.bias"], checkpoint.branch("aux0")["bn1.bias"])


def test_the_record_says_all_that_is_needed_to_estimate_again(
    split_checkpoint, class_folders, tmp_path
):
    checkpoint = load_checkpoint(split_checkpoint)
    variant = calibrate(checkpoint, mode="weak", data=class_folders, samples=25, batch_size=10)
    save_variant(variant, tmp_path / "v.safetensors")
    with safe_open(tmp_path / "v.safetensors", "np") as file:
        record = json.loads(file.metadata()["recal"])
    assert record["weights_sha256"] == checkpoint.weights_sha256
    assert record["model"]["arch"] == "wrn10_1"
    statistics = record["statistics"]
    assert (statistics["images"], statistics["batch_size"], statistics["seed"]) == (25, 10, 0)
    assert "random_crop" in statistics["policy_text"]
    loaded = load_variant(tmp_path / "v.safetensors")
    assert loaded.sha256 == variant.sha256
    assert str(tmp_path) not in json.dumps(record)


def test_progress_ends_at_the_total(split_checkpoint, class_folders):
    calls = []
    calibrate(
        load_checkpoint(split_checkpoint), mode="clean", data=class_folders, batch_size=16,
        estimator="consistent", progress=lambda *call: calls.append(call),
    )  # fmt: skip
    assert calls[-1] == (60, 60)
    assert calls == sorted(calls)


def test_wrong_requests_are_refused(split_checkpoint, class_folders, tmp_path):
    checkpoint = load_checkpoint(split_checkpoint)
    with pytest.raises(UsageError, match="Did you mean 'pooled'"):
        calibrate(checkpoint, data=class_folders, estimator="poold")
    with pytest.raises(UsageError, match="expected a branch out of main, aux0, got 'aux1'"):
        calibrate(checkpoint, data=class_folders, affine="aux1")
    with pytest.raises(InputError, match="the network takes 64x64"):
        calibrate(checkpoint.overridden(size=64), data=class_folders)
    with pytest.raises(InputError, match="got none"):
        calibrate(checkpoint, data=tmp_path)


@pytest.mark.parametrize("estimator", ["pooled", "consistent", "ema", "mean-of-batches"])
def test_the_matrix_gives_each_variant_as_it_is_estimated_alone(
    split_checkpoint, class_folders, estimator
):
    checkpoint = load_checkpoint(split_checkpoint)
    options = {"batch_size": 25, "estimator": estimator, "seed": 3}
    modes = ["clean", "strong_noise"]
    table = calibrate_matrix(
        checkpoint, ["main", "aux0"], modes, data=class_folders, settings=Settings(**options)
    )
    assert list(table) == [(a, m) for a in ("main", "aux0") for m in modes]
    for (affine, mode), variant in table.items():
        alone = calibrate(checkpoint, affine=affine, mode=mode, data=class_folders, **options)
        assert variant.sha256 == alone.sha256
        assert variant.record == alone.record


class CountedImages:
    """A source that counts how often each image is decoded."""

    def __init__(self, source):
        self._source = source
        self.decoded = [0] * len(source)

    def __len__(self):
        return len(self._source)

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __getitem__(self, index):
        self.decoded[index] += 1
        return self._source[index]


@pytest.mark.parametrize("estimator", ["pooled", "consistent"])
def test_the_matrix_decodes_each_image_once(split_checkpoint, class_folders, estimator):
    images = CountedImages(open_images(class_folders, "train"))
    calibrate_matrix(
        load_checkpoint(split_checkpoint).overridden(mean="as-assumed"),
        ["main", "aux0"], ["clean", "weak", "strong"],
        data=images, settings=Settings(estimator=estimator),
    )  # fmt: skip
    assert images.decoded == [1] * 60


@pytest.fixture(scope="module")
def many_images(tmp_path_factory):
    """6,000 pictures in one array, each of a colour and contrast of its own."""
    rng = np.random.default_rng(0)
    level, contrast = rng.uniform(40, 200, (6000, 1, 1, 3)), rng.uniform(2, 50, (6000, 1, 1, 1))
    folder = tmp_path_factory.mktemp("many")
    small = level + contrast * rng.normal(size=(6000, 8, 8, 3))
    pixels = np.clip(small, 0, 255).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    np.save(folder / "images.npy", pixels)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["pooled", "consistent"])
def test_tolerance_stops_when_every_layer_is_within_it(split_checkpoint, many_images, estimator):
    checkpoint = load_checkpoint(split_checkpoint)
    options = {"mode": "clean", "data": many_images, "estimator": estimator, "samples": None}
    variant = calibrate(checkpoint, tolerance=0.025, **options)
    errors = variant.statistics.errors.values()
    largest = max(max(e.mean_bound, e.log_variance_bound) for e in errors)
    assert 0.02 < largest <= 0.025  # not many more images than needed
    images = variant.statistics.images
    assert 1024 <= images < 6000
    # the same as asking for so many images
    alone = calibrate(checkpoint, **{**options, "samples": images})
    assert len(variant.tensors) == 4 * len(checkpoint.layers)
    assert variant.tensors.keys() == alone.tensors.keys()
    for name, tensor in variant.tensors.items():
        assert np.allclose(tensor, alone.tensors[name], rtol=1e-6, atol=1e-7)
    everything = calibrate(checkpoint, tolerance=0.001, **options)
    assert everything.statistics.images == 6000


def test_what_cannot_be_estimated_from_is_refused(split_checkpoint, class_folders, tmp_path):
    checkpoint = load_checkpoint(split_checkpoint)
    with pytest.raises(InputError, match="expected at least 8 images, got 7"):
        calibrate(checkpoint, data=class_folders, samples=7)
    assert calibrate(checkpoint, data=class_folders, samples=7, min_images=7)
    with pytest.raises(UsageError, match="--tolerance: expected a relative error"):
        calibrate(checkpoint, data=class_folders, tolerance=0.0)
    with pytest.raises(TypeError, match="simples"):
        calibrate(checkpoint, data=class_folders, simples=5)


@pytest.mark.parametrize("given", [("file.pth",), (torch.nn.BatchNorm2d(3),)])
def test_what_is_no_checkpoint_and_no_module_with_batches_is_said(given):
    with pytest.raises(TypeError, match="expected a checkpoint, as load_checkpoint returns it, or"):
        calibrate(*given)


def test_what_goes_with_a_checkpoint_alone_is_refused_with_a_module():
    network, batches = torch.nn.Sequential(torch.nn.BatchNorm2d(3)), [torch.randn(4, 3, 2, 2)]
    for given in ({"mode": "weak"}, {"affine": "main"}, {"seed": 1}, {"samples": 5}):
        with pytest.raises(TypeError, match="only estimator, layers, autocast, world"):
            calibrate(network, batches, **given)
    with pytest.raises(TypeError, match="estimater"):
        calibrate(network, batches, estimater="ema")


def test_errors_of_choice_come_before_anything_about_data(split_checkpoint, tmp_path):
    checkpoint = load_checkpoint(split_checkpoint)
    nothing = {"data": tmp_path / "none"}
    for given, named in (
        ({"mode": "weka"}, "Did you mean 'weak'"),
        ({"affine": "aux9"}, "Did you mean 'aux0'"),
        ({"estimator": "poled"}, "Did you mean 'pooled'"),
    ):
        with pytest.raises(UsageError, match=named):
            calibrate(checkpoint, **given, **nothing)
