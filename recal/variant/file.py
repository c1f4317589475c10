"""Variant files as NumPy arrays: what they hold, and how they are read and written.

Needs no torch, for machines that only deploy; `recal.variant.variant` builds on it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from recal.errors import InputError
from recal.files import require_file, write_whole
from recal.networks.spec import ModelSpec
from recal.wording import check_type

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from recal.calibration.error_bounds import LayerError
    from recal.policies.policy import Policy


FORMAT = 1
METADATA_KEY = "recal"
LEAVES = ("weight", "bias", "running_mean", "running_var")
REQUIRED: dict[str, type] = {
    "weights_sha256": str, "model": dict, "affine": str, "statistics": dict, "versions": dict,
}  # fmt: skip
# what says where statistics come from, by their source
OF_SOURCE = {
    "branch": ("branch",), "policy": ("policy", "policy_sha256", "policy_text"), "mix": ("label",),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VariantFile:
    """What a variant's file holds.

    Attributes:
        tensors: `<layer>.weight`, `.bias`, `.running_mean`, `.running_var`, float32 (C,).
        record: What the file says beside them, as `Variant.record` gives it.
    """

    tensors: Mapping[str, NDArray[np.float32]]
    record: Mapping[str, Any]

    @property
    def spec(self) -> ModelSpec:
        """Architecture and preprocessing."""
        return ModelSpec.from_json(self.record["model"])

    @property
    def label(self) -> str:
        """A short name for tables."""
        return label_of(self.record["affine"], self.record["statistics"])

    @property
    def sha256(self) -> str:
        """Hash of the network that the variant makes: weights, BatchNorm and preprocessing."""
        digest = hashlib.sha256(self.record["weights_sha256"].encode())
        digest.update(json.dumps(self.spec.to_json(), sort_keys=True).encode())
        for name in sorted(self.tensors):
            digest.update(name.encode() + np.ascontiguousarray(self.tensors[name]).tobytes())
        return digest.hexdigest()


def estimated_statistics(
    policy: Policy, errors: Mapping[str, LayerError], **facts: Any
) -> dict[str, Any]:
    """Return the record of statistics that were estimated on images.

    Args:
        policy: What was done to the images.
        errors: Of every layer.
        **facts: `data_sha256`, `images`, `batch_size`, `estimator`, `passes`, `seed`,
            `layers_without_data`; also `skipped`, `tolerance`, `autocast`.
    """
    return {
        "source": "policy",
        "policy": policy.name,
        "policy_sha256": policy.sha256,
        "policy_text": policy.text,
        "errors": {name: asdict(error) for name, error in errors.items()},
        "skipped": [],
        "tolerance": None,
        "autocast": None,
        **facts,
    }


def label_of(affine: str, statistics: Mapping[str, Any]) -> str:
    """Return a short name, such as `main`, `aux0, weak statistics` or `0.7 main + 0.3 aux0`."""
    if statistics["source"] == "mix":
        return str(statistics["label"])
    if statistics["source"] != "branch":
        return f"{affine}, {statistics['policy']} statistics"
    branch = statistics["branch"]
    return affine if branch == affine else f"{affine}, statistics of {branch}"


def check_statistics(statistics: Mapping[str, Any], where: str) -> None:
    """Refuse a record of statistics that does not say where they come from.

    Raises:
        InputError: As said.
    """
    source = statistics.get("source")
    if not isinstance(source, str) or source not in OF_SOURCE:
        raise InputError(
            f"{where}: statistics: source: expected one of {', '.join(OF_SOURCE)}, got {source!r}."
        )
    for key in OF_SOURCE[source]:
        check_type(statistics.get(key), str, f"{where}: statistics: {key}")


def is_variant_file(path: Path) -> bool:
    """Tell a variant's file from a checkpoint's."""
    try:
        with safe_open(path, framework="np") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_variant(path: Path) -> VariantFile:
    """Read a variant.

    Raises:
        InputError: The file is no variant, damaged, or of a newer format.
    """
    require_file(path, "a variant")
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        raise InputError(f"{path}: expected a variant, got no whole safetensors file.") from error
    if text is None:
        raise InputError(f"{path}: expected a variant that recal wrote, got other safetensors.")
    try:
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise InputError(
                f"{path}: expected format {FORMAT}, got {record['format']}. Use the recal that "
                "wrote it, or a newer one."
            )
        for key, kind in REQUIRED.items():
            check_type(record[key], kind, f"{path}: {key}")
        check_statistics(record["statistics"], str(path))
        variant = VariantFile(tensors=tensors, record=record)
        _ = variant.label, variant.spec
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: expected a whole variant record, got {error}.") from error
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        sibling = tensors.get(f"{layer}.running_mean")
        fits = sibling is not None and tensor.shape == sibling.shape and tensor.ndim == 1
        if leaf not in LEAVES or not fits or tensor.dtype != np.float32:
            raise InputError(
                f"{path}: {name}: expected the vectors of BatchNorm layers in float32, got "
                f"{tensor.dtype} {tensor.shape}. The file is damaged or forged."
            )
    return variant


def write_variant(variant: VariantFile, path: Path) -> None:
    """Write a variant; equal variants give equal bytes.

    Raises:
        RecalError: The file cannot be written.
    """
    # one metadata key, because safetensors writes several in varying order
    record = json.dumps(variant.record, sort_keys=True)
    tensors = {name: np.ascontiguousarray(t, np.float32) for name, t in variant.tensors.items()}
    write_whole(path, save(tensors, metadata={METADATA_KEY: record}))
