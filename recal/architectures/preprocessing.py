"""What a network expects of its input, where the checkpoint does not say."""

from __future__ import annotations

from typing import Any


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
        from recal.architectures.robustbench import preprocessing

        return preprocessing(arch.removeprefix("robustbench:"))
    return {"family": "cifar"}


def _timm(name: str) -> dict[str, Any]:
    import timm

    config = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        return {}
    return {"mean": config.mean, "std": config.std, "size": config.input_size[-1]}
