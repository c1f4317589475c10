"""Making an ordinary network, with plain BatchNorm, out of a checkpoint and a variant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recal.architectures import create_network
from recal.bn.layers import batch_norms
from recal.bn.variant import Variant, branch_variant
from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from recal.checkpoint.checkpoint import Checkpoint

SHOWN = 10


def build(checkpoint: Checkpoint, variant: Variant | str = "main", **asked: Any) -> nn.Module:
    """Build the network that a variant makes of a checkpoint's weights.

    Args:
        checkpoint: Lends the weights; not changed.
        variant: A variant, or the name of a branch.
        **asked: With a branch: what the file does not say of the network, out of the fields of
            `ModelSpec` (arch, classes, family, mean, std, size).

    Returns:
        A new module in eval mode, float32, on the CPU, with one plain BatchNorm a layer.

    Raises:
        InputError: The variant belongs to other weights, or weights and architecture do not fit.
        UsageError: There is no such branch or architecture.
    """
    if isinstance(variant, str):
        variant = branch_variant(checkpoint, variant, checkpoint.spec(**asked))
    if variant.weights_sha256 != checkpoint.weights_sha256:
        raise InputError(
            f"{checkpoint.path}: expected the weights that the variant was made for "
            f"({variant.weights_sha256[:12]}), got others ({checkpoint.weights_sha256[:12]})."
        )
    network = create_network(variant.spec.arch, variant.spec.classes)
    state = {**checkpoint.weights, **variant.tensors}
    expected = network.state_dict()
    # absent from files before PyTorch 0.4.1 and from variants; without effect in eval mode
    state |= {k: v for k, v in expected.items() if k.endswith(".num_batches_tracked")}
    _check_fit(state, expected, f"{checkpoint.path} as {variant.spec.arch}")
    network.load_state_dict(state, strict=True)
    batch_norms(network)
    return network.requires_grad_(False).eval()


def _check_fit(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], where: str
) -> None:
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise InputError(
            f"{where}: weights and architecture do not fit: missing {_first(missing)}; "
            f"unexpected {_first(unexpected)}. Give the right one with --arch."
        )
    for key, tensor in expected.items():
        if tensor.shape != state[key].shape:
            raise InputError(
                f"{where}: {key}: expected shape {tuple(tensor.shape)}, "
                f"got {tuple(state[key].shape)}. Give the right --arch or --classes."
            )


def _first(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{', '.join(keys[:SHOWN]) or 'none'}{more}"
