"""A variant: one choice of affine and one of statistics, kept as a small file of its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from recal import __version__
from recal.checkpoint.spec import ModelSpec
from recal.errors import InputError
from recal.files import require_file, write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recal.checkpoint.checkpoint import Checkpoint

FORMAT = 1
METADATA_KEY = "recal"
AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """BatchNorm tensors for one set of weights, and where they come from.

    Attributes:
        tensors: `<layer>.weight`, `.bias`, `.running_mean`, `.running_var`, float32 (C,); layers
            without affine have only the last two.
        weights_sha256: Hash of the other tensors, the only ones that the variant fits.
        spec: Architecture and preprocessing.
        affine: The branch that lends weight and bias, `mix` where it is of several.
        statistics: Where the statistics come from: `{"source": "branch", "branch": ...}`,
            `{"source": "policy", ...}` with all that is needed to estimate them again, or
            `{"source": "mix", ...}` with what was mixed.
    """

    tensors: Mapping[str, torch.Tensor]
    weights_sha256: str
    spec: ModelSpec
    affine: str
    statistics: Mapping[str, Any]

    @property
    def label(self) -> str:
        """A short name for tables, such as `main` or `aux0, weak statistics`."""
        source = self.statistics["source"]
        if source == "branch" and self.statistics["branch"] == self.affine:
            return self.affine
        if source == "branch":
            return f"{self.affine}, statistics of {self.statistics['branch']}"
        if source == "mix":
            return str(self.statistics["label"])
        return f"{self.affine}, {self.statistics['policy']} statistics"

    @property
    def sha256(self) -> str:
        """Hash of the network that the variant makes: weights, BatchNorm and preprocessing."""
        digest = hashlib.sha256(self.weights_sha256.encode())
        digest.update(json.dumps(self.spec.to_json(), sort_keys=True).encode())
        for name in sorted(self.tensors):
            digest.update(name.encode() + self.tensors[name].contiguous().numpy().tobytes())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """Return what the file says beside the tensors; the same request gives the same record."""
        return {
            "format": FORMAT,
            "weights_sha256": self.weights_sha256,
            "model": self.spec.to_json(),
            "affine": self.affine,
            "statistics": dict(self.statistics),
            "versions": {"recal": __version__, "torch": torch.__version__},
        }


def branch_variant(
    checkpoint: Checkpoint, affine: str, spec: ModelSpec, *, statistics: str | None = None
) -> Variant:
    """Return the variant with a branch's affine and the stored statistics of that or another one.

    Raises:
        UsageError: The checkpoint has no such branch.
    """
    statistics = statistics or affine
    lender, source = checkpoint.branch(affine), checkpoint.branch(statistics)
    tensors = {k: t.float() for k, t in lender.items() if k.endswith(AFFINE)}
    tensors |= {k: t.float() for k, t in source.items() if k.endswith(STATISTICS)}
    return Variant(
        tensors=tensors,
        weights_sha256=checkpoint.weights_sha256,
        spec=spec,
        affine=affine,
        statistics={"source": "branch", "branch": statistics},
    )


def save_variant(variant: Variant, path: str | Path) -> None:
    """Write a variant; equal variants give equal bytes.

    Raises:
        RecalError: The file cannot be written.
    """
    # one metadata key, because safetensors writes several in varying order
    record = json.dumps(variant.record(), sort_keys=True)
    tensors = {name: tensor.contiguous() for name, tensor in variant.tensors.items()}
    write_whole(Path(path), save(tensors, metadata={METADATA_KEY: record}))


def is_variant_file(path: Path) -> bool:
    """Tell a variant's file from a checkpoint's."""
    try:
        with safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load_variant(path: str | Path) -> Variant:
    """Read a variant.

    Raises:
        InputError: The file is no variant, or of a newer format.
    """
    path = Path(path)
    require_file(path, "a variant")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
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
        variant = Variant(
            tensors=tensors,
            weights_sha256=str(record["weights_sha256"]),
            spec=ModelSpec.from_json(record["model"]),
            affine=str(record["affine"]),
            statistics=dict(record["statistics"]),
        )
        variant.label  # noqa: B018  (the statistics' record has what tables show)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: expected a whole variant record, got {error}.") from error
    _check_tensors(path, tensors)
    return variant


def _check_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that are no BatchNorm's, with which a file could change the shared weights."""
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        shape = tensors[f"{layer}.running_mean"].shape if f"{layer}.running_mean" in tensors else ()
        if leaf not in (*AFFINE, *STATISTICS) or tensor.ndim != 1 or tensor.shape != shape:
            raise InputError(
                f"{path}: {name}: expected the vectors of BatchNorm layers, got shape "
                f"{tuple(tensor.shape)}. The file is damaged or forged."
            )
        if not tensor.is_floating_point():
            raise InputError(f"{path}: {name}: expected floats, got {tensor.dtype}.")
