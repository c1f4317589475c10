"""Architecture and preprocessing: what has to be known of a network beside its weights."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from recal.data.normalise import ChannelOrder, Normalisation
from recal.errors import UsageError
from recal.networks.detect import RGB
from recal.networks.feeding import (
    AS_ASSUMED,
    SOURCES,
    AsAssumed,
    InputSource,
    describe_input,
    for_each,
)
from recal.networks.wrappers import Channels
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
        channel_order: Order of the channels in the network's input.
        input_from: Where mean and std come from; if from two places, the less certain one.
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
    channel_order: ChannelOrder = "rgb"
    input_from: InputSource = "given"

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
    def normalisation(self) -> Normalisation:
        """How pixels become the network's input."""
        return Normalisation(self.mean, self.std, self.channel_order)

    @property
    def feeding(self) -> str:
        """Mean, std and channel order, and where they come from, as a phrase for people."""
        return f"{describe_input(self.normalisation)} ({SOURCES[self.input_from]})"

    @property
    def computed(self) -> ModelSpec:
        """This specification without where mean and std come from, which changes no output."""
        return msgspec.structs.replace(self, input_from="given")

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
        given = overrides.given()
        channels = overrides.channels or self.channels
        if overrides.std is not None:
            given["std"] = for_each(overrides.std, channels)
        if overrides.mean == AS_ASSUMED:
            given["mean"], given["input_from"] = self.mean, AS_ASSUMED
        elif overrides.mean is not None:
            given["mean"] = for_each(overrides.mean, channels)
            if overrides.std is not None:
                given["input_from"] = "given"
        return convert({**msgspec.to_builtins(self), **given}, kind, "model")

    def __eq__(self, other: object) -> bool:
        """Compare what is computed; who named the architecture, or mean and std, is ignored."""
        if not isinstance(other, ModelSpec):
            return NotImplemented
        return msgspec.structs.astuple(self.computed) == msgspec.structs.astuple(other.computed)

    def __ne__(self, other: object) -> bool:
        """Compare as `__eq__` does; without it, identities would be compared."""
        return not self == other

    def __hash__(self) -> int:
        """Return a hash of the fields that `__eq__` compares."""
        return hash(msgspec.structs.astuple(self.computed))


class TrustedSpec(ModelSpec, frozen=True, kw_only=True, eq=False):
    """A specification whose architecture the user named, so that it may be code (`python:`).

    Files are never read as this class, so that a name found in a file never runs code.
    """

    @property
    def trusted(self) -> bool:
        """Always true."""
        return True


class ModelOverrides(Record, frozen=True, kw_only=True):
    """Any of the fields of `ModelSpec`, to override or complete what a file says.

    A mean `as-assumed` keeps what recal assumes, even if images show that it does not fit.
    """

    arch: str | None = None
    classes: Count | None = None
    family: str | None = None
    mean: Channels | AsAssumed | None = None
    std: Channels | None = None
    size: Side | None = None
    bn_act: bool | None = None
    crop_share: CropShare | None = None
    interpolation: Interpolation | None = None
    crop_mode: CropMode | None = None
    policy: str | None = None
    channels: ChannelCount | None = None
    channel_order: ChannelOrder | None = None

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


def _numbers(values: Channels) -> str:
    return ", ".join(f"{value:g}" for value in values)
