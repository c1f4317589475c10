"""Building an ordinary network, with plain BatchNorm, from a checkpoint and a variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from recal.errors import InputError, listed
from recal.networks.names import HARMLESS_ORIGINS, create_network, split_name
from recal.networks.spec import ModelOverrides
from recal.networks.wrappers import strip_front
from recal.variant.comparison import compare_networks, load_own
from recal.variant.plain import make_plain
from recal.variant.variant import Variant, branch_variant, check_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from recal.checkpoint.checkpoint import Checkpoint
    from recal.networks.spec import ModelSpec


SHOWN = 10
CLOSE = 1e-3
RECALS_OWN = ("", "recal")
COUNTER = ".num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class Built:
    """A network that `build` made, beside the one that the user's code makes.

    Attributes:
        network: The network with plain BatchNorm.
        own: The network as its architecture's own code makes it, with the variant's tensors, for
            normalised images; `network` itself if nothing in it was replaced, if the class has no
            place for the tensors, or if it cannot be run on images alone.
    """

    network: nn.Module
    own: nn.Module


def build(checkpoint: Checkpoint, variant: Variant | str = "main") -> nn.Module:
    """Build the network that a variant makes of a checkpoint's weights.

    Where plain BatchNorm replaces layers of another class, the outputs for random images are
    compared with those of the network that the architecture's own code makes.

    Args:
        checkpoint: The checkpoint with the weights, which is not changed.
        variant: A variant, or the name of a branch. An architecture that was given to
            `load_checkpoint` overrides the variant's; only so can it be the user's own code
            (`python:`), which a name in a file never runs.

    Returns:
        A new module in eval mode, float32, on the CPU, with one plain BatchNorm per layer. It
        expects images that are already normalised, even if the network normalises them itself:
        that layer is set to do nothing.

    Raises:
        InputError: The variant belongs to other weights, weights and architecture do not fit, or
            the network with plain BatchNorm does not compute what the architecture's own does.
        UsageError: There is no such branch or architecture.
    """
    return build_with_own(checkpoint, variant).network


def build_with_own(checkpoint: Checkpoint, variant: Variant | str = "main") -> Built:
    """Build as `build` does, and return the network of the architecture's own code beside it."""
    if isinstance(variant, str):
        variant = branch_variant(checkpoint, variant)
    check_weights(checkpoint, variant)
    arch = checkpoint.overrides.arch
    spec = variant.spec.overridden(ModelOverrides(arch=arch)) if arch else variant.spec
    tensors = variant.torch_tensors()
    forged = sorted(tensors.keys() & checkpoint.weights.keys())
    if forged:
        raise InputError(
            f"{checkpoint.path}: expected a variant of BatchNorm tensors alone, got one that also "
            f"replaces {listed(forged, SHOWN)}."
        )
    given = {**checkpoint.weights, **tensors}
    where = f"{checkpoint.path} as {spec.arch}"
    if split_name(spec.arch)[0] in HARMLESS_ORIGINS:
        _check_without_memory(checkpoint, spec, given, where)
    network = _create(spec)
    if checkpoint.facts.mean is None:
        _check_normalisation(network, spec, where)
    plain = make_plain(network, checkpoint.layout, checkpoint.weights)
    names = plain.names
    expected = network.state_dict()
    _check_fit(given, expected, names, where)
    # counters are absent from old files and from variants, and without effect in eval mode
    state = {key: given.get(names[key], own) if key in names else own
             for key, own in expected.items()}  # fmt: skip
    network.load_state_dict(state, strict=True)
    network = network.float().requires_grad_(False).eval()
    if not plain.replaced or split_name(spec.arch)[0] in RECALS_OWN:
        return Built(network=network, own=network)
    own_network = load_own(_create(spec), checkpoint.layout, given)
    if own_network is None:
        return Built(network=network, own=network)
    compared = compare_networks(network, own_network, spec.size, plain.replaced, where)
    return Built(network=network, own=own_network if compared else network)


def _create(spec: ModelSpec) -> nn.Module:
    """Create the network with the same random values each time, for what no file stores."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_network(spec.arch, spec.classes, trusted=spec.trusted).cpu()


def _check_normalisation(network: nn.Module, spec: ModelSpec, where: str) -> None:
    """Refuse preprocessing that differs from the network's own normalisation, which it replaces."""
    front = strip_front(network.state_dict())
    for key, own, told in (("mean", front.mean, spec.mean), ("std", front.std, spec.std)):
        if own is not None and any(abs(a - b) > CLOSE for a, b in zip(own, told, strict=True)):
            numbers = ",".join(f"{value:.4g}" for value in own)
            raise InputError(
                f"{where}: expected the network's own {key}, because recal normalises in its "
                f"place, got {told}. Say --{key} {numbers}."
            )


def _check_without_memory(
    checkpoint: Checkpoint, spec: ModelSpec, given: Mapping[str, torch.Tensor], where: str
) -> None:
    """Refuse an architecture that does not fit before it takes memory, which may be any amount."""
    try:
        with torch.device("meta"):
            network = create_network(spec.arch, spec.classes, trusted=spec.trusted)
        names = make_plain(network, checkpoint.layout, checkpoint.weights).names
    except (NotImplementedError, RuntimeError):
        return  # some networks compute while they are built, which needs memory
    _check_fit(given, network.state_dict(), names, where)


def _check_fit(
    given: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    names: Mapping[str, str],
    where: str,
) -> None:
    known = set(names.values())
    missing = sorted(name for name in known - given.keys() if not name.endswith(COUNTER))
    unexpected = sorted(name for name in given.keys() - known if not name.endswith(COUNTER))
    if missing or unexpected:
        lists = (listed(keys, SHOWN) or "none" for keys in (missing, unexpected))
        raise InputError(
            f"{where}: weights and architecture do not fit: missing {next(lists)}; unexpected "
            f"{next(lists)}. Give the right one with --arch."
        )
    for key, name in names.items():
        if not name.endswith(COUNTER) and expected[key].shape != given[name].shape:
            raise InputError(
                f"{where}: {name}: expected shape {tuple(expected[key].shape)}, "
                f"got {tuple(given[name].shape)}. Give the right --arch or --classes."
            )
