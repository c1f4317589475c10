"""Making an ordinary network, with plain BatchNorm, out of a checkpoint and a variant."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from recal.errors import InputError
from recal.networks.names import HARMLESS_ORIGINS, create_network, split_name
from recal.networks.plain import batch_norms, make_plain
from recal.networks.wrappers import strip_front
from recal.variant.variant import Variant, branch_variant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from recal.checkpoint.checkpoint import Checkpoint
    from recal.networks.spec import ModelSpec


SHOWN = 10
CLOSE = 1e-3
COUNTER = ".num_batches_tracked"


def build(checkpoint: Checkpoint, variant: Variant | str = "main", **asked: Any) -> nn.Module:
    """Build the network that a variant makes of a checkpoint's weights.

    Args:
        checkpoint: Lends the weights; not changed.
        variant: A variant, or the name of a branch.
        **asked: With a branch: what the file does not say of the network, out of the fields of
            `ModelSpec` (arch, classes, family, mean, std, size). With a variant: `arch`, where the
            variant names code of one's own (`python:`), which a file's word alone never runs.

    Returns:
        A new module in eval mode, float32, on the CPU, with one plain BatchNorm a layer. It expects
        images that are already normalised, even where the network normalises them itself: that
        layer is set to do nothing.

    Raises:
        InputError: The variant belongs to other weights, or weights and architecture do not fit.
        UsageError: There is no such branch or architecture.
    """
    if isinstance(variant, str):
        variant = branch_variant(checkpoint, variant, checkpoint.spec(**asked))
    elif asked.get("arch"):
        variant = replace(variant, spec=replace(variant.spec, arch=asked["arch"], trusted=True))
    if variant.weights_sha256 != checkpoint.weights_sha256:
        raise InputError(
            f"{checkpoint.path}: expected the weights that the variant was made for "
            f"({variant.weights_sha256[:12]}), got others ({checkpoint.weights_sha256[:12]})."
        )
    forged = sorted(variant.tensors.keys() & checkpoint.weights.keys())
    if forged:
        raise InputError(
            f"{checkpoint.path}: expected a variant of BatchNorm tensors alone, got one that also "
            f"replaces {_first(forged)}."
        )
    spec = variant.spec
    given = {**checkpoint.weights, **variant.tensors}
    where = f"{checkpoint.path} as {spec.arch}"
    if split_name(spec.arch)[0] in HARMLESS_ORIGINS:
        _check_without_memory(checkpoint, spec, given, where)
    network = create_network(spec.arch, spec.classes, trusted=spec.trusted).cpu()
    if "mean" not in checkpoint.facts:
        _check_normalisation(network, spec, where)
    names = make_plain(network, checkpoint.layout, checkpoint.weights)
    expected = network.state_dict()
    _check_fit(given, expected, names, where)
    # counters are absent from old files and from variants, and without effect in eval mode
    state = {key: given.get(names[key], own) if key in names else own
             for key, own in expected.items()}  # fmt: skip
    network.load_state_dict(state, strict=True)
    batch_norms(network)
    return network.float().requires_grad_(False).eval()


def _check_normalisation(network: nn.Module, spec: ModelSpec, where: str) -> None:
    """Refuse to take over a normalisation that is another than the one to be applied instead."""
    for key, own in strip_front(network.state_dict()).facts.items():
        told = spec.mean if key == "mean" else spec.std
        if any(abs(a - b) > CLOSE for a, b in zip(own, told, strict=True)):
            numbers = ",".join(f"{value:.4g}" for value in own)
            raise InputError(
                f"{where}: expected the network's own {key}, because recal normalises in its "
                f"place, got {told}. Say --{key} {numbers}."
            )


def _check_without_memory(
    checkpoint: Checkpoint, spec: ModelSpec, given: Mapping[str, torch.Tensor], where: str
) -> None:
    """Refuse what does not fit before it is made: a file could name a network of any size."""
    try:
        with torch.device("meta"):
            network = create_network(spec.arch, spec.classes, trusted=spec.trusted)
        names = make_plain(network, checkpoint.layout, checkpoint.weights)
    except (NotImplementedError, RuntimeError):
        return  # some networks compute while they are made, which needs memory
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
        raise InputError(
            f"{where}: weights and architecture do not fit: missing {_first(missing)}; "
            f"unexpected {_first(unexpected)}. Give the right one with --arch."
        )
    for key, name in names.items():
        if not name.endswith(COUNTER) and expected[key].shape != given[name].shape:
            raise InputError(
                f"{where}: {name}: expected shape {tuple(expected[key].shape)}, "
                f"got {tuple(given[name].shape)}. Give the right --arch or --classes."
            )


def _first(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{', '.join(keys[:SHOWN]) or 'none'}{more}"
