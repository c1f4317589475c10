"""Variant files: safetensors with one metadata key that holds the record as sorted JSON.

Nothing here needs torch, so that machines that only deploy can read them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from recal.errors import InputError
from recal.files import require_file, write_whole
from recal.schema import read_json, to_json
from recal.variant.variant import Variant, VariantRecord

METADATA_KEY = "recal"
LEAVES = ("weight", "bias", "running_mean", "running_var")


def is_variant_file(path: Path) -> bool:
    """Return whether a file is a variant's, judged by its content."""
    try:
        with safe_open(path, framework="np") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load_variant(path: str | Path) -> Variant:
    """Read a variant.

    Args:
        path: A file that `save_variant` wrote.

    Raises:
        InputError: The file is not a variant, is damaged, or has a newer format.
    """
    path = Path(path)
    require_file(path, "a variant")
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        raise InputError(f"{path}: expected a variant, got no whole safetensors file.") from error
    if text is None:
        raise InputError(f"{path}: expected a variant that recal wrote, got other safetensors.")
    record = read_json(text, VariantRecord, str(path))
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        sibling = tensors.get(f"{layer}.running_mean")
        fits = sibling is not None and tensor.shape == sibling.shape and tensor.ndim == 1
        if leaf not in LEAVES or not fits or tensor.dtype != np.float32:
            raise InputError(
                f"{path}: {name}: expected the vectors of BatchNorm layers in float32, got "
                f"{tensor.dtype} {tensor.shape}. The file is damaged or forged."
            )
    return Variant(
        tensors=tensors,
        weights_sha256=record.weights_sha256,
        spec=record.model,
        affine=record.affine,
        statistics=record.statistics,
        versions=record.versions,
    )


def save_variant(variant: Variant, path: str | Path) -> None:
    """Write a variant; equal variants give equal bytes.

    Args:
        variant: The variant to write.
        path: The file to write, usually with the suffix `.safetensors`.

    Raises:
        RecalError: The file cannot be written.
    """
    # one metadata key, because safetensors writes several in varying order
    metadata = {METADATA_KEY: to_json(variant.record)}
    tensors = {name: np.ascontiguousarray(t, np.float32) for name, t in variant.tensors.items()}
    write_whole(Path(path), save(tensors, metadata=metadata))
