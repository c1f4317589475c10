"""Architecture and preprocessing: what has to be known of a network beside its weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
from msgspec import Meta

from recal.errors import UsageError
from recal.networks.detect import RGB, architecture_of, input_channels, possible_classes
from recal.networks.outputs import count_classes
from recal.networks.wrappers import Channels, strip_front
from recal.policies.families import load_family
from recal.policies.policy import Policy, load_policy
from recal.policies.preparation import (
    Colour,
    CropMode,
    CropShare,
    Interpolation,
    Preparation,
    Side,
)
from recal.schema import Record, convert

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Count = Annotated[int, Meta(ge=1, le=2**24)]
ChannelCount = Annotated[int, Meta(ge=1, le=1024)]


class ModelSpec(Record, frozen=True, kw_only=True, eq=False):
    """Architecture and preprocessing of a network.

    Attributes:
        arch: Name for `recal.networks.names.create_network`.
        classes: Number of classes, K.
        family: Family of policies that suits it.
        mean: Mean that is subtracted from each channel of images in [0, 1].
        std: Standard deviation that each channel is divided by.
        size: Side of the square input, in pixels.
        bn_act: Whether BatchNorm layers apply the activation that timm's `BatchNormAct2d` carries;
            false for a network that was trained without.
        crop_share: Share of the resized side that the crop of test images keeps.
        interpolation: Filter of resizing.
        crop_mode: How test images are resized and cropped: see `Preparation`.
        policy: Text of the policy that prepares test images; empty for the family's `clean`.
        channels: Number of channels of the images: 3 for RGB, 1 for grey.
    """

    arch: str
    classes: Count
    family: str
    mean: Channels
    std: Channels
    size: Side
    bn_act: bool = True
    crop_share: CropShare = 1.0
    interpolation: Interpolation = "bicubic"
    crop_mode: CropMode = "none"
    policy: str = ""
    channels: ChannelCount = RGB

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"{name}: expected {self.channels} numbers, one for each channel of the "
                    f"network's images, got {len(values)}. Give --mean and --std, or --channels."
                )
        if not min(self.std) > 0:
            raise ValueError(f"std: expected positive numbers, got {_numbers(self.std)}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if max(values) > 1.5:
                raise ValueError(
                    f"{name}: expected numbers of images in [0, 1], got {_numbers(values)}. Divide "
                    "them by 255."
                )
        if self.policy and self.clean_policy.draws:
            raise ValueError("policy: expected one that prepares test images, got random ops.")

    @property
    def preparation(self) -> Preparation:
        """How images become the network's input, as far as policies leave it open."""
        return Preparation(
            size=self.size,
            crop_share=self.crop_share,
            interpolation=self.interpolation,
            crop_mode=self.crop_mode,
            fill=self._padding if self.crop_mode == "border" else (0, 0, 0),
            published=load_family(self.family).size,
            channels=self.channels,
        )

    @property
    def _padding(self) -> Colour:
        """The mean colour, with which timm pads."""
        if len(self.mean) != RGB:
            if len(self.mean) > 1:
                raise UsageError(
                    "--crop-mode border: expected images of 1 or 3 channels, got "
                    f"{len(self.mean)}. Use another."
                )
            return (min(255, max(0, round(255 * self.mean[0]))),) * 3
        red, green, blue = (min(255, max(0, round(255 * value))) for value in self.mean)
        return red, green, blue

    @property
    def clean_policy(self) -> Policy:
        """The policy that prepares test images: the network's own, or the family's `clean`."""
        if self.policy:
            return Policy.from_text("own", self.policy)
        return load_policy(self.family, "clean")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape (C, size, size) of one input."""
        return self.channels, self.size, self.size

    @property
    def trusted(self) -> bool:
        """Whether the user named the architecture, so that it may be their own code (`python:`)."""
        return False

    @property
    def how_prepared(self) -> str:
        """A few words on how test images are prepared, for messages."""
        return self.clean_policy.summary.rstrip(".") if self.policy else self.preparation.words

    def prepared_by(self, policy: Policy) -> ModelSpec:
        """Return this specification with a policy of training images that prepares test images too.

        It does so if it draws nothing at random.
        """
        if policy.text == self.clean_policy.text:
            return self
        return self.overridden(NOTHING_GIVEN.prepared_by(policy, may_draw=True))

    def overridden(self, overrides: ModelOverrides) -> ModelSpec:
        """Return this specification with the given fields replaced."""
        trusted = self.trusted or overrides.arch is not None
        kind = TrustedSpec if trusted else ModelSpec
        return convert({**msgspec.to_builtins(self), **overrides.given()}, kind, "model")

    def __eq__(self, other: object) -> bool:
        """Compare all fields; who named the architecture makes no difference."""
        if not isinstance(other, ModelSpec):
            return NotImplemented
        return msgspec.structs.astuple(self) == msgspec.structs.astuple(other)

    def __ne__(self, other: object) -> bool:
        """Compare all fields, as `__eq__` does; without it, identities would be compared."""
        return not self == other

    def __hash__(self) -> int:
        """Return a hash of all fields."""
        return hash(msgspec.structs.astuple(self))


class TrustedSpec(ModelSpec, frozen=True, kw_only=True, eq=False):
    """A specification whose architecture the user named, so that it may be code (`python:`).

    Files are never read as this class, so that a name found in a file never runs code.
    """

    @property
    def trusted(self) -> bool:
        """Always true."""
        return True


class ModelOverrides(Record, frozen=True, kw_only=True):
    """Any of the fields of `ModelSpec`, to override or complete what a file says."""

    arch: str | None = None
    classes: Count | None = None
    family: str | None = None
    mean: Channels | None = None
    std: Channels | None = None
    size: Side | None = None
    bn_act: bool | None = None
    crop_share: CropShare | None = None
    interpolation: Interpolation | None = None
    crop_mode: CropMode | None = None
    policy: str | None = None
    channels: ChannelCount | None = None

    def given(self) -> dict[str, object]:
        """Return the fields that are not None."""
        fields = msgspec.structs.asdict(self)
        return {name: value for name, value in fields.items() if value is not None}

    def prepared_by(self, policy: Policy, *, may_draw: bool = False) -> ModelOverrides:
        """Return these fields with a policy that prepares test images.

        Args:
            policy: The policy.
            may_draw: Whether it may have random ops. Then it is for training images alone.

        Raises:
            UsageError: It has random ops.
        """
        if not policy.draws:
            return msgspec.structs.replace(self, policy=policy.text)
        if may_draw:
            return self
        raise UsageError(
            f"--policy: expected a policy without random ops, which prepares test images, got "
            f"'{policy.name}'. Leave them out."
        )

    def over(self, others: ModelOverrides) -> ModelOverrides:
        """Return these fields, completed by those of `others` that are None here."""
        return msgspec.structs.replace(others, **self.given())


NOTHING_GIVEN = ModelOverrides()


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
) -> ModelSpec:
    """Fill a specification: first from the user, then the file, the network and the family.

    The tensors are the weights and one branch under plain names, which may determine the
    architecture and the number of classes; it is a `UsageError` if nothing does.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    known = overrides.over(facts)
    arch = overrides.arch or architecture_of(facts.arch, shapes)
    told = known
    known = known.over(usual_preprocessing(arch, known.family, known.size))
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
    trusted = overrides.arch is not None
    channels = known.channels or (
        input_channels(arch, classes, shapes, trusted=trusted) if shapes else RGB
    )
    mean, std = told.mean, told.std
    if channels == RGB:
        mean, std = known.mean or family.mean, known.std or family.std
    elif len({*family.mean}) == len({*family.std}) == 1:  # a family of grey images
        mean, std = mean or family.mean[:1] * channels, std or family.std[:1] * channels
    if mean is None or std is None:
        plural = "s" * (channels > 1)
        raise UsageError(
            f"{where}: expected mean and std of each channel, because the network takes images of "
            f"{channels} channel{plural}, got none. Give --mean and --std, {channels} "
            f"number{plural} each."
        )
    content = {
        "arch": arch,
        "classes": classes,
        "family": family.name,
        "mean": mean,
        "std": std,
        "size": size,
        "bn_act": known.bn_act is not False,
        "crop_share": known.crop_share or family.crop_share,
        "interpolation": known.interpolation or family.interpolation,
        "crop_mode": known.crop_mode or family.crop_mode,
        "policy": known.policy or "",
        "channels": channels,
    }
    return convert(content, TrustedSpec if trusted else ModelSpec, where)


def _numbers(values: Channels) -> str:
    return ", ".join(f"{value:g}" for value in values)
