"""Replacing every kind of BatchNorm in a network by a plain one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from recal.checkpoint.layouts import Layout, Site, find_sites, marked
from recal.errors import InputError
from recal.networks.wrappers import strip_front
from recal.variant.comparison import computes_the_same, normalises
from recal.variant.variant import AFFINE, STATISTICS

ORDINARY = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# names of what timm's layers do after normalising
AFTERWARDS = {"drop", "act"}
# attribute with the plain path of a layer, if its path in the network is another
PLAIN_PATH = "recal_plain_path"
# attribute that is true for a layer whose statistics are not to be estimated
KEEPS = "recal_keeps_statistics"


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return the first tensor among the arguments of a layer, given by position or by name.

    Raises:
        InputError: There is no tensor among them.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return value
    raise InputError("BatchNorm: expected a tensor among the arguments, got none.")


class PlainBatchNorm(_BatchNorm):
    """BatchNorm over channels for inputs (N, C) or (N, C, ...).

    Further arguments, with which the replaced layer chose a branch, are ignored. What that layer
    did after normalising (`drop`, `act`) is kept.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected an input of 2 dimensions or more, got {input.ndim}")

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Normalise, scale and shift each channel of the first tensor that is given."""
        x = super().forward(first_tensor(args, kwargs))
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


def batch_norms(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that normalise by running statistics, by path, in order of definition.

    Layers of other classes, such as frozen and in-place BatchNorm, are shown to normalise by them.
    Layers that are marked with `KEEPS` are left out. In a network that `build` returned, the paths
    are the plain ones of the checkpoint.

    Raises:
        InputError: There are no such layers.
    """
    owners = statistics_owners(module)
    layers = {
        name: layer
        for name, layer in owners.items()
        if not getattr(layer, KEEPS, False)
        and (isinstance(layer, _BatchNorm) or (_is_norm(layer) and normalises(layer)))
    }
    if not layers:
        others = ", and does not normalise by those of its other layers" * bool(owners)
        raise InputError(
            f"{type(module).__name__}: expected a network with BatchNorm layers that keep running "
            f"statistics, got one that has none{others}."
        )
    return layers


def statistics_owners(module: nn.Module) -> dict[str, nn.Module]:
    """Return all modules that keep a running mean and variance, of whichever class, by path."""
    return {
        getattr(layer, PLAIN_PATH, name): layer
        for name, layer in module.named_modules()
        if all(layer._buffers.get(leaf) is not None for leaf in ("running_mean", "running_var"))
    }


@dataclass(frozen=True, kw_only=True)
class PlainNetwork:
    """What `make_plain` did to a network.

    Attributes:
        names: Plain names of the network's tensors by their keys in its state_dict, without those
            of a normalisation layer in front.
        replaced: Paths of the modules that were replaced or set to do nothing.
    """

    names: dict[str, str]
    replaced: tuple[str, ...]


def make_plain(
    network: nn.Module, layout: Layout, weights: Mapping[str, torch.Tensor]
) -> PlainNetwork:
    """Replace every BatchNorm of a network by a plain one, in place.

    Synchronised, frozen and other BatchNorm becomes plain if both are shown to compute the same.
    One plain BatchNorm replaces all branches of a layer, so that the code uses it whichever branch
    it chooses. A normalisation layer in front is set to mean 0 and standard deviation 1, because
    recal normalises in its place.

    Args:
        network: The network, which is changed.
        layout: How network and checkpoint name the tensors of branches.
        weights: Shared weights of the checkpoint, which show where instance norm is used, too.

    Raises:
        InputError: A layer that holds branches, or one of its branches, does more than normalise.
    """
    front = strip_front(network.state_dict())
    prefix = front.prefix
    for key, tensor in front.normaliser.items():  # which shares the network's memory
        tensor.fill_(float(key.endswith(("std", "sigma"))))
    before = dict(network.named_modules())
    for path, module in before.items():
        norm = path and (isinstance(module, SyncBatchNorm) or _is_norm(module))
        if norm and (plain := _plain_like(module)) is not None:
            _put(network, path, plain)
    for layer, site in marked(find_sites(front.tensors, layout)).items():
        _merge(network, prefix, layer, site, layout)
    for key, weight in weights.items():
        path = prefix + key.removesuffix(".IN.weight")
        module = _submodule(network, path) if key.endswith(".IN.weight") else None
        if isinstance(module, _BatchNorm) and module.num_features > weight.numel():
            rest = module.num_features - weight.numel()
            _put(network, path, InstanceBatchNorm(weight.numel(), rest, module.eps))
    after = dict(network.named_modules(remove_duplicate=False))
    names = {
        key: key.removeprefix(prefix) for key in network.state_dict() if key not in front.normaliser
    }
    for path, module in after.items():
        norm = isinstance(module, _BatchNorm) or _is_norm(module)
        if norm and prefix and not hasattr(module, PLAIN_PATH):
            setattr(module, PLAIN_PATH, path.removeprefix(prefix))
        if (plain_path := getattr(module, PLAIN_PATH, None)) is not None:
            names |= {f"{path}.{leaf}": f"{plain_path}.{leaf}" for leaf in module.state_dict()}
    changed = [path for path, module in before.items() if after.get(path) is not module]
    return PlainNetwork(names=names, replaced=(*front.normaliser, *changed))


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module has the tensors of BatchNorm, of which libraries have own classes."""
    own = dict(module.named_buffers(recurse=False)) | dict(module.named_parameters(recurse=False))
    shapes = {tuple(own[leaf].shape) for leaf in (*AFFINE, *STATISTICS) if leaf in own}
    return (
        not isinstance(module, (_BatchNorm, _InstanceNorm))
        and set(STATISTICS) <= own.keys()
        and len(shapes) == 1
        and len(next(iter(shapes))) == 1
    )


def _plain_like(model: nn.Module) -> PlainBatchNorm | None:
    """Return a plain BatchNorm that computes what a model does, or None if no epsilon makes it."""
    statistics = model.get_buffer("running_mean")
    for eps in _epsilons(model):
        layer = _plain_with(model, eps)
        # without memory nothing can be computed: the network is made to learn its tensors alone
        known = statistics.is_meta or type(model) in ORDINARY
        if known or computes_the_same(model, layer, statistics.numel()):
            return layer
    return None


def _epsilons(model: nn.Module) -> list[float]:
    """Return the numbers that may be a norm layer's epsilon, the most likely one first."""
    numbers = [value for value in vars(model).values() if isinstance(value, float)]
    return list(dict.fromkeys([float(getattr(model, "eps", 1e-5)), *numbers, 0.0, 1e-5]))


def _plain_with(model: nn.Module, eps: float, *, affine: bool = False) -> PlainBatchNorm:
    """Return a plain BatchNorm with a model's tensors, and what it does afterwards."""
    layer = PlainBatchNorm(
        model.get_buffer("running_mean").numel(),
        eps,
        getattr(model, "momentum", 0.1),
        affine or getattr(model, "weight", None) is not None,
    )
    state = {k: v for k, v in model.state_dict().items() if k in layer.state_dict()}
    layer.load_state_dict(state, strict=False)
    for name in ("drop", "act"):
        if name in model._modules:
            layer.add_module(name, model.get_submodule(name))
    return layer


def _merge(network: nn.Module, prefix: str, layer: str, site: Site, layout: Layout) -> None:
    where = prefix + layer
    paths = [prefix + branch.removesuffix(".") for branch in site.values()]
    holder = _submodule(network, where)
    found = {path: module for path in paths if (module := _submodule(network, path)) is not None}
    if not found:
        raise InputError(
            f"{where}: expected BatchNorm modules for its branches, got none that can be made one. "
            "Give a network with plain BatchNorm as --arch."
        )
    inside = all(path.startswith(f"{where}.") for path in found if path != where)
    model = found.get(where) if inside else None
    if holder is not None and (model is not None or layout.affine != "own"):
        # its own code splits batches or applies an affine of its own, so it has to be replaced
        model = model or next(iter(found.values()))
        plain = _plain_with(model, _epsilons(model)[0], affine=layout.affine != "own")
        comparable = layout.affine != "sandwich" and not plain.get_buffer("running_mean").is_meta
        if comparable and computes_the_same(holder, plain, plain.num_features) is False:
            for name in AFTERWARDS & plain._modules.keys():
                delattr(plain, name)  # some classes hold these and never use them
            if computes_the_same(holder, plain, plain.num_features) is False:
                raise _does_more(holder, where)
        _put(network, where, plain)
        return
    plains = []
    for path, module in found.items():
        if (like := _plain_like(module)) is None:
            raise _does_more(module, path)
        plains.append(like)
    setattr(plains[0], PLAIN_PATH, layer)
    for path in found:
        _put(network, path, plains[0])


def _does_more(module: nn.Module, where: str) -> InputError:
    return InputError(
        f"{where}: expected {type(module).__name__} to normalise and nothing else, got another "
        "result from a plain BatchNorm. Give a network with plain BatchNorm as --arch."
    )


def _submodule(network: nn.Module, path: str) -> nn.Module | None:
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    network.get_submodule(parent)._modules[name] = module
