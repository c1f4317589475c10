"""Replacing every kind of BatchNorm in a network by a plain one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from recal.checkpoint.layouts import Layout, Site, find_sites, marked
from recal.errors import InputError
from recal.networks.wrappers import strip_front

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


# attribute with the plain path of a layer, if its path in the network is another
PLAIN_PATH = "recal_plain_path"


class PlainBatchNorm(_BatchNorm):
    """BatchNorm over channels for inputs (N, C) or (N, C, ...).

    Further arguments, with which the replaced layer chose a branch, are ignored. What that layer
    did after normalising (`drop`, `act`) is kept.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected an input of 2 dimensions or more, got {input.ndim}")

    def forward(self, input: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Normalise, scale and shift each channel."""
        x = super().forward(input)
        for name in ("drop", "act"):
            if name in self._modules:
                x = self.get_submodule(name)(x)
        return x


class InstanceBatchNorm(nn.Module):
    """Instance norm on the first channels, BatchNorm on the rest.

    Source: Pan et al., "Two at Once", arXiv 1807.09441; AugMax's DuBIN is this with a dual BN.
    """

    def __init__(self, instance: int, batch: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.IN = nn.InstanceNorm2d(instance, affine=True, eps=eps)
        self.BN = nn.BatchNorm2d(batch, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape."""
        first, rest = torch.split(x, [self.IN.num_features, self.BN.num_features], dim=1)
        return torch.cat([self.IN(first.contiguous()), self.BN(rest.contiguous())], dim=1)


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers with running statistics by path, in order of definition.

    In a network that `build` returned, the paths are the plain ones of the checkpoint.

    Raises:
        InputError: There are no such layers.
    """
    layers = {
        getattr(layer, PLAIN_PATH, name): layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }
    if not layers:
        raise InputError(
            f"{type(module).__name__}: expected a network with BatchNorm layers that keep running "
            "statistics, got none."
        )
    return layers


FROZEN = ("weight", "bias", "running_mean", "running_var")


def make_plain(
    network: nn.Module, layout: Layout, weights: Mapping[str, torch.Tensor]
) -> dict[str, str]:
    """Replace every BatchNorm of a network by a plain one, in place.

    Frozen and synchronised BatchNorm become plain. If the network has the branches of `layout`, one
    plain BatchNorm replaces all branches of a layer, so that the code uses it whichever branch it
    chooses. A normalisation layer in front is set to mean 0 and standard deviation 1, because recal
    normalises in its place.

    Args:
        network: The network, which is changed.
        layout: How network and checkpoint name the tensors of branches.
        weights: The shared weights of the checkpoint, which show where instance norm is used beside
            BatchNorm.

    Returns:
        The plain name of each tensor of the network, by its key in the network's state_dict,
        without tensors of a normalisation layer in front.

    Raises:
        InputError: A BatchNorm of the network's own class does more than normalise.
    """
    front = strip_front(network.state_dict())
    prefix = front.prefix
    _neutralise(network, front.normaliser)
    for path, module in list(network.named_modules()):
        if path and (isinstance(module, SyncBatchNorm) or _is_frozen(module)):
            _put(network, path, _plain_like(module))
    for layer, site in marked(find_sites(front.tensors, layout)).items():
        _merge(network, prefix, layer, site, layout)
    for key in weights:
        if key.endswith(".IN.weight"):
            _add_instance_norm(network, prefix + key.removesuffix(".IN.weight"), weights[key])
    _name_layers(network, prefix)
    return _plain_names(network, prefix, front.normaliser)


def _neutralise(network: nn.Module, normaliser: Iterable[str]) -> None:
    for key in normaliser:
        parent, _, leaf = key.rpartition(".")
        with torch.no_grad():
            getattr(network.get_submodule(parent), leaf).fill_(
                float(leaf.endswith(("std", "sigma")))
            )


def _is_frozen(module: nn.Module) -> bool:
    """Return whether a module is a frozen BatchNorm, of which libraries have their own classes."""
    own = dict(module.named_buffers(recurse=False)) | dict(module.named_parameters(recurse=False))
    return (
        not isinstance(module, (_BatchNorm, _InstanceNorm))
        and set(FROZEN) <= own.keys()
        and len({tuple(own[leaf].shape) for leaf in FROZEN}) == 1
    )


def _plain_like(model: nn.Module) -> PlainBatchNorm:
    """Return a plain BatchNorm with the tensors, epsilon, dropout and activation of a layer."""
    statistics = model.get_buffer("running_mean")
    momentum = getattr(model, "momentum", 0.1)
    layer = PlainBatchNorm(statistics.numel(), float(getattr(model, "eps", 1e-5)), momentum)
    state = {k: v for k, v in model.state_dict().items() if k in layer.state_dict()}
    layer.load_state_dict(state, strict=False)
    for name in ("drop", "act"):
        if name in model._modules:
            layer.add_module(name, model.get_submodule(name))
    return layer


def _merge(network: nn.Module, prefix: str, layer: str, site: Site, layout: Layout) -> None:
    paths = [prefix + branch.removesuffix(".") for branch in site.values()]
    holder = _submodule(network, prefix + layer)
    found = {path: module for path in paths if (module := _submodule(network, path)) is not None}
    inside = all(path.startswith(prefix + layer + ".") for path in found if path != prefix + layer)
    holds = isinstance(holder, _BatchNorm) and inside
    if holder is not None and (holds or layout.affine != "own"):
        # its own code splits batches or applies an affine of its own, so it has to be replaced
        model = holder if isinstance(holder, _BatchNorm) else _first(found, prefix + layer)
        plain = _plain_like(model)
        if layout.affine == "shared":
            plain.load_state_dict(
                {k: v for k, v in holder.state_dict().items() if k in ("weight", "bias")},
                strict=False,
            )
        if layout.affine != "sandwich":
            _check_equal(holder, plain, prefix + layer)
        _put(network, prefix + layer, plain)
        return
    plain = _plain_like(_first(found, prefix + layer))
    setattr(plain, PLAIN_PATH, layer)
    for path in found:
        _put(network, path, plain)


def _first(found: Mapping[str, nn.Module], where: str) -> nn.Module:
    for module in found.values():
        return module
    raise InputError(
        f"{where}: expected BatchNorm modules for its branches, got none that can be made one. "
        "Give a network with plain BatchNorm as --arch."
    )


@torch.no_grad()
def _check_equal(old: nn.Module, new: nn.Module, where: str) -> None:
    """Refuse to replace a layer that computes something else than a plain BatchNorm."""
    channels = new.get_buffer("running_mean").numel()
    for shape in ((4, channels, 3, 3), (4, channels, 2, 3, 3), (4, channels)):
        x = torch.linspace(-2, 2, 4 * channels * torch.Size(shape[2:]).numel()).reshape(shape)
        try:
            expected = old.eval()(x)
        except (ValueError, RuntimeError, TypeError, IndexError):
            continue  # the layer takes another number of dimensions, or a branch as an argument
        if not torch.allclose(new.eval()(x), expected, atol=1e-5):
            raise InputError(
                f"{where}: expected {type(old).__name__} to normalise and nothing else, got "
                "another result from a plain BatchNorm. Give a network with plain BatchNorm as "
                "--arch."
            )
        return


def _add_instance_norm(network: nn.Module, path: str, weight: torch.Tensor) -> None:
    """Add instance norm to a BatchNorm that has the channels of both."""
    module = _submodule(network, path)
    if isinstance(module, _BatchNorm) and module.num_features > weight.numel():
        rest = module.num_features - weight.numel()
        _put(network, path, InstanceBatchNorm(weight.numel(), rest, module.eps))


def _name_layers(network: nn.Module, prefix: str) -> None:
    for path, module in network.named_modules():
        if isinstance(module, _BatchNorm) and prefix and not hasattr(module, PLAIN_PATH):
            setattr(module, PLAIN_PATH, path.removeprefix(prefix))


def _plain_names(
    network: nn.Module, prefix: str, normaliser: Mapping[str, torch.Tensor]
) -> dict[str, str]:
    names = {key: key.removeprefix(prefix) for key in network.state_dict() if key not in normaliser}
    for path, module in network.named_modules(remove_duplicate=False):
        plain = getattr(module, PLAIN_PATH, None)
        if plain is not None:
            names |= {f"{path}.{leaf}": f"{plain}.{leaf}" for leaf in module.state_dict()}
    return names


def _submodule(network: nn.Module, path: str) -> nn.Module | None:
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    network.get_submodule(parent)._modules[name] = module
