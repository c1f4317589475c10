"""What has to be known of a network beside its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from recal.errors import InputError, UsageError
from recal.networks.detect import architecture_of
from recal.policies.families import load_family

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


def usual_preprocessing(arch: str, family: str | None = None) -> dict[str, Any]:
    """Return family, mean, std and size that go with an architecture's name, as far as known.

    For timm they are those of its configuration, such as Inception's mean and std for
    `tf_efficientnet_b0.ap_in1k`; they are ImageNet's, and no matter to a network of another family.

    Args:
        arch: The architecture.
        family: The network's family where it is known.
    """
    origin, _, name = arch.rpartition(":")
    if origin == "timm":
        return {"family": "imagenet", **_timm(name)} if family in (None, "imagenet") else {}
    if origin == "torchvision":
        return {"family": "imagenet"}
    if arch.startswith("robustbench:"):
        from recal.networks.robustbench import preprocessing

        return preprocessing(arch.removeprefix("robustbench:"))
    return {"family": "cifar"}


def _timm(name: str) -> dict[str, Any]:
    import timm

    config = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        return {}
    return {"mean": config.mean, "std": config.std, "size": config.input_size[-1]}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Architecture and preprocessing of a network.

    Attributes:
        arch: Name for `recal.architectures.create_network`.
        classes: Number of classes, K.
        family: Family of policies that suits it.
        mean: Mean that is subtracted from each channel of RGB images in [0, 1].
        std: Standard deviation that each channel is divided by.
        size: Side of the square input, in pixels.
        trusted: Whether the user named the architecture, so that it may be code of theirs
            (`python:`). A name that was found in a file never is; not written to files.
    """

    arch: str
    classes: int
    family: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    trusted: bool = field(default=False, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON knows them."""
        content = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        del content["trusted"]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelSpec:
        """Read what `to_json` wrote.

        Raises:
            InputError: A field is missing or of another type.
        """
        try:
            values = {f.name: content[f.name] for f in fields(cls) if f.name != "trusted"}
            values["mean"], values["std"] = tuple(values["mean"]), tuple(values["std"])
            return cls(**values).checked()
        except (KeyError, TypeError) as error:
            raise InputError(f"model record: expected all its fields, got {error}.") from error

    def overridden(self, asked: Mapping[str, Any]) -> ModelSpec:
        """Return this with what was asked for in its place; None stands for not asked.

        Raises:
            InputError: A value cannot be right.
        """
        given = {key: value for key, value in asked.items() if value is not None}
        for key in ("mean", "std"):
            if key in given:
                given[key] = tuple(given[key])
        return replace(self, **given, trusted=self.trusted or "arch" in given).checked()

    def checked(self) -> ModelSpec:
        """Return self if every value can be right.

        Raises:
            InputError: One cannot.
        """
        if not isinstance(self.arch, str) or not isinstance(self.family, str):
            raise InputError(f"expected names, got arch {self.arch!r}, family {self.family!r}.")
        if type(self.size) is not int or type(self.classes) is not int:
            raise InputError(f"expected whole numbers, got {self.size!r} and {self.classes!r}.")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise InputError(f"--mean and --std: expected 3 numbers, got {self.mean}, {self.std}.")
        if not min(self.std) > 0:
            raise InputError(f"--std: expected positive numbers, got {self.std}.")
        if max(*self.mean, *self.std) > 1.5:
            raise InputError(
                f"--mean and --std: expected numbers of images in [0, 1], got {self.mean}, "
                f"{self.std}. Divide them by 255."
            )
        if self.size < 1 or self.classes < 1:
            raise InputError(f"expected size and classes >= 1, got {self.size}, {self.classes}.")
        return self


def complete_spec(
    asked: Mapping[str, Any], facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> ModelSpec:
    """Fill a specification with what was asked, else the file's, the network's, the family's.

    Args:
        asked: Any of the fields of `ModelSpec`; None stands for not asked.
        facts: What the checkpoint file says, likewise.
        tensors: The weights and one branch under plain names, which may determine the architecture,
            and of which the classifier gives the number of classes.

    Raises:
        UsageError: The architecture or the number of classes cannot be told.
        TypeError: `asked` has another key.
    """
    unknown = sorted(asked.keys() - {field.name for field in fields(ModelSpec)})
    if unknown:
        raise TypeError(f"unexpected option '{unknown[0]}'")
    given = {key: value for key, value in asked.items() if value is not None}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    arch = given.get("arch") or architecture_of(facts.get("arch"), shapes)
    family_name = given.get("family") or facts.get("family")
    known = {**usual_preprocessing(arch, family_name), **facts, **given}
    family = load_family(known.get("family") or "cifar")
    classes = known.get("classes") or _classes_of(tensors) or family.classes
    if classes is None:
        raise UsageError("the number of classes cannot be told from the file. Give --classes.")
    return ModelSpec(
        arch=arch,
        classes=classes,
        family=family.name,
        mean=tuple(known.get("mean") or family.mean),
        std=tuple(known.get("std") or family.std),
        size=known.get("size") or family.size,
        trusted="arch" in given,
    ).checked()


def _classes_of(tensors: Mapping[str, torch.Tensor]) -> int | None:
    """Return the rows of the last weight matrix, which is the classifier's by convention."""
    rows = [t.shape[0] for name, t in tensors.items() if name.endswith(".weight") and t.ndim == 2]
    return rows[-1] if rows else None
