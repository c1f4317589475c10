"""Completing a specification from the user, the file, the architecture, layout and family."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar, get_args

from recal.errors import UsageError
from recal.networks.detect import RGB, architecture_of, input_channels, possible_classes
from recal.networks.feeding import (
    AS_ASSUMED,
    Convention,
    InputSource,
    first_told,
    for_each,
)
from recal.networks.wrappers import strip_front
from recal.policies.families import load_family
from recal.schema import convert

if TYPE_CHECKING:
    import torch


from recal.networks.outputs import count_classes
from recal.networks.spec import NOTHING_GIVEN, ModelOverrides, ModelSpec, TrustedSpec

T = TypeVar("T")


def usual_preprocessing(
    arch: str, family: str | None = None, size: int | None = None
) -> ModelOverrides:
    """Return family and preprocessing that go with an architecture's name, as far as known.

    For timm they are those of its configuration, such as Inception's mean and std for
    `tf_efficientnet_b0.ap_in1k`, as `timm.data.resolve_data_config` resolves it; with its
    `test_input_size` as `size`, its `test_crop_pct`. For torchvision they are those on which all
    its weights of the name agree. They are ImageNet's: a network of another family gets none.
    """
    origin, _, name = arch.rpartition(":")
    if origin in ("timm", "torchvision") and family not in (None, "imagenet"):
        return NOTHING_GIVEN
    if origin == "timm":
        return _timm(name, size)
    if origin == "torchvision":
        return _torchvision(name)
    if arch.startswith("robustbench:"):
        return _zoo(arch.removeprefix("robustbench:"))
    return ModelOverrides(family="cifar")


def _timm(name: str, size: int | None) -> ModelOverrides:
    import timm
    from timm.data.config import resolve_data_config

    try:
        config = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        near = f" Use one of {', '.join(tags)}, or no tag." if tags else " Leave the tag out."
        raise UsageError(f"--arch: timm has no weights '{name}'.{near}") from error
    if config is None:
        return ModelOverrides(family="imagenet")
    tests = size is not None and config.test_input_size == (config.input_size[0], size, size)
    content = config.to_dict()  # type: ignore[no-untyped-call]
    found = resolve_data_config(pretrained_cfg=content, use_test_size=tests)  # type: ignore[no-untyped-call]
    return ModelOverrides(
        family="imagenet",
        mean=found["mean"] if len(found["mean"]) == RGB else None,
        std=found["std"] if len(found["std"]) == RGB else None,
        size=found["input_size"][-1],
        crop_share=found["crop_pct"],
        interpolation=found["interpolation"],
        crop_mode=found["crop_mode"],
    )


def _torchvision(name: str) -> ModelOverrides:
    from torchvision import models

    known = name in models.list_models(module=models)
    presets = [w.transforms() for w in models.get_model_weights(name)] if known else []

    def agreed(values: list[T]) -> T | None:
        return values[0] if len(set(values)) == 1 else None

    return ModelOverrides(
        family="imagenet",
        size=agreed([preset.crop_size[0] for preset in presets]),
        crop_share=agreed([_share(p.crop_size[0], p.resize_size[0]) for p in presets]),
        interpolation=agreed([preset.interpolation.value for preset in presets]),
    )


def _share(size: int, resized: int) -> float:
    """Return the share that gives back, as `Prepare` rounds, the side that was resized to."""
    share = size / resized
    return share if math.floor(size / share) == resized else math.nextafter(share, 0)


@functools.lru_cache
def _zoo(name: str) -> ModelOverrides:
    """Return the preprocessing of RobustBench's network, which takes images in [0, 1].

    If it has mean and standard deviation as buffers, recal applies them in its place.
    """
    from recal.networks.external import zoo_network

    front = strip_front(zoo_network(name).state_dict())
    return ModelOverrides(
        family="imagenet" if name.startswith("imagenet/") else "cifar",
        mean=front.mean or (0.0, 0.0, 0.0),
        std=front.std or (1.0, 1.0, 1.0),
    )


def complete_spec(
    overrides: ModelOverrides,
    facts: ModelOverrides,
    tensors: Mapping[str, torch.Tensor],
    where: str = "model",
    convention: Convention | None = None,
) -> ModelSpec:
    """Fill a specification: from the user, the file, the architecture, the layout and the family.

    The tensors are the weights and one branch under plain names, which may determine the
    architecture and the number of classes; it is a `UsageError` if nothing does. The convention is
    that of the layout's authors.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    known = overrides.over(facts)
    arch = overrides.arch or architecture_of(facts.arch, shapes)
    usual = usual_preprocessing(arch, known.family, known.size)
    known = known.over(usual)
    family = load_family(known.family or "cifar")
    trusted, size = overrides.arch is not None, known.size or family.size
    classes = known.classes
    if classes is None and shapes:
        classes = count_classes(arch, shapes, (known.channels, size), trusted=trusted)
        classes = classes or possible_classes(shapes)[0]
    classes = classes or family.classes
    if classes is None:
        raise UsageError(
            f"{where}: the number of classes cannot be told from the file. Give --classes."
        )
    channels = known.channels or (
        input_channels(arch, classes, shapes, trusted=trusted) if shapes else RGB
    )
    told: dict[InputSource, object] = {"given": overrides, "file": facts}
    if channels == RGB:
        told["architecture"] = usual
        if convention is not None and family.name in (convention.families or (family.name,)):
            told["layout"] = convention
        told["family"] = family
    elif len({*family.mean}) == len({*family.std}) == 1:  # a family of grey images
        mean, std = family.mean[:1] * channels, family.std[:1] * channels
        told["family"] = ModelOverrides(mean=mean, std=std)
    mean_told, std_told = first_told(told, "mean"), first_told(told, "std")
    if mean_told is None or std_told is None:
        plural = "s" * (channels > 1)
        raise UsageError(
            f"{where}: expected mean and std of each channel, because the network takes images of "
            f"{channels} channel{plural}, got none. Give --mean and --std, {channels} "
            f"number{plural} each."
        )
    source = max(mean_told[1], std_told[1], key=get_args(InputSource).index)
    content = {
        "arch": arch,
        "classes": classes,
        "family": family.name,
        "mean": for_each(mean_told[0], channels),
        "std": for_each(std_told[0], channels),
        "size": size,
        "bn_act": known.bn_act is not False,
        "crop_share": known.crop_share or family.crop_share,
        "interpolation": known.interpolation or family.interpolation,
        "crop_mode": known.crop_mode or family.crop_mode,
        "policy": known.policy or "",
        "channels": channels,
        "channel_order": known.channel_order or "rgb",
        "input_from": AS_ASSUMED if overrides.mean == AS_ASSUMED else source,
    }
    return convert(content, TrustedSpec if trusted else ModelSpec, where)
