"""Checkpoints of several files: folders of the Hugging Face hub's form, and weights in shards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from recal.errors import InputError, listed, shown
from recal.files import require_file
from recal.schema import Record, read_json_file

INDEX = ".index.json"
# what a folder may hold, the first one found being read
WEIGHTS = (
    "model.safetensors", f"model.safetensors{INDEX}",
    "pytorch_model.bin", f"pytorch_model.bin{INDEX}",
)  # fmt: skip
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<suffix>\.\w+)")
# arguments of timm's models that no weight shows and that do not change what they compute
WITHOUT_EFFECT = ("num_classes", "in_chans", "img_size", "drop_rate", "drop_path_rate")
# Pillow's numbers of filters, by which transformers names them
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The files of a checkpoint.

    Attributes:
        files: The files with weights, and the names of the tensors that an index expects in each;
            None if there is no index.
        config: What `config.json` says, or None if there is none.
        preprocessor: What `preprocessor_config.json` says, empty if there is none.
    """

    files: dict[Path, tuple[str, ...] | None]
    config: dict[str, Any] | None = None
    preprocessor: dict[str, Any] | None = None


class ShardIndex(Record, frozen=True, kw_only=True):
    """An index of shards: the file of each tensor, by name."""

    weight_map: dict[str, str]
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


def is_checkpoint_folder(path: Path) -> bool:
    """Return whether a path is a folder with weights under a name of the hub."""
    return path.is_dir() and any((path / name).is_file() for name in WEIGHTS)


def locate(path: Path) -> Stored:
    """Return the files of a checkpoint: itself, the shards of an index, or those of a folder.

    Raises:
        InputError: It does not exist, a folder has no weights under a known name, an index names
            files that are missing or elsewhere, or the file is one shard of several.
    """
    if is_checkpoint_folder(path):
        weights = next(path / name for name in WEIGHTS if (path / name).is_file())
        return Stored(
            files=_files(weights),
            config=_json(path / "config.json"),
            preprocessor=_json(path / "preprocessor_config.json"),
        )
    if path.is_dir():
        raise InputError(
            f"{path}: expected a checkpoint, got a folder without {listed(WEIGHTS, 4)}. Name the "
            "file of weights in it."
        )
    return Stored(files=_files(path))


def _json(path: Path) -> dict[str, Any] | None:
    return read_json_file(path, dict[str, Any]) if path.is_file() else None


def _files(path: Path) -> dict[Path, tuple[str, ...] | None]:
    require_file(path, "a checkpoint")
    if path.name.endswith(INDEX):
        return _shards(path)
    shard = SHARD.fullmatch(path.name)
    if shard and int(shard["count"]) > 1:
        index = f"{shard['stem']}{shard['suffix']}{INDEX}"
        raise InputError(
            f"{path}: expected a whole network, got part {int(shard['number'])} of "
            f"{int(shard['count'])}. Name its index, {index}, or the folder that has it and all "
            "parts."
        )
    return {path: None}


def _shards(index: Path) -> dict[Path, tuple[str, ...] | None]:
    expected: dict[str, list[str]] = {}
    for tensor, file in read_json_file(index, ShardIndex).weight_map.items():
        expected.setdefault(file, []).append(tensor)
    for file in expected:
        if Path(file).name != file or file in ("", "..") or "\\" in file:
            raise InputError(f"{index}: expected names of files beside it, got {shown(file)}.")
    missing = [file for file in expected if not (index.parent / file).is_file()]
    if missing or not expected:
        raise InputError(
            f"{index}: expected the files that it names beside it, got none named "
            f"{listed(missing) or 'there'}. Download the parts that are missing."
        )
    return {index.parent / file: tuple(names) for file, names in expected.items()}


def merge(index: Mapping[Path, tuple[str, ...] | None], contents: Mapping[Path, Any]) -> Any:
    """Return the content of one file, or the tensors of all shards in one dictionary.

    Raises:
        InputError: A shard lacks a tensor that the index expects in it.
    """
    merged: dict[str, Any] = {}
    for path, names in index.items():
        content = contents[path]
        if names is None:
            return content
        missing = [name for name in names if not isinstance(content, dict) or name not in content]
        if missing:
            raise InputError(
                f"{path}: expected the tensors that the index names, got none named "
                f"{listed(missing)}. The parts are of different downloads; get them again."
            )
        merged |= {name: content[name] for name in names}
    return merged


def hub_facts(stored: Stored) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return what a folder says about its network, and names of settings that cannot be applied.

    The facts have the names of `ModelOverrides`, and values that are to be checked.
    """
    config, preprocessor = stored.config or {}, stored.preprocessor or {}
    if "architecture" in config:  # timm's own form, or its wrapper in transformers
        nested = config.get("pretrained_cfg")
        pretrained = nested if isinstance(nested, dict) else config
        size = pretrained.get("input_size")
        given = config.get("model_args")
        arguments = given if isinstance(given, dict) else {}
        facts = {
            "arch": _timm_name(config["architecture"], pretrained.get("tag")),
            "classes": config.get("num_classes", pretrained.get("num_classes")),
            "mean": pretrained.get("mean"),
            "std": pretrained.get("std"),
            "size": size[-1] if isinstance(size, list) and size else None,
            "crop_share": pretrained.get("crop_pct"),
            "interpolation": pretrained.get("interpolation"),
            "crop_mode": pretrained.get("crop_mode"),
        }
        return facts, tuple(name for name in arguments if name not in WITHOUT_EFFECT)
    labels, side = config.get("id2label"), preprocessor.get("size")
    resample = preprocessor.get("resample")
    kind = config.get("model_type")
    classes = len(labels) if isinstance(labels, dict) else config.get("num_labels")
    return {
        "arch": _transformers_resnet(config) or (f"transformers:{kind}" if kind else None),
        "classes": classes,
        "family": "imagenet" if kind else None,
        "mean": preprocessor.get("image_mean"),
        "std": preprocessor.get("image_std"),
        "size": side.get("shortest_edge") if isinstance(side, dict) else side,
        "crop_share": preprocessor.get("crop_pct"),
        "interpolation": FILTERS.get(resample) if isinstance(resample, int) else None,
    }, ()


def _timm_name(architecture: object, tag: object) -> str | None:
    from timm.models import get_pretrained_cfg, is_model

    if not isinstance(architecture, str) or not re.fullmatch(r"\w+", architecture):
        return None
    name = f"{architecture}.{tag}"
    if isinstance(tag, str) and re.fullmatch(r"\w+", tag) and is_model(architecture):
        try:
            return f"timm:{name}" if get_pretrained_cfg(name) else f"timm:{architecture}"
        except RuntimeError:  # a tag of the user's own
            pass
    return f"timm:{architecture}"


# depths, kind of block, and width of the last stage of the ResNets that torchvision has, too
RESNETS = {
    (2, 2, 2, 2, "basic", 512): "resnet18",
    (3, 4, 6, 3, "basic", 512): "resnet34",
    (3, 4, 6, 3, "bottleneck", 2048): "resnet50",
    (3, 4, 23, 3, "bottleneck", 2048): "resnet101",
    (3, 8, 36, 3, "bottleneck", 2048): "resnet152",
}


def _transformers_resnet(config: dict[str, Any]) -> str | None:
    """Return the network of torchvision that computes what a ResNet of transformers does."""
    depths, widths = config.get("depths"), config.get("hidden_sizes")
    if config.get("model_type") != "resnet" or not depths or not widths:
        return None
    unusual = config.get("downsample_in_bottleneck") or config.get("downsample_in_first_stage")
    name = RESNETS.get((*depths, config.get("layer_type", "bottleneck"), widths[-1]))
    plain = config.get("hidden_act", "relu") == "relu" and config.get("embedding_size", 64) == 64
    return f"torchvision:{name}" if name and plain and not unusual else None


# how transformers names what torchvision names otherwise
RENAMED = (
    (r"^resnet\.embedder\.embedder\.convolution\.", "conv1."),
    (r"^resnet\.embedder\.embedder\.normalization\.", "bn1."),
    (r"^resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.",
     lambda match: f"layer{int(match[1]) + 1}.{match[2]}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"\.layer\.(\d)\.convolution\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda match: f".bn{int(match[1]) + 1}."),
    (r"^classifier\.1\.", "fc."),
)  # fmt: skip


def renamed(tensors: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of transformers' ResNet under torchvision's names; others are left."""
    if not _transformers_resnet(config):
        return tensors
    names = list(tensors)
    for pattern, replacement in RENAMED:
        names = [re.sub(pattern, replacement, name) for name in names]
    return dict(zip(names, tensors.values(), strict=True))
