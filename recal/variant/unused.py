"""BatchNorm layers that a variant lacks because the network's forward pass never uses them.

ONNX files leave such layers out, so variants that were calibrated in an ONNX file have none of
their tensors.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from recal.checkpoint.checkpoint import Checkpoint
from recal.errors import InputError, RecalWarning, listed
from recal.networks.calling import call_on_images
from recal.variant.plain import statistics_owners
from recal.variant.variant import AFFINE, STATISTICS, Variant


def complete(checkpoint: Checkpoint, variant: Variant) -> tuple[Variant, tuple[str, ...]]:
    """Add the checkpoint's tensors of the layers that a variant lacks.

    They are those of the branch that the variant's affine is of, or of `main` for several.

    Returns:
        The variant with all layers of the checkpoint, and the layers that it lacked.
    """
    absent = tuple(layer for layer in checkpoint.layers if layer not in variant.layers)
    if not absent:
        return variant, ()
    name = variant.affine if variant.affine in checkpoint.branches else "main"
    stored = {
        key: tensor.float().cpu().numpy()
        for key, tensor in checkpoint.branch(name).items()
        if key.rpartition(".")[0] in absent and key.endswith((*AFFINE, *STATISTICS))
    }
    return replace(variant, tensors={**variant.tensors, **stored}), absent


def check_unused(
    network: nn.Module, layers: Sequence[str], shape: tuple[int, int, int], where: str
) -> None:
    """Warn that layers are the checkpoint's, or refuse them if the forward pass uses one.

    Args:
        network: The network, in eval mode, on the CPU.
        layers: Plain paths of the layers that the variant lacked.
        shape: Shape of an image, (C, H, W).
        where: Checkpoint and architecture, for messages.

    Raises:
        InputError: The forward pass uses one, or does not run on images alone.
    """
    owners = statistics_owners(network)
    used: list[str] = []
    hooks = [
        owners[layer].register_forward_pre_hook(
            lambda *_, layer=layer: used.append(layer), with_kwargs=True
        )
        for layer in layers
    ]
    try:
        call_on_images(network, shape, where)
    finally:
        for hook in hooks:
            hook.remove()
    if used:
        raise InputError(
            f"{where}: expected a variant of all BatchNorm layers that the network uses, got one "
            f"without {listed(dict.fromkeys(used))}. Calibrate the checkpoint itself."
        )
    warnings.warn(
        f"{where}: the variant has no tensors of {listed(layers)}, which the network's forward "
        "pass never uses. The checkpoint's are kept.",
        RecalWarning,
        stacklevel=2,
    )
