"""Moments of the values of each channel, gathered image by image, merged without loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from recal.bn.sums import image_sums

# rows of `Moments.sums`: for image i with k values of sum a and sum of squares b, both of
# deviations from the pivot, the sums over images of these products
A, B, KA, KB, AA, AB, BB = range(7)


@dataclass(frozen=True)
class Moments:
    """Moments of the values of each channel, and how they vary from image to image.

    Attributes:
        images: Number of images, N.
        count: Number of values behind each channel, the sum over images of k = H x W.
        square_count: Sum over images of k^2.
        pivot: What deviations are taken from, (C,); near the mean, so that squares cost no digits.
        sums: (7, C), float64, or float32 where the device has no float64.
        lost: What rounding has taken from `sums`, to be added to them, likewise.
    """

    images: int
    count: int
    square_count: int
    pivot: torch.Tensor
    sums: torch.Tensor
    lost: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor) -> Moments:
        """Return the moments of activations (N, C, ...), computed in float32 at least.

        Nothing is copied off the device.
        """
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        pivot, a, b = image_sums(values, _wide(values.device))
        k = math.prod(values.shape[2:])
        rows = [a.sum(0), b.sum(0), k * a.sum(0), k * b.sum(0)]
        rows += [(a * a).sum(0), (a * b).sum(0), (b * b).sum(0)]
        sums = torch.stack(rows)
        images = len(values)
        return cls(images, images * k, images * k * k, pivot, sums, torch.zeros_like(sums))

    @property
    def mean(self) -> torch.Tensor:
        """Mean, (C,)."""
        return self.pivot + self._total[A] / self.count

    @property
    def variance(self) -> torch.Tensor:
        """Biased variance, (C,)."""
        total = self._total / self.count
        return (total[B] - total[A].square()).clamp_min(0)

    @property
    def unbiased_variance(self) -> torch.Tensor:
        """Variance with n - 1 in the denominator, (C,)."""
        return self.variance * (self.count / (self.count - 1))

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of images together.

        Sums are added with the rounding error kept, so that neither order nor partition matters
        beyond the last digit, even in float32.

        Source: Knuth, The Art of Computer Programming, volume 2, section 4.2.2, theorem B.
        """
        other = other.about(self.pivot)
        total = self.sums + other.sums
        part = total - self.sums
        error = (self.sums - (total - part)) + (other.sums - part)
        return Moments(
            self.images + other.images,
            self.count + other.count,
            self.square_count + other.square_count,
            self.pivot,
            total,
            self.lost + other.lost + error,
        )

    def about(self, pivot: torch.Tensor) -> Moments:
        """Return the same moments with deviations taken from another pivot."""
        d = self.pivot - pivot
        k, kk, s = self.count, self.square_count, self._total
        rows = [
            s[A] + k * d,
            s[B] + d * (2 * s[A] + k * d),
            s[KA] + kk * d,
            s[KB] + d * (2 * s[KA] + kk * d),
            s[AA] + d * (2 * s[KA] + kk * d),
            s[AB] + d * (2 * s[AA] + s[KB] + d * (3 * s[KA] + kk * d)),
            s[BB] + d * (4 * s[AB] + d * (4 * s[AA] + 2 * s[KB] + d * (4 * s[KA] + kk * d))),
        ]
        sums = torch.stack(rows)
        return Moments(self.images, k, kk, pivot, sums, torch.zeros_like(sums))

    def on_cpu(self) -> Moments:
        """Return the same in float64 on the CPU."""
        wide = [t.cpu().double() for t in (self.pivot, self.sums, self.lost)]
        return Moments(self.images, self.count, self.square_count, *wide)

    def standard_errors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how far mean and variance may be off, with images as independent draws.

        Pixels of one image are not independent, so each image is one draw: the error comes from
        the spread over images of k (mean_i - mean) and of the like for the variance (the delta
        method for ratios). It is conditional on the statistics of earlier layers.

        Returns:
            The standard error of the mean divided by the standard deviation, and that of the
            logarithm of the variance, each (C,); infinite for fewer than two images, zero for a
            channel that does not vary.

        Source: Cochran, Sampling Techniques, third edition, section 6.4 (ratios of cluster totals).
        """
        if self.images < 2:
            return (torch.full_like(self.pivot, math.inf),) * 2
        s = self.about(self.mean)._total
        variance = s[B] / self.count
        of_mean = s[AA]
        of_variance = s[BB] - variance * (2 * s[KB] - variance * self.square_count)
        scale = math.sqrt(self.images / (self.images - 1)) / self.count
        varies = variance > 0
        safe = torch.where(varies, variance, 1.0)
        errors = (
            of_mean.clamp_min(0).sqrt() * scale / safe.sqrt(),
            of_variance.clamp_min(0).sqrt() * scale / safe,
        )
        return torch.where(varies, errors[0], 0.0), torch.where(varies, errors[1], 0.0)

    @property
    def _total(self) -> torch.Tensor:
        return self.sums + self.lost


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
