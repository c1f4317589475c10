"""Networks with fresh weights by name; nothing is downloaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from recal.errors import UsageError, did_you_mean, pick

if TYPE_CHECKING:
    from torch import nn


FORMS = (
    "wrn<depth>_<widen>, cifar_resnet<depth>, preactresnet<depth>, resnext29_<groups>x<width>, "
    "allconv, densenet<depth>_<growth>, stem_resnet<depth>, "
    "acl_resnet<depth>, "
    "timm:NAME, torchvision:NAME, robustbench:DATASET/THREAT/NAME, python:FILE.py:CALLABLE"
)
# the only origins that a name found in a file may have
HARMLESS_ORIGINS = ("", "recal", "timm", "torchvision")


def create_network(
    name: str,
    classes: int,
    *,
    channels: int = 3,
    trusted: bool = False,
    names: Iterable[str] = (),
) -> nn.Module:
    """Build a network with randomly initialised weights.

    Args:
        name: `recal:NAME` or `NAME` for recal's own networks, `timm:NAME`, `torchvision:NAME`,
            `robustbench:DATASET/THREAT/NAME`, `python:FILE.py:CALLABLE` or
            `python:MODULE:CALLABLE`.
        classes: Number of classes, K.
        channels: Number of channels of the images. Your own callable is given it if it has a
            parameter `in_chans`, `in_channels` or `input_channels`.
        trusted: Whether the user gave the name. A name found in a checkpoint, variant or ONNX file
            cannot select `python:` or `robustbench:`, which import other people's code.
        names: Names of the tensors that the network is to load. They select the spelling where
            published code has several.

    Raises:
        UsageError: The name is unknown, or is not allowed.
    """
    origin, target = split_name(name)
    if not trusted and origin not in HARMLESS_ORIGINS:
        raise UsageError(
            f"architecture '{name}' was found in a file, and such a name may not run code. If you "
            f"trust it, give it yourself: --arch {name}"
        )
    if origin == "python":
        return _python(target, classes, channels)
    network = ORIGINS[origin](target, classes)
    if ORIGINS[origin] is _own and respelt(names):
        _cifar().respell(network)
    found = first_convolution(network) if channels != 3 else None
    if found is not None:
        _take_channels(found[1], channels)
    return network


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return the first convolution of a network, in order of definition, and its path."""
    from torch import nn

    modules = network.named_modules()
    return next((pair for pair in modules if isinstance(pair[1], nn.Conv2d)), None)


def _take_channels(convolution: nn.Conv2d, channels: int) -> None:
    """Let a convolution without groups take images of another number of channels, in place."""
    from torch import nn

    shape = (convolution.out_channels, channels, *convolution.kernel_size)
    convolution.in_channels = channels
    convolution.weight = nn.Parameter(convolution.weight.new_empty(shape))
    convolution.reset_parameters()


def respelt(names: Iterable[str]) -> tuple[str, ...]:
    """Return the first tensor's name that is spelt as in AugMix's code, or nothing."""
    return tuple(name for name in names if ".conv_shortcut." in name)[:1]


def split_name(name: str) -> tuple[str, str]:
    """Return the origin of an architecture's name, and the name without it."""
    origin, colon, target = name.partition(":")
    origin, target = (origin, target) if colon else ("", name)
    if origin not in ORIGINS:
        hint = did_you_mean(origin, [key for key in ORIGINS if key])
        raise UsageError(f"--arch: expected {FORMS}, got '{name}'.{hint}")
    return origin, target


def is_known(name: str) -> bool:
    """Return whether a network of a harmless origin exists, without building it."""
    origin, target = name.partition(":")[::2] if ":" in name else ("", name)
    if origin in ("", "recal"):
        return any(re.fullmatch(pattern, target) for pattern in OWN)
    if origin == "timm":
        import timm

        return re.fullmatch(r"[\w.]+", target) is not None and timm.is_model(target)
    if origin == "torchvision":
        from torchvision import models

        return target in models.list_models(module=models)
    return False


def _own(name: str, classes: int) -> nn.Module:
    for pattern, maker in OWN.items():
        match = re.fullmatch(pattern, name)
        if match is not None:
            return maker(*map(int, match.groups()), classes)
    raise UsageError(f"--arch: expected {FORMS}, got '{name}'.")


def _cifar() -> Any:
    from recal.networks import cifar

    return cifar


def _published() -> Any:
    from recal.networks import published

    return published


def _timm(name: str, classes: int) -> nn.Module:
    import timm

    # timm also accepts hf-hub: and local-dir: names, which download or load other files
    if not re.fullmatch(r"[\w.]+", name) or not timm.is_model(name):
        near = did_you_mean(name, timm.list_models())
        raise UsageError(f"--arch: timm has no model '{name}'.{near}")
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    except (TypeError, RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(f"--arch: timm cannot build '{name}' ({error}).") from error
    return network


def _torchvision(name: str, classes: int) -> nn.Module:
    from torchvision import models

    pick(name, models.list_models(module=models), "--arch torchvision")
    # networks with auxiliary classifiers would take half a minute to initialise
    arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = models.get_model(name, weights=None, num_classes=classes, **arguments)
    return network


def _robustbench(name: str, _: int) -> nn.Module:
    from recal.networks.external import zoo_network

    return zoo_network(name)


def _python(target: str, classes: int, channels: int = 3) -> nn.Module:
    from recal.networks.external import user_network

    return user_network(target, classes, channels)


# functions that build a network, by pattern of the name; called with the numbers in the name
# and the number of classes
OWN: dict[str, Callable[..., nn.Module]] = {
    r"wrn(\d{2,3})_(\d{1,2})": lambda *numbers: _cifar().WideResNet(*numbers),
    r"cifar_resnet(\d{2,4})": lambda *numbers: _cifar().cifar_resnet(*numbers),
    r"preactresnet(\d{2,3})": lambda *numbers: _cifar().preact_resnet(*numbers, final_bn=False),
    r"preactresnet(\d{2,3})_bn": lambda *numbers: _cifar().preact_resnet(*numbers, final_bn=True),
    r"resnext29_(\d{1,2})x(\d{1,3})": lambda *numbers: _cifar().ResNeXt29(*numbers),
    r"allconv": lambda *numbers: _published().AllConv(*numbers),
    r"densenet(\d{1,3})_(\d{1,2})": lambda *numbers: _published().DenseNet(*numbers),
    r"stem_resnet(\d{2,3})": lambda *numbers: _published().stem_resnet(*numbers),
    r"stem_resnet(\d{2,3})_pool": lambda *numbers: _published().stem_resnet(*numbers, pool=True),
    r"acl_resnet(\d{2,3})": lambda *numbers: _published().acl_resnet(*numbers),
}
ORIGINS: dict[str, Callable[[str, int], nn.Module]] = {
    "": _own,
    "recal": _own,
    "timm": _timm,
    "torchvision": _torchvision,
    "robustbench": _robustbench,
    "python": _python,
}
