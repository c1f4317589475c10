"""Writing a variant of a checkpoint as an ordinary checkpoint."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from recal.checkpoint.checkpoint import Checkpoint
from recal.checkpoint.reading import METADATA_KEY
from recal.errors import UsageError, VerificationError
from recal.files import write_whole
from recal.networks.names import create_network
from recal.networks.spec import ModelSpec
from recal.schema import to_json
from recal.variant.build import build
from recal.variant.variant import Variant, check_weights

FORMATS = (".safetensors", ".pth", ".pt")
CLOSE = 1e-4


def _plain_state(checkpoint: Checkpoint, variant: Variant | str) -> dict[str, torch.Tensor]:
    """Return the state_dict of a variant's plain network; tensors keep their stored types."""
    state = dict(checkpoint.weights)
    state |= {f"{layer}.num_batches_tracked": torch.tensor(0) for layer in checkpoint.layers}
    if isinstance(variant, str):
        state |= checkpoint.branch(variant)
    else:
        check_weights(checkpoint, variant)
        state |= variant.torch_tensors()
    return {key: tensor.clone().contiguous() for key, tensor in state.items()}


def convert(checkpoint: Checkpoint, variant: Variant | str, output: Path) -> tuple[str, ...]:
    """Write a variant as a plain checkpoint, and load it again if the architecture is known.

    Args:
        checkpoint: The checkpoint with the weights.
        variant: A variant, or the name of a branch.
        output: The file to write. Its name ends in .safetensors (with a record of architecture and
            preprocessing) or .pth (a bare state_dict, as torchvision's own code expects it).

    Returns:
        Notes for people, such as how it was checked.

    Raises:
        UsageError: The file's suffix is another, or there is no such branch or architecture.
        InputError: Variant, weights and architecture do not fit.
        VerificationError: The file does not give the variant's outputs.
    """
    suffix = output.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"-o: expected a name in {', '.join(FORMATS)}, got '{output.name}'.")
    state = _plain_state(checkpoint, variant)
    spec, notes = _spec(checkpoint, variant)
    if spec is not None:
        notes.append(_check(checkpoint, variant, state, spec))
        mean, std = (",".join(f"{value:g}" for value in values) for values in (spec.mean, spec.std))
        notes.append(
            f"it expects images in [0, 1] with mean {mean} and std {std}, {spec.size} pixels"
        )
    if suffix == ".safetensors":
        write_whole(output, save(state, metadata={METADATA_KEY: to_json(spec or {})}))
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(output, buffer.getvalue())
    return tuple(notes)


def _spec(checkpoint: Checkpoint, variant: Variant | str) -> tuple[ModelSpec | None, list[str]]:
    if isinstance(variant, Variant) and checkpoint.overrides.arch is None:
        return variant.spec, []
    try:
        return checkpoint.spec, []
    except UsageError as error:
        if checkpoint.overrides.arch is not None:
            raise
        return None, [f"not loaded again, because {error}"]


@torch.inference_mode()
def _check(
    checkpoint: Checkpoint,
    variant: Variant | str,
    state: Mapping[str, torch.Tensor],
    spec: ModelSpec,
) -> str:
    """Load the state with strict=True into the architecture and compare with what recal builds."""
    built = build(checkpoint, variant)
    network = create_network(spec.arch, spec.classes, trusted=spec.trusted)
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError:
        return (
            f"{spec.arch} is not plain (it has several branches, a normalisation layer, or lacks "
            "instance norm), so it does not load the file itself; build() makes it plain"
        )
    images = torch.randn(2, 3, spec.size, spec.size, generator=torch.Generator().manual_seed(0))
    gap = float((network.float().eval()(images) - built(images)).abs().max())
    if not gap <= CLOSE:
        raise VerificationError(
            f"{checkpoint.path}: the plain checkpoint differs from the variant by {gap:.3g}."
        )
    return f"{spec.arch} loads it with strict=True and computes what the variant does"
