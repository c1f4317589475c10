"""Some layers are estimated, the others keep and use what they have: equal to plain torch."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from recal import (
    Settings,
    calibrate,
    calibrate_matrix,
    load_checkpoint,
    load_variant,
    mix,
    save_variant,
)
from recal.calibration.estimators import ESTIMATORS
from recal.calibration.parts import calibrate_part, merge_parts
from recal.distributed import Part
from recal.errors import InputError, UsageError
from recal.networks.names import create_network
from recal.variant.mixing import blend_with_prior
from recal.variant.selection import chosen_layers
from recal.variant.variant import branch_variant
from tests.dual_networks import randomise

LAYERS = ("bn1", "block2.layer.0.bn2")


def network_of():
    torch.manual_seed(0)
    return randomise(create_network("wrn10_1", 10)).eval()


def count_values(layer, args):
    layer.count = args[0].numel() // args[0].shape[1]


def reference(network, batches, names, momentum):
    """Return the network after torch's own pass with these layers alone in training mode."""
    network = copy.deepcopy(network)
    for name, module in network.named_modules():
        if name in names:
            module.train()
            module.momentum = momentum
            module.register_forward_pre_hook(count_values)
            if momentum is None:
                module.reset_running_stats()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    return network


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("wanted", ["last", "first", "block2.*", LAYERS])
def test_chosen_layers_get_torchs_statistics_and_others_keep_theirs(wanted, estimator):
    network = network_of()
    images = torch.randn(24, 3, 16, 16)
    batches = [images] if estimator in ("pooled", "consistent") else list(images.split(8))
    names = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    words = [wanted] if isinstance(wanted, str) else wanted
    order = [*(n for n in names if n != "bn1"), "bn1"]
    chosen = chosen_layers(words, order)
    assert chosen
    found = calibrate(network, batches, layers=wanted, estimator=estimator)
    expected = reference(network, batches, chosen, 0.1 if estimator == "ema" else None)
    for name in names:
        own, want = found.get_submodule(name), expected.get_submodule(name)
        if name not in chosen:
            assert torch.equal(own.running_var, network.get_submodule(name).running_var)
            continue
        np.testing.assert_allclose(own.running_mean, want.running_mean, rtol=1e-3, atol=1e-3)
        biased = 1 - 1 / want.count if estimator in ("pooled", "consistent") else 1
        np.testing.assert_allclose(own.running_var, want.running_var * biased, rtol=1e-4)


def test_last_is_the_one_used_last_and_unknown_names_are_refused(tmp_path):
    network = network_of()
    torch.save(network.state_dict(), tmp_path / "f.pth")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", images=rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8))
    checkpoint = load_checkpoint(tmp_path / "f.pth")
    variant = calibrate(checkpoint, mode="clean", data=tmp_path / "d.npz", layers="last")
    assert variant.estimated.layers == ("bn1",)
    assert list(variant.estimated.errors) == ["bn1"]
    assert not variant.estimated.layers_without_data
    assert variant.label == "main, clean statistics at bn1"
    for name, tensor in variant.tensors.items():
        same = np.array_equal(tensor, checkpoint.branch("main")[name].numpy())
        assert same != name.startswith("bn1.running")
    with pytest.raises(UsageError, match=r"expected names or patterns .* got 'bn9'"):
        calibrate(checkpoint, data=tmp_path / "d.npz", layers=["bn9"])


def test_dictionaries_with_one_image_tensor_are_batches():
    network, images = network_of(), torch.randn(8, 3, 16, 16)
    expected = calibrate(network, [images]).bn1.running_mean
    for batch in ({"pixel_values": images, "labels": torch.arange(8)}, {"image": images}):
        torch.testing.assert_close(calibrate(network, [batch]).bn1.running_mean, expected)
    for batch in ({"a": images}, {"image": images, "images": images}):
        with pytest.raises(InputError, match="got a dictionary of"):
            calibrate(network, [batch])


def test_onnx_files_are_recalibrated_at_the_same_layers(tmp_path, recal):
    torch.save(network_of().state_dict(), tmp_path / "f.pth")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", images=rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8))
    assert recal("export", "f.pth", "--patchable", "-o", "b.onnx")[0] == 0
    common = ("--mode", "clean", "--data", "d.npz", "--layers", "block1.*,last")
    status, out, _ = recal("calibrate", "b.onnx", *common, "-o", "o.safetensors")
    assert status == 0
    assert "Statistics of 3 of 7 layers (block1.layer.0.bn1, block1.layer.0.bn2, bn1)" in out
    status, out, _ = recal(
        "calibrate", "f.pth", *common, "--estimator", "consistent", "-o", "t.safetensors"
    )
    assert status == 0
    onnx, own = load_variant(tmp_path / "o.safetensors"), load_variant(tmp_path / "t.safetensors")
    assert onnx.estimated.layers == own.estimated.layers
    for name, tensor in own.tensors.items():
        np.testing.assert_allclose(onnx.tensors[name], tensor, rtol=1e-4, atol=1e-3)


@pytest.fixture
def dual(split_checkpoint, class_folders):
    """Return a checkpoint of two branches and a function that calibrates it at some layers."""
    checkpoint = load_checkpoint(split_checkpoint)

    def made(layers=(), affine="main", seed=0):
        return calibrate(
            checkpoint, mode="clean", data=class_folders, affine=affine, layers=layers, seed=seed
        )

    return checkpoint, made


def test_parts_of_chosen_layers_merge_to_the_bytes_of_one_process(dual, class_folders, tmp_path):
    checkpoint, _ = dual
    settings = Settings(batch_size=7, layers=("last",))
    images = {"data": class_folders, "settings": settings}
    parts = [
        calibrate_part(checkpoint, ["main"], ["clean"], Part(n, 3), tmp_path, **images)
        for n in (1, 2, 3)
    ]
    (merged,) = merge_parts(parts).values()
    (alone,) = calibrate_matrix(checkpoint, ["main"], ["clean"], **images).values()
    assert len(merged.estimated.layers) == 1
    save_variant(merged, tmp_path / "merged")
    save_variant(alone, tmp_path / "alone")
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "alone").read_bytes()
    # parts of other layers are of another calibration
    other = replace(settings, layers=("first",))
    images["settings"] = other
    with pytest.raises(InputError, match="expected a part of the same calibration"):
        calibrate_part(checkpoint, ["main"], ["clean"], Part(1, 3), tmp_path, **images)


def test_mixes_of_variants_at_some_layers_are_the_moments_of_the_mixture(dual):
    """Each layer of a variant has statistics, estimated or stored, which are mixed alike."""
    _, made = dual
    one, two = made(layers="last"), made(layers="first", affine="aux0", seed=1)
    mixed = mix([one, two], [0.25, 0.75])
    for name in one.layers:
        m, v = (
            [variant.tensors[f"{name}.{leaf}"].astype(float) for variant in (one, two)]
            for leaf in ("running_mean", "running_var")
        )
        mean = 0.25 * m[0] + 0.75 * m[1]
        second = 0.25 * (v[0] + m[0] ** 2) + 0.75 * (v[1] + m[1] ** 2)
        np.testing.assert_allclose(mixed.tensors[f"{name}.running_mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(
            mixed.tensors[f"{name}.running_var"], second - mean**2, rtol=1e-4, atol=1e-6
        )
    assert "clean statistics at" in mixed.label


def test_a_prior_is_blended_with_layers_that_saw_images_alone(dual):
    """At the other layers n is 0, so that lambda = N / (N + n) is 1."""
    checkpoint, made = dual
    source, adapted = branch_variant(checkpoint, "aux0"), made(layers="last")
    share = 30 / (30 + adapted.estimated.images)
    blended = blend_with_prior(source, adapted, 30)
    for name, tensor in source.tensors.items():
        expected = tensor.astype(float)
        layer, _, leaf = name.rpartition(".")
        if layer in adapted.estimated.layers and leaf.startswith("running"):
            expected = share * expected + (1 - share) * adapted.tensors[name]
        np.testing.assert_allclose(blended.tensors[name], expected, rtol=1e-6, err_msg=name)
