"""A variant: one choice of affine and one of statistics, kept as a small file of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recal.variant.file import FORMAT, VariantFile, label_of, read_variant, write_variant
from recal.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recal.checkpoint.checkpoint import Checkpoint
    from recal.networks.spec import ModelSpec


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

    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    weights_sha256: str
    spec: ModelSpec
    affine: str
    statistics: Mapping[str, Any]

    @property
    def label(self) -> str:
        """A short name for tables, such as `main` or `aux0, weak statistics`."""
        return label_of(self.affine, self.statistics)

    @property
    def sha256(self) -> str:
        """Hash of the network that the variant makes: weights, BatchNorm and preprocessing."""
        return self.to_file().sha256

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

    def to_file(self) -> VariantFile:
        """Return what the variant's file holds."""
        tensors = {name: tensor.float().cpu().numpy() for name, tensor in self.tensors.items()}
        return VariantFile(tensors=tensors, record=self.record())


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
    write_variant(variant.to_file(), Path(path))


def load_variant(path: str | Path) -> Variant:
    """Read a variant.

    Raises:
        InputError: The file is no variant, damaged, or of a newer format.
    """
    file = read_variant(Path(path))
    return Variant(
        tensors={name: torch.from_numpy(array) for name, array in file.tensors.items()},
        weights_sha256=str(file.record["weights_sha256"]),
        spec=file.spec,
        affine=str(file.record["affine"]),
        statistics=dict(file.record["statistics"]),
    )
