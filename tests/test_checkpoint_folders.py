"""Folders as the Hugging Face hub has them, and weights in several parts."""

import json
import re

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models import save_for_hf

from recal.checkpoint.checkpoint import load_checkpoint
from recal.errors import InputError, UsageError
from recal.networks.names import create_network
from recal.variant.build import build
from tests.dual_networks import randomise


def write_shards(state, folder, form, parts=3):
    """Write weights as libraries split them, and return the path of the index."""
    names, suffix = list(state), {"safetensors": "safetensors", "bin": "bin"}[form]
    stem = "model" if form == "safetensors" else "pytorch_model"
    weight_map = {}
    for part in range(parts):
        file = f"{stem}-{part + 1:05d}-of-{parts:05d}.{suffix}"
        own = {name: state[name].clone() for name in names[part::parts]}
        if form == "safetensors":
            save_file(own, folder / file)
        else:
            torch.save(own, folder / file)
        weight_map |= dict.fromkeys(own, file)
    index = folder / f"{stem}.{suffix}.index.json"
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    index.write_text(json.dumps(content), encoding="utf-8")
    return index


@pytest.fixture
def network():
    return randomise(create_network("wrn10_1", 10))


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_parts_are_read_by_their_index_and_by_their_folder(form, network, images, tmp_path):
    index = write_shards(network.state_dict(), tmp_path, form)
    for path in (index, tmp_path):
        checkpoint = load_checkpoint(path)
        assert "weights taken from 3 parts" in checkpoint.notes
        with torch.no_grad():
            torch.testing.assert_close(build(checkpoint)(images), network(images))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_single_part_is_refused_as_part_of_a_whole(form, network, tmp_path):
    index = write_shards(network.state_dict(), tmp_path, form)
    part = next(tmp_path.glob("*-00002-of-00003.*"))
    with pytest.raises(InputError, match=rf"got part 2 of 3\. Name its index, {index.name}"):
        load_checkpoint(part)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: {"weight_map": {"a": "../../etc/passwd"}}, "names of files beside it"),
        (lambda files: {"weight_map": {"a": "/etc/passwd"}}, "names of files beside it"),
        (lambda files: {"weight_map": {"a": ".."}}, "names of files beside it"),
        (lambda files: {"weight_map": {"a": "other.safetensors"}}, "none named other.safetensors"),
        (lambda files: {"weight_map": {"a": files[0]}}, r"none named a\. The parts are of"),
        (lambda files: {"weight_map": {}}, "none named there"),
        (lambda files: {"weights": {}}, "expected one of weight_map, metadata|weight_map"),
        (lambda files: [], "expected"),
    ],
)
def test_index_that_names_other_things_is_refused(change, message, network, tmp_path):
    index = write_shards(network.state_dict(), tmp_path, "safetensors")
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    index.write_text(json.dumps(change(files)), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path)


def test_folder_without_weights_says_what_was_looked_for(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"got a folder without model\.safetensors"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("safe", [True, False])
def test_folder_of_timms_own_saver_gives_network_and_preprocessing(safe, tmp_path):
    network = randomise(timm.create_model("resnet10t.c3_in1k", num_classes=4))
    network.pretrained_cfg |= {"crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "squash"}
    save_for_hf(network, str(tmp_path), safe_serialization=safe)
    checkpoint = load_checkpoint(tmp_path)
    config = timm.data.resolve_data_config(model=network)
    assert checkpoint.spec.arch == "timm:resnet10t.c3_in1k"
    assert checkpoint.spec.classes == 4
    assert (checkpoint.spec.mean, checkpoint.spec.std) == (config["mean"], config["std"])
    prepared = checkpoint.spec.preparation
    assert prepared.size == config["input_size"][-1]
    found = (prepared.crop_share, prepared.interpolation, prepared.crop_mode)
    assert found == (config["crop_pct"], config["interpolation"], config["crop_mode"])
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(build(checkpoint)(images), network(images))


def test_arguments_of_a_network_that_cannot_be_applied_are_a_doubt(tmp_path):
    network = timm.create_model("resnet10t", num_classes=4)
    save_for_hf(network, str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["model_args"] = {"act_layer": "silu", "drop_rate": 0.1}
    config["pretrained_cfg"]["tag"] = "my_own"
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.spec.arch == "timm:resnet10t"
    assert "the settings act_layer of the network" in checkpoint.doubts[0].sentence


def as_transformers(state):
    """Return the tensors of torchvision's ResNet under the names that transformers gives them."""
    names = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
    result = {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        inside = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", module)
        if module == "fc":
            name = "classifier.1"
        elif inside is None:
            name = f"resnet.{names[module]}"
        else:
            part = inside[3]
            shortcut = {"downsample.0": "shortcut.convolution",
                        "downsample.1": "shortcut.normalization"}  # fmt: skip
            kind = "convolution" if part.startswith("conv") else "normalization"
            part = shortcut.get(part) or f"layer.{int(part[-1]) - 1}.{kind}"
            name = f"resnet.encoder.stages.{int(inside[1]) - 1}.layers.{inside[2]}.{part}"
        result[f"{name}.{leaf}"] = tensor.clone()
    return result


CONFIGS = {
    "resnet18": {"depths": [2, 2, 2, 2], "layer_type": "basic",
                 "hidden_sizes": [64, 128, 256, 512]},
    "resnet50": {"depths": [3, 4, 6, 3], "layer_type": "bottleneck",
                 "hidden_sizes": [256, 512, 1024, 2048]},
}  # fmt: skip


def write_transformers(folder, name, state, **changes):
    config = {"model_type": "resnet", "embedding_size": 64, "hidden_act": "relu",
              "architectures": ["ResNetForImageClassification"],
              "id2label": {str(i): f"LABEL_{i}" for i in range(4)}, **CONFIGS[name]}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    preprocessor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.3],
                    "size": {"shortest_edge": 192}, "crop_pct": 0.9, "resample": 3}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("name", CONFIGS)
def test_folder_of_transformers_resnet_is_torchvisions(name, tmp_path):
    """Transformers' own outputs were found equal to the last bit; here, its names are undone."""
    network = randomise(torchvision.models.get_model(name, weights=None, num_classes=4))
    write_transformers(tmp_path, name, as_transformers(network.state_dict()))
    checkpoint = load_checkpoint(tmp_path)
    spec = checkpoint.spec
    assert (spec.arch, spec.classes, spec.size) == (f"torchvision:{name}", 4, 192)
    assert (spec.mean, spec.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
    assert spec.preparation.words == "192 pixels, center crop of 0.9, bicubic"
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(build(checkpoint)(images), network(images))


@pytest.mark.parametrize(
    "changes",
    [{"downsample_in_bottleneck": True}, {"hidden_act": "gelu"}, {"depths": [1, 1, 1, 1]},
     {"model_type": "regnet"}],
)  # fmt: skip
def test_other_networks_of_transformers_are_named_in_one_message(changes, tmp_path):
    network = torchvision.models.get_model("resnet18", weights=None, num_classes=4)
    write_transformers(tmp_path, "resnet18", as_transformers(network.state_dict()), **changes)
    checkpoint = load_checkpoint(tmp_path)
    kind = changes.get("model_type", "resnet")
    with pytest.raises(UsageError, match=rf"may not use \('transformers:{kind}'\).*--arch"):
        _ = checkpoint.spec


def test_commands_take_folders(recal, network, class_folders, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    write_shards(network.state_dict(), folder, "safetensors")
    data = ["--data", class_folders]
    for command in (
        ["inspect", folder],
        ["calibrate", folder, "--mode", "clean", *data, "--workers", 0, "-o", "v.safetensors"],
        ["convert", folder, "-o", "plain.safetensors"],
        ["export", folder, "--variant", "v.safetensors", "-o", "f.onnx"],
        ["eval", folder, f"{folder}:main", "v.safetensors", "--suite", "cifar10", *data],
        ["verify", "f.onnx", "--checkpoint", folder, "--variant", "v.safetensors"],
    ):
        status, _, err = recal(*command)
        assert status == 0, err
    status, _, err = recal("inspect", folder / "model-00001-of-00003.safetensors")
    assert status == 3
    assert "got part 1 of 3" in err
