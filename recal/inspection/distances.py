"""Inspecting a checkpoint: distances between its branches, and findings about them."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch

from recal.checkpoint.checkpoint import Checkpoint, Finding
from recal.errors import UsageError
from recal.inspection.findings import examine
from recal.networks.detect import architecture_of
from recal.networks.names import is_known

# PyTorch's default for the number that BatchNorm adds to a variance
EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class LayerDistance:
    """The distances of one layer of a branch from the same layer of `main`; NaN if values are NaN.

    Attributes:
        layer: Plain path of the layer.
        mean_shift: Root mean square over channels of (mean - main's mean) / main's std.
        log_variance_ratio: Root mean square over channels of log(variance / main's variance).
        symmetric_kl: KL(p || q) + KL(q || p) of the Gaussians of the two statistics, in nats, mean
            over channels.
        affine_distance: |(weight, bias) - main's| / |main's (weight, bias)|, Euclidean norms over
            all channels; None for layers without affine.
    """

    layer: str
    mean_shift: float
    log_variance_ratio: float
    symmetric_kl: float
    affine_distance: float | None


@dataclass(frozen=True, kw_only=True)
class BranchReport:
    """One branch of a checkpoint.

    Attributes:
        name: Name of the branch: `main`, `aux0` ...
        layers: Number of BatchNorm layers.
        channels: Number of channels of all layers together.
        trained_batches: Largest number of training batches that a layer has counted, or None.
        distances: Distance to `main` of each layer; empty for `main` itself.
    """

    name: str
    layers: int
    channels: int
    trained_batches: int | None
    distances: tuple[LayerDistance, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `recal inspect` prints about a checkpoint.

    Attributes:
        path: The file, as it was given.
        layout: Name of the layout.
        writer: The software that writes this layout.
        roles: Which images trained which branch, by the convention of that software.
        architecture: Name of the architecture, or None if it cannot be determined.
        feeding: Mean, std and channel order and where they come from, for people, or None.
        parameters: Number of values outside of the BatchNorm layers.
        weights_sha256: SHA-256 of the weights, which variants record.
        branches: The branches, `main` first.
        notes: What was unwrapped or left out while reading.
        findings: What is wrong or doubtful, and what follows from it.
    """

    path: str
    layout: str
    writer: str
    roles: str
    architecture: str | None
    feeding: str | None
    parameters: int
    weights_sha256: str
    branches: tuple[BranchReport, ...]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Compare the branches of a checkpoint with `main` and look for faults.

    Needs no architecture. Statistics are compared in float64, with 1e-5 added to variances as
    BatchNorm itself does.
    """
    architecture, feeding = checkpoint.overrides.arch, None
    if architecture is None or is_known(architecture):
        with suppress(UsageError):
            tensors = {**checkpoint.weights, **checkpoint.branches["main"]}
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            architecture = architecture_of(checkpoint.facts.arch, shapes)
        with suppress(UsageError):
            feeding = checkpoint.spec.feeding
    return Inspection(
        path=str(checkpoint.path),
        layout=checkpoint.layout.name,
        writer=checkpoint.layout.writer,
        roles=checkpoint.layout.roles,
        architecture=architecture,
        feeding=feeding,
        parameters=sum(tensor.numel() for tensor in checkpoint.weights.values()),
        weights_sha256=checkpoint.weights_sha256,
        branches=tuple(
            _report(name, tensors, checkpoint) for name, tensors in checkpoint.branches.items()
        ),
        notes=checkpoint.notes,
        findings=examine(checkpoint),
    )


def _report(name: str, tensors: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> BranchReport:
    main, layers = checkpoint.branches["main"], checkpoint.layers
    counts = [int(t.max()) for k, t in tensors.items() if k.endswith(".num_batches_tracked")]
    compared = () if name == "main" else layers
    return BranchReport(
        name=name,
        layers=len(layers),
        channels=sum(main[f"{layer}.running_mean"].numel() for layer in layers),
        trained_batches=max(counts, default=None),
        distances=tuple(_layer_distance(layer, tensors, main) for layer in compared),
    )


def _layer_distance(
    layer: str, branch: Mapping[str, torch.Tensor], main: Mapping[str, torch.Tensor]
) -> LayerDistance:
    mean_shift, log_variance_ratio, symmetric_kl = gaussian_distances(
        *(b[f"{layer}.{leaf}"] for b in (branch, main) for leaf in ("running_mean", "running_var"))
    )
    keys = [key for key in (f"{layer}.weight", f"{layer}.bias") if key in main]
    affine_distance = None
    if keys:
        own, base = (torch.cat([b[key].double() for key in keys]) for b in (branch, main))
        affine_distance = float((own - base).norm() / (base.norm() or 1))
    return LayerDistance(
        layer=layer,
        mean_shift=mean_shift,
        log_variance_ratio=log_variance_ratio,
        symmetric_kl=symmetric_kl,
        affine_distance=affine_distance,
    )


def gaussian_distances(
    mean: torch.Tensor,
    variance: torch.Tensor,
    base_mean: torch.Tensor,
    base_variance: torch.Tensor,
) -> tuple[float, float, float]:
    """Compare the Gaussians of two sets of statistics, (C,) of any floating type, by channel.

    Returns:
        Root mean square of the shift in the base's standard deviations; root mean square of the log
        of the ratio of variances; mean of KL(p || q) + KL(q || p), in nats.
    """
    variance, base_variance = variance.double() + EPS, base_variance.double() + EPS
    gap = (mean.double() - base_mean.double()).square()
    kl = ((variance + gap) / base_variance + (base_variance + gap) / variance) / 2 - 1
    shift, ratio = gap / base_variance, (variance / base_variance).log().square()
    return float(shift.mean().sqrt()), float(ratio.mean().sqrt()), float(kl.mean())
