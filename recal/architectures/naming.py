"""Turning an architecture's name into a network with fresh weights."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from recal.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

FORMS = "recal:wrn<depth>_<widen> (or just wrn16_1), timm:NAME, torchvision:NAME"


def create_network(name: str, classes: int) -> nn.Module:
    """Build a network with randomly initialised weights; nothing is downloaded.

    Args:
        name: `recal:NAME` or `NAME` for recal's own, `timm:NAME`, `torchvision:NAME`.
        classes: Number of classes, K.

    Raises:
        UsageError: The name is unknown.
    """
    origin, _, model = name.rpartition(":")
    makers = {"": _own, "recal": _own, "timm": _timm, "torchvision": _torchvision}
    if origin not in makers:
        raise UsageError(f"--arch: expected {FORMS}, got '{name}'.")
    return makers[origin](model, classes)


def _own(name: str, classes: int) -> nn.Module:
    match = re.fullmatch(r"wrn(\d+)_(\d+)", name)
    if match is None or not _is_wide_resnet(depth := int(match[1]), widen := int(match[2])):
        raise UsageError(
            f"--arch: expected {FORMS}, got '{name}'. A wide ResNet's depth is 6 n + 4."
        )
    from recal.architectures.wide_resnet import WideResNet

    return WideResNet(depth, widen, classes)


def _is_wide_resnet(depth: int, widen: int) -> bool:
    return 10 <= depth <= 400 and (depth - 4) % 6 == 0 and 1 <= widen <= 64


def _timm(name: str, classes: int) -> nn.Module:
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_', maxsplit=1)[0]}*")[:5]
        hint = f" Near it: {', '.join(near)}." if near else ""
        raise UsageError(f"--arch: timm has no model '{name}'.{hint}")
    return timm.create_model(name, pretrained=False, num_classes=classes)  # type: ignore[no-any-return]


def _torchvision(name: str, classes: int) -> nn.Module:
    from torchvision import models

    from recal.declared import pick

    known = models.list_models(module=models)
    return models.get_model(  # type: ignore[no-any-return]
        pick(name, known, "--arch torchvision"), weights=None, num_classes=classes
    )
