"""Where the statistics of a variant come from: a branch, images, or a mix of variants.

The records are what a variant's file and an ONNX file say about them. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta

from recal.errors import listed
from recal.schema import Record

Count = Annotated[int, Meta(ge=0)]
Size = Annotated[int, Meta(ge=1)]
Error = Annotated[float, Meta(ge=0)]
Bound = Literal["mean_bound", "log_variance_bound"]
DIGITS = 4
NORMAL_95 = 1.6449  # 95 % quantile of the normal distribution


class LayerError(Record, frozen=True, kw_only=True):
    """How far one layer's statistics may be off, as root mean squares over its channels.

    Conditional on the statistics of earlier layers, with images as independent draws.

    Attributes:
        mean: Standard error of the mean, in units of the channel's standard deviation.
        log_variance: Standard error of the variance's logarithm, which is its relative error.
        mean_bound: What the error of the mean stays below in 95 of 100 draws of the images.
        log_variance_bound: The same bound for the error of the log-variance.
    """

    mean: Error
    log_variance: Error
    mean_bound: Error
    log_variance_bound: Error

    @classmethod
    def with_bounds(cls, errors: Sequence[float], degrees: Sequence[float]) -> LayerError:
        """Return standard errors with their bounds, rounded to four digits.

        Args:
            errors: Root mean squares over channels: of the errors of mean and log-variance.
            degrees: Numbers of independent channels: for the mean, and for the log-variance.
        """
        bounds = [e * quantile_factor(d) for e, d in zip(errors, degrees, strict=True)]
        # further digits depend on the order of summation, and variants should have equal bytes
        rounded = (float(f"{value:.{DIGITS}g}") for value in (*errors, *bounds))
        return cls(**dict(zip(cls.__struct_fields__, rounded, strict=True)))


def quantile_factor(degrees: float) -> float:
    """Return the 95 % quantile of sqrt(chi-square / degrees).

    Source: Wilson and Hilferty, "The distribution of chi-square", PNAS 17, 1931; within 2 % from
    one degree of freedom on.
    """
    spread = 2 / (9 * degrees)
    return float((1 - spread + NORMAL_95 * math.sqrt(spread)) ** 1.5)


class BranchStatistics(Record, frozen=True, kw_only=True, tag_field="source", tag="branch"):
    """Statistics that a branch of the checkpoint stores, by the branch's name."""

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
        data_sha256: SHA-256 of the hashes of all images used, in order.
        whole: Whether the images were cropped before, so that the policy kept all of each.
        images: Number of images.
        skipped: Names of images that cannot be decoded and were left out.
        batch_size: Images per batch.
        estimator: Name of the estimator.
        passes: Number of passes over the images.
        seed: Seed of the choice of images and of the policy's draws.
        tolerance: Largest error bound that was accepted, or None if all images were to be used.
        autocast: Reduced precision of the forward pass, such as `torch.bfloat16`, or None.
        errors: Errors of the layers by path; empty for a single image, which tells none.
        layers: The layers that were to be estimated, if not all; others keep what is stored.
        layers_without_data: Layers of these that saw no data and keep the stored statistics.
    """

    policy: str
    policy_sha256: str
    policy_text: str
    data_sha256: str
    whole: bool = False
    images: Size
    skipped: tuple[str, ...] = ()
    batch_size: Size
    estimator: str
    passes: Size
    seed: Count
    tolerance: float | None = None
    autocast: str | None = None
    errors: dict[str, LayerError]
    layers: tuple[str, ...] = ()
    layers_without_data: tuple[str, ...] = ()

    def label(self, affine: str) -> str:
        """Return the short name of a variant with these statistics and a branch's affine."""
        where = f" at {listed(self.layers, 1)}" if self.layers else ""
        return f"{affine}, {self.policy} statistics{where}"

    def largest(self, bound: Bound) -> tuple[float, str]:
        """Return the largest error bound of all layers, and the layer; infinity if unknown."""
        bounds = ((getattr(error, bound), name) for name, error in self.errors.items())
        return max(bounds, default=(math.inf, ""))


class MixedPart(Record, frozen=True, kw_only=True):
    """Where the affine (a branch) and the statistics of one variant of a mix come from."""

    affine: str
    statistics: Statistics


class MixedStatistics(Record, frozen=True, kw_only=True, tag_field="source", tag="mix"):
    """Statistics of several variants together.

    Attributes:
        parts: The variants.
        weights: Share of each variant; at least 0, with sum 1.
        prior: Number of images that the first variant counts for, if that gives the weights.
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
        labels = [part.statistics.label(part.affine) for part in self.parts]
        if self.prior is not None:
            return f"{labels[-1]}, prior {self.prior:g}"
        return " + ".join(f"{w:g} {label}" for w, label in zip(self.weights, labels, strict=True))


Statistics = BranchStatistics | EstimatedStatistics | MixedStatistics
