"""A variant: one choice of affine and one of statistics for a checkpoint's weights.

Its file is safetensors with one metadata key, which holds the record as sorted JSON. Nothing here
imports torch before it is needed, so that machines that only deploy can read the files.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from recal.errors import InputError, UsageError, listed
from recal.files import require_file, write_whole
from recal.networks.spec import ModelSpec
from recal.schema import Record, read_json, to_json
from recal.variant.statistics import BranchStatistics, EstimatedStatistics, Statistics
from recal.version import __version__

if TYPE_CHECKING:
    import torch

    from recal.checkpoint.checkpoint import Checkpoint


METADATA_KEY = "recal"
AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var")


class VariantRecord(Record, frozen=True, kw_only=True):
    """What a variant's file says beside its tensors; the fields are those of `Variant`."""

    format: Literal[1] = 1
    weights_sha256: str
    model: ModelSpec
    affine: str
    statistics: Statistics
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """BatchNorm tensors for one set of weights, and where they come from.

    Attributes:
        tensors: `<layer>.weight`, `.bias`, `.running_mean`, `.running_var`, float32 (C,); layers
            without affine have only the last two.
        weights_sha256: SHA-256 of the tensors that belong to no BatchNorm layer, the only weights
            that the variant fits.
        spec: Architecture and preprocessing.
        affine: The branch that weight and bias come from, or `mix` for several.
        statistics: Where the statistics come from.
        versions: Versions of the software that made the variant, by package.
    """

    tensors: Mapping[str, NDArray[np.float32]] = field(repr=False)
    weights_sha256: str
    spec: ModelSpec
    affine: str
    statistics: Statistics
    versions: Mapping[str, str]

    @property
    def label(self) -> str:
        """A short name, such as `main`, `aux0, weak statistics` or `0.7 main + 0.3 aux0`."""
        return self.statistics.label(self.affine)

    @property
    def estimated(self) -> EstimatedStatistics:
        """The statistics of a variant that was calibrated; of another, a UsageError is raised."""
        if not isinstance(self.statistics, EstimatedStatistics):
            raise UsageError(
                f"expected statistics estimated on images, got '{self.label}'. Give a variant that "
                "`recal calibrate` wrote."
            )
        return self.statistics

    @property
    def layers(self) -> list[str]:
        """Paths of the BatchNorm layers."""
        suffix = ".running_mean"
        return [name.removesuffix(suffix) for name in self.tensors if name.endswith(suffix)]

    @property
    def sha256(self) -> str:
        """SHA-256 of the network that the variant makes: weights, BatchNorm and preprocessing."""
        digest = hashlib.sha256((self.weights_sha256 + to_json(self.spec.computed)).encode())
        for name in sorted(self.tensors):
            digest.update(name.encode() + np.ascontiguousarray(self.tensors[name]).tobytes())
        return digest.hexdigest()

    @property
    def record(self) -> VariantRecord:
        """What the variant's file says beside the tensors."""
        return VariantRecord(
            weights_sha256=self.weights_sha256,
            model=self.spec,
            affine=self.affine,
            statistics=self.statistics,
            versions=dict(self.versions),
        )

    def torch_tensors(self) -> dict[str, torch.Tensor]:
        """Return copies of the tensors for torch, float32 on the CPU."""
        import torch

        return {name: torch.tensor(array) for name, array in self.tensors.items()}


def branch_variant(
    checkpoint: Checkpoint,
    affine: str,
    *,
    statistics: str | None = None,
    spec: ModelSpec | None = None,
) -> Variant:
    """Return the variant with a branch's affine and the stored statistics of that or another one.

    Args:
        checkpoint: The checkpoint that has the branches.
        affine: The branch that weight and bias come from.
        statistics: The branch that the statistics come from; by default that of the affine.
        spec: Architecture and preprocessing; by default the checkpoint's.

    Raises:
        UsageError: The checkpoint has no such branch, or does not store its statistics, or its
            architecture cannot be determined.
    """
    statistics = statistics or affine
    check_statistics(checkpoint, statistics)
    tensors = {**_leaves(checkpoint, affine, AFFINE), **_leaves(checkpoint, statistics, STATISTICS)}
    return _stored_variant(checkpoint, tensors, affine, statistics, spec or checkpoint.spec)


def initial_variant(checkpoint: Checkpoint, affine: str) -> Variant:
    """Return the variant of a branch that calibration starts from.

    Layers whose statistics the file does not have get mean 0 and variance 1.
    """
    tensors = _leaves(checkpoint, affine, (*AFFINE, *STATISTICS))
    for layer in checkpoint.missing:
        for leaf, value in zip(STATISTICS, (0.0, 1.0), strict=True):
            tensors[f"{layer}.{leaf}"] = np.full_like(tensors[f"{layer}.{leaf}"], value)
    return _stored_variant(checkpoint, tensors, affine, affine, checkpoint.spec)


def _leaves(
    checkpoint: Checkpoint, branch: str, leaves: tuple[str, ...]
) -> dict[str, NDArray[np.float32]]:
    return {
        name: tensor.float().cpu().numpy()
        for name, tensor in checkpoint.branch(branch).items()
        if name.endswith(leaves)
    }


def _stored_variant(
    checkpoint: Checkpoint,
    tensors: dict[str, NDArray[np.float32]],
    affine: str,
    statistics: str,
    spec: ModelSpec,
) -> Variant:
    return Variant(
        tensors=tensors,
        weights_sha256=checkpoint.weights_sha256,
        spec=spec,
        affine=affine,
        statistics=BranchStatistics(branch=statistics),
        versions=versions_with_torch(),
    )


def check_statistics(checkpoint: Checkpoint, branch: str) -> None:
    """Raise a UsageError if the checkpoint does not store the statistics of all layers."""
    if checkpoint.missing:
        path = shlex.quote(str(checkpoint.path))
        raise UsageError(
            f"{checkpoint.path}: branch '{branch}': statistics: none stored for "
            f"{listed(checkpoint.missing)}; calibrate first. Run recal calibrate {path}, and use "
            "the variant that it writes."
        )


def check_weights(checkpoint: Checkpoint, variant: Variant) -> None:
    """Raise an InputError if the variant belongs to other weights than the checkpoint's."""
    if variant.weights_sha256 != checkpoint.weights_sha256:
        raise InputError(
            f"{checkpoint.path}: expected the weights that the variant was made for "
            f"({variant.weights_sha256[:12]}), got others ({checkpoint.weights_sha256[:12]})."
        )


def versions_with_torch() -> dict[str, str]:
    """Return the versions of recal and torch, for the record of what torch computed."""
    import torch

    return {"recal": __version__, "torch": str(torch.__version__)}


def is_variant_file(path: Path) -> bool:
    """Return whether a file is a variant's, judged by its content."""
    try:
        with safe_open(path, framework="np") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load_variant(path: str | Path) -> Variant:
    """Read a variant from a file that `save_variant` wrote.

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
        if leaf not in (*AFFINE, *STATISTICS) or not fits or tensor.dtype != np.float32:
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
    """Write a variant, usually as `.safetensors`; equal variants give equal bytes.

    Raises:
        RecalError: The file cannot be written.
    """
    # one metadata key, because safetensors writes several in varying order
    metadata = {METADATA_KEY: to_json(variant.record)}
    tensors = {name: np.ascontiguousarray(t, np.float32) for name, t in variant.tensors.items()}
    write_whole(Path(path), save(tensors, metadata=metadata))
