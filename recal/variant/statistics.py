"""Where the statistics of a variant come from: a branch, images, or a mix of variants.

The records are what a variant's file and an ONNX file say about them. Nothing here needs torch.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from msgspec import Meta

from recal.schema import Record

Count = Annotated[int, Meta(ge=0)]
Size = Annotated[int, Meta(ge=1)]
Error = Annotated[float, Meta(ge=0)]
Bound = Literal["mean_bound", "log_variance_bound"]


class LayerError(Record, frozen=True, kw_only=True):
    """How far one layer's statistics may be off, as root mean squares over its channels.

    Conditional on the statistics of earlier layers, with images as independent draws.

    Attributes:
        mean: Standard error of the mean, in units of the channel's standard deviation.
        log_variance: Standard error of the variance's logarithm, which is its relative error.
        mean_bound: Bound that the actual error of the mean stays below in 95 of 100 draws of the
            images.
        log_variance_bound: Bound that the actual error of the log-variance stays below in 95 of
            100 draws of the images.
    """

    mean: Error
    log_variance: Error
    mean_bound: Error
    log_variance_bound: Error


class BranchStatistics(Record, frozen=True, kw_only=True, tag_field="source", tag="branch"):
    """Statistics that a branch of the checkpoint stores.

    Attributes:
        branch: Name of the branch.
    """

    branch: str

    def label(self, affine: str) -> str:
        """Return the short name of a variant with these statistics and a branch's affine."""
        return affine if self.branch == affine else f"{affine}, statistics of {self.branch}"


class EstimatedStatistics(Record, frozen=True, kw_only=True, tag_field="source", tag="policy"):
    """Statistics that were estimated on images, with all that is needed to estimate them again.

    Attributes:
        policy: Name of the policy that was applied to the images.
        policy_sha256: SHA-256 of the policy's text.
        policy_text: The policy's text.
        data_sha256: Fingerprint of the images.
        images: Number of images.
        skipped: Names of images that cannot be decoded and were left out.
        batch_size: Images per batch.
        estimator: Name of the estimator.
        passes: Number of passes over the images.
        seed: Seed of the choice of images and of the policy's draws.
        tolerance: Largest error bound that was accepted, or None if all images were to be used.
        autocast: Reduced precision of the forward pass, such as `torch.bfloat16`, or None.
        errors: Errors of the layers by path; empty for a single image, which tells none.
        layers_without_data: Layers that saw no data and keep the stored statistics.
    """

    policy: str
    policy_sha256: str
    policy_text: str
    data_sha256: str
    images: Size
    skipped: tuple[str, ...] = ()
    batch_size: Size
    estimator: str
    passes: Size
    seed: Count
    tolerance: float | None = None
    autocast: str | None = None
    errors: dict[str, LayerError]
    layers_without_data: tuple[str, ...] = ()

    def label(self, affine: str) -> str:
        """Return the short name of a variant with these statistics and a branch's affine."""
        return f"{affine}, {self.policy} statistics"

    def largest(self, bound: Bound) -> tuple[float, str]:
        """Return the largest error bound of all layers, and the layer; infinity if unknown."""
        bounds = ((getattr(error, bound), name) for name, error in self.errors.items())
        return max(bounds, default=(math.inf, ""))


class MixedPart(Record, frozen=True, kw_only=True):
    """One of the variants that a mix is made of.

    Attributes:
        affine: The branch that its affine comes from.
        statistics: Where its statistics come from.
    """

    affine: str
    statistics: Statistics

    @property
    def label(self) -> str:
        """The short name of this part."""
        return self.statistics.label(self.affine)


class MixedStatistics(Record, frozen=True, kw_only=True, tag_field="source", tag="mix"):
    """Statistics of several variants together.

    Attributes:
        parts: The variants.
        weights: Share of each variant; at least 0, with sum 1.
        prior: Number of images that the first variant counts for, if the weights follow from it;
            None if the weights were given.
    """

    parts: Annotated[tuple[MixedPart, ...], Meta(min_length=1)]
    weights: tuple[Annotated[float, Meta(ge=0)], ...]
    prior: float | None = None

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.parts):
            raise ValueError(
                f"weights: expected one for each of {len(self.parts)} parts, got "
                f"{len(self.weights)}"
            )

    def label(self, affine: str) -> str:
        """Return the short name of a variant with these statistics, which its parts make up."""
        if self.prior is not None:
            return f"{self.parts[-1].label}, prior {self.prior:g}"
        words = (f"{w:g} {p.label}" for w, p in zip(self.weights, self.parts, strict=True))
        return " + ".join(words)


Statistics = BranchStatistics | EstimatedStatistics | MixedStatistics
