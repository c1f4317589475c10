"""Showing, on random values, that what recal builds computes what the user's own code computes."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from recal.checkpoint.layouts import LEAVES, Layout, find_sites
from recal.errors import InputError, listed
from recal.networks.calling import parts_of
from recal.networks.quantised import resized_buffers, stop_observing
from recal.networks.wrappers import strip_front

# sizes behind the channels for which layers are written: images, vectors, volumes, sequences
PLACES = ((3, 3), (), (2, 3, 3), (5,))
# relative difference between two float64 formulas of one value, and between two networks
CLOSE, NETWORKS_CLOSE, FLOAT32_CLOSE = 1e-9, 1e-6, 1e-3
# of channels' variances: ordinary ones, and some so small that an epsilon decides
ORDINARY, TINY = (-0.5, 0.5), (-14.0, -4.0)


def computes_the_same(old: nn.Module, new: nn.Module, channels: int) -> bool | None:
    """Tell whether two norm layers give the same outputs for random inputs and parameters.

    All branches that a layer holds get the same parameters, so that it makes no difference which
    of them the layer uses. Weights are of either sign; variances are ordinary, then tiny.

    Returns:
        None if the first layer cannot be run on a tensor alone.
    """
    layers = [copy.deepcopy(layer).cpu().double().eval() for layer in (old, new)]
    for places in PLACES:
        x = 2 * _noise(1, 4, channels, *places)
        answers: set[bool | None] = set()
        for exponents in (ORDINARY, TINY):
            values = _parameters(channels, exponents)
            expected, found = (_output(_filled(layer, values), x) for layer in layers)
            if expected is None:
                answers.add(None)
            else:
                answers.add(found is not None and _close(found, expected, CLOSE))
        if False in answers:
            return False
        if None not in answers:
            return True
    return None


def normalises(layer: nn.Module) -> bool:
    """Tell whether a layer in eval mode normalises each channel by its running statistics.

    Then its output is the same if inputs, means and variances are all scaled and shifted alike, and
    another if the statistics alone are. The variances are so large that no epsilon matters.
    """
    channels = layer.get_buffer("running_mean").numel()
    layer = copy.deepcopy(layer).cpu().double().eval()
    values = _parameters(channels, (8.0, 10.0))
    mean, deviation = values["running_mean"], values["running_var"].sqrt()
    scale, shift = (torch.rand(2, channels, generator=_seeded(2), dtype=torch.float64) + 0.5) * 2
    moved = {"running_mean": mean * scale + shift, "running_var": (deviation * scale) ** 2}
    for places in PLACES:
        shape = (-1, *(1 for _ in places))
        x = _noise(1, 4, channels, *places) * deviation.view(shape) + mean.view(shape)
        first = _output(_filled(layer, values), x)
        _filled(layer, values | moved)
        second, third = (
            _output(layer, images) for images in (x * scale.view(shape) + shift.view(shape), x)
        )
        if first is not None and second is not None and third is not None:
            same = first.shape == x.shape and _close(second, first, NETWORKS_CLOSE)
            return same and not _close(third, first, NETWORKS_CLOSE)
    return False


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=_seeded(seed), dtype=torch.float64)


def _parameters(channels: int, exponents: tuple[float, float]) -> dict[str, torch.Tensor]:
    low, high = exponents
    spread = torch.rand(channels, generator=_seeded(3), dtype=torch.float64)
    values = (*_noise(0, 3, channels), 10 ** (low + (high - low) * spread))
    return dict(zip(LEAVES, values, strict=False))


def _filled(layer: nn.Module, values: Mapping[str, torch.Tensor]) -> nn.Module:
    """Set the tensors of a layer, and of all branches that it holds, in place."""
    for key, tensor in layer.state_dict().items():
        for leaf, value in values.items():
            if key.endswith(leaf) and tensor.ndim == 1 and tensor.numel() % value.numel() == 0:
                tensor.copy_(value.repeat(tensor.numel() // value.numel()))
    return layer


@torch.no_grad()
def _output(module: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """Return what a module makes of a tensor alone, or None if it does not run."""
    try:
        tensors = list(_tensors(module(x.clone())))
        return tensors[0] if len(tensors) == 1 else torch.cat([t.flatten() for t in tensors])
    except Exception:  # noqa: BLE001  (the user's code can raise anything)
        return None


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    else:
        for _, part in parts_of(output).values():
            yield from _tensors(part)


def _close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """Compare to a tolerance relative to the largest value, of each channel where there are some.

    NaN and infinity have to be in the same places.
    """
    if found.shape != expected.shape:
        return False
    over = [dim for dim in range(expected.ndim) if dim != 1 or expected.ndim == 1]
    finite = expected.isfinite()
    size = torch.where(finite, expected, 0.0).abs().amax(over, keepdim=True)
    same = (found - expected).abs() <= tolerance * size
    return bool(torch.where(finite, same, found.isnan() == expected.isnan()).all())


class OwnNetwork(nn.Module):
    """The network of the user's code, which normalises inside, on images normalised already."""

    def __init__(self, network: nn.Module, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: torch.Tensor) -> Any:
        """Undo the normalisation of images (N, C, H, W), and run the network on them."""
        return self.network(images * self.get_buffer("std") + self.get_buffer("mean"))


def load_own(
    network: nn.Module, layout: Layout, given: Mapping[str, torch.Tensor]
) -> nn.Module | None:
    """Load a variant's tensors into the network of the user's code, in place.

    All branches of a layer get the tensors of the variant, so that it makes no difference which of
    them the class uses on images alone.

    Args:
        network: The network as the user's code makes it.
        layout: How network and checkpoint spell several branches.
        given: The checkpoint's shared weights and the variant's tensors, by plain name.

    Returns:
        The network in eval mode, for normalised images; None if its tensors are not those given.
    """
    own = network.state_dict()
    front = strip_front(own)
    names = {
        prefix + leaf: f"{layer}.{leaf}"
        for layer, site in find_sites(front.tensors, layout).items()
        for prefix in site.values()
        for leaf in LEAVES
    }
    used: set[str] = set()
    resized = resized_buffers(network)
    for key, tensor in own.items():
        plain = key.removeprefix(front.prefix)
        name = names.get(plain, plain)
        if key in front.normaliser or name.endswith("num_batches_tracked"):
            continue
        value = given.get(name)
        if layout.affine == "sandwich" and plain.endswith(".embed.weight"):
            # the shared affine, in the last row, does nothing
            layer = plain.removesuffix(".embed.weight")
            affine = torch.cat([given[f"{layer}.weight"], given[f"{layer}.bias"]])
            value = affine.repeat(len(tensor), 1)
            value[-1] = (torch.arange(len(affine)) < len(affine) // 2).to(affine)
            used |= {f"{layer}.weight", f"{layer}.bias"}
        if value is None:
            return None
        used.add(name)
        if key in resized:
            own[key] = value
            continue
        if not value.numel() or tensor.numel() % value.numel():
            return None
        if value.shape != tensor.shape:
            value = value.repeat(tensor.numel() // value.numel()).view_as(tensor)
        own[key] = value
    if any(name not in used and not name.endswith("num_batches_tracked") for name in given):
        return None
    network.load_state_dict(own, strict=True)
    stop_observing(network)
    network = network.float().requires_grad_(False).eval()
    if not front.normaliser:
        return network
    mean, std = (tensor.float().reshape(1, -1, 1, 1) for tensor in front.normaliser.values())
    return OwnNetwork(network, mean, std).eval()


def compare_networks(
    built: nn.Module,
    own: nn.Module,
    shape: tuple[int, int, int],
    replaced: Iterable[str],
    where: str,
) -> bool:
    """Compare a network that recal rebuilt with what `load_own` returned, on random images.

    Args:
        built: The network with plain BatchNorm, in eval mode.
        own: The network of the user's code.
        shape: Shape of an image, (C, H, W).
        replaced: Paths of the layers that were replaced, for the message.
        where: Checkpoint and architecture, for the message.

    Returns:
        Whether the user's network runs on images alone, so that they could be compared.

    Raises:
        InputError: The outputs differ by more than rounding.
    """
    images = torch.randn(2, *shape, generator=_seeded(0))
    for kind, tolerance in ((torch.float64, NETWORKS_CLOSE), (torch.float32, FLOAT32_CLOSE)):
        expected, found = (
            _output(copy.deepcopy(network).to(kind), images.to(kind)) for network in (own, built)
        )
        if expected is None or found is None:
            continue  # some code makes float32 tensors, which do not go with float64
        if not _close(found.flatten(), expected.flatten(), tolerance):
            gap = float((found - expected).abs().max()) if found.shape == expected.shape else None
            raise InputError(
                f"{where}: expected the network with plain BatchNorm at {listed(replaced)} to "
                "compute what the network of this architecture's own code does, got "
                f"{'another shape' if gap is None else f'a difference of {gap:.2g}'}. Give a "
                "network with plain BatchNorm as --arch."
            )
        return True
    return False
