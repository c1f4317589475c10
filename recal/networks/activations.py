"""Activations inside of BatchNorm layers, which training code may have dropped.

The layers of timm's `BatchNormAct2d` apply their network's activation after normalising. Code that
replaces them by a BatchNorm of several branches drops it, if that has none: `convert_splitbn_model`
of timm before 1.0.31, and ports of it. What was trained then is a network without it.
"""

import re
from collections.abc import Collection, Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from recal.errors import RecalError
from recal.networks.names import create_network, split_name
from recal.networks.spec import ModelSpec
from recal.networks.wrappers import strip_front

# origins of networks that may have such layers; recal's own and torchvision's have none
ORIGINS = ("timm", "python", "robustbench")
# a convolution of timm's EfficientNets and MobileNets, all of which have such layers
TIMM_CONVOLUTION = re.compile(r"blocks\.\d+\.\d+\.conv_(dw|pw)\.weight")


def activated_norms(network: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers of a network that apply an activation, by plain path."""
    prefix = strip_front(network.state_dict()).prefix
    return {
        path.removeprefix(prefix): layer
        for path, layer in network.named_modules()
        if isinstance(layer, _BatchNorm)
        and not isinstance(layer._modules.get("act", nn.Identity()), nn.Identity)
    }


def drop_activations(
    network: nn.Module, layers: Collection[str], names: Collection[str] = ()
) -> None:
    """Replace activation and dropout inside of BatchNorm layers by the identity, in place.

    Code that dropped activations with parameters of their own, such as PReLU, may have stored
    these: parameters among `names` are kept, without effect.

    Args:
        network: The network.
        layers: Plain paths of the layers concerned; others are left as they are.
        names: Plain names of a file's tensors.
    """
    for path, layer in activated_norms(network).items():
        if path in layers:
            for name in {"act", "drop"} & layer._modules.keys():
                nothing = nn.Identity()
                for leaf, parameter in layer.get_submodule(name).named_parameters(recurse=False):
                    if f"{path}.{name}.{leaf}" in names:
                        nothing.register_parameter(leaf, parameter)
                setattr(layer, name, nothing)


def layers_with_activation(spec: ModelSpec) -> list[str]:
    """Return the plain paths of an architecture's BatchNorm layers that apply an activation.

    The network is built on the meta device where that is possible. The result is empty if the
    network cannot be built.
    """
    if split_name(spec.arch)[0] not in ORIGINS:
        return []
    for device in ("meta", "cpu"):
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device):
                network = create_network(spec.arch, spec.classes, trusted=spec.trusted)
            return list(activated_norms(network))
        except (NotImplementedError, RuntimeError):
            continue  # some networks compute while they are built
        except RecalError:
            break
    return []


def looks_like_timms(names: Iterable[str]) -> bool:
    """Tell whether tensors are named as those of timm's EfficientNets and MobileNets."""
    return any(TIMM_CONVOLUTION.fullmatch(name) for name in names)
