"""Architecture and preprocessing: what has to be known of a network beside its weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from recal.errors import UsageError
from recal.networks.detect import architecture_of
from recal.networks.wrappers import Channels, strip_front
from recal.policies.families import load_family
from recal.schema import Record, convert

if TYPE_CHECKING:
    import torch

Count = Annotated[int, Meta(ge=1, le=2**24)]
Side = Annotated[int, Meta(ge=1, le=16384)]


class ModelSpec(Record, frozen=True, kw_only=True, eq=False):
    """Architecture and preprocessing of a network.

    Attributes:
        arch: Name for `recal.networks.names.create_network`.
        classes: Number of classes, K.
        family: Family of policies that suits it.
        mean: Mean that is subtracted from each channel of RGB images in [0, 1].
        std: Standard deviation that each channel is divided by.
        size: Side of the square input, in pixels.
        bn_act: Whether BatchNorm layers apply the activation that timm's `BatchNormAct2d` carries;
            false for a network that was trained without.
    """

    arch: str
    classes: Count
    family: str
    mean: Channels
    std: Channels
    size: Side
    bn_act: bool = True

    def __post_init__(self) -> None:
        if not min(self.std) > 0:
            raise ValueError(f"std: expected positive numbers, got {_numbers(self.std)}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if max(values) > 1.5:
                raise ValueError(
                    f"{name}: expected numbers of images in [0, 1], got {_numbers(values)}. Divide "
                    "them by 255."
                )

    @property
    def trusted(self) -> bool:
        """Whether the user named the architecture, so that it may be their own code (`python:`)."""
        return False

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

    def given(self) -> dict[str, object]:
        """Return the fields that are not None."""
        fields = msgspec.structs.asdict(self)
        return {name: value for name, value in fields.items() if value is not None}

    def over(self, others: ModelOverrides) -> ModelOverrides:
        """Return these fields, completed by those of `others` that are None here."""
        return msgspec.structs.replace(others, **self.given())


NOTHING_GIVEN = ModelOverrides()


def usual_preprocessing(arch: str, family: str | None = None) -> ModelOverrides:
    """Return family, mean, std and size that go with an architecture's name, as far as known.

    For timm they are those of its configuration, such as Inception's mean and std for
    `tf_efficientnet_b0.ap_in1k`. They are ImageNet's, so a network of another family gets none.
    """
    origin, _, name = arch.rpartition(":")
    if origin == "timm":
        return _timm(name) if family in (None, "imagenet") else NOTHING_GIVEN
    if origin == "torchvision":
        return ModelOverrides(family="imagenet")
    if arch.startswith("robustbench:"):
        return _zoo(arch.removeprefix("robustbench:"))
    return ModelOverrides(family="cifar")


def _timm(name: str) -> ModelOverrides:
    import timm

    config = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        return ModelOverrides(family="imagenet")
    return ModelOverrides(
        family="imagenet",
        mean=config.mean if len(config.mean) == 3 else None,
        std=config.std if len(config.std) == 3 else None,
        size=config.input_size[-1],
    )


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
    known = known.over(usual_preprocessing(arch, known.family))
    family = load_family(known.family or "cifar")
    # the rows of the last weight matrix, which is the classifier's by convention
    rows = [shape[0] for n, shape in shapes.items() if n.endswith(".weight") and len(shape) == 2]
    classes = known.classes or (rows[-1] if rows else None) or family.classes
    if classes is None:
        raise UsageError(
            f"{where}: the number of classes cannot be told from the file. Give --classes."
        )
    content = {
        "arch": arch,
        "classes": classes,
        "family": family.name,
        "mean": known.mean or family.mean,
        "std": known.std or family.std,
        "size": known.size or family.size,
        "bn_act": known.bn_act is not False,
    }
    return convert(content, TrustedSpec if overrides.arch else ModelSpec, where)


def _numbers(values: Channels) -> str:
    return ", ".join(f"{value:g}" for value in values)
