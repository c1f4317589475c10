"""Moments of the values of each channel, gathered image by image, merged without loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray


def image_sums(
    values: torch.Tensor, wide: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum the values of each image and channel, and their squares, as deviations from a pivot.

    Args:
        values: Activations (N, C, ...), float32 or float64.
        wide: In which type sums are given: float64 where the device has it.

    Returns:
        The pivot, (C,), which is the mean but for rounding, so that a large mean costs the squares
        no digits; sums of deviations and of their squares, each (N, C).
    """
    k = math.prod(values.shape[2:])
    if _suits_the_kernel(values):
        images = values.permute(0, 2, 3, 1).flatten(1, 2)
        sums, squares = torch.zeros((2, len(images), images.shape[2]), dtype=torch.float64)
        _kernel()(images.numpy(), sums.numpy(), squares.numpy())
        pivot = sums.mean(0) / k
        # in float64 throughout: a mean of 10,000 standard deviations costs half of the digits
        squares += pivot * (k * pivot - 2 * sums)
        return pivot, sums - k * pivot, squares
    places = tuple(range(2, values.ndim))
    sums = values.sum(places) if places else values
    pivot = (sums.to(wide).mean(0) / k).to(values.dtype)
    deviations = (values - pivot.view(1, -1, *(1 for _ in places))).square_()
    squares = (deviations.sum(places) if places else deviations).to(wide)
    return pivot.to(wide), sums.to(wide) - k * pivot.to(wide), squares


def _suits_the_kernel(values: torch.Tensor) -> bool:
    return (
        values.device.type == "cpu"
        and values.dtype == torch.float32
        and values.ndim == 4
        and values.is_contiguous(memory_format=torch.channels_last)
    )


@cache
def _kernel() -> Callable[..., Any]:
    """Return the sums of channels-last images in one reading; torch takes four."""
    from recal.kernels import compiled

    return compiled(_add_image_sums)


def _add_image_sums(
    images: NDArray[np.float32], sums: NDArray[np.float64], squares: NDArray[np.float64]
) -> None:
    """Add to (N, C) what is in (N, places, C); four places at a time, which keeps sums in reach."""
    count, places, channels = images.shape
    fours = places - places % 4
    for i in range(count):
        for p in range(0, fours, 4):
            for c in range(channels):
                # times 1.0 in float64, where a float32 sum would round
                v0, v1 = images[i, p, c] * 1.0, images[i, p + 1, c] * 1.0
                v2, v3 = images[i, p + 2, c] * 1.0, images[i, p + 3, c] * 1.0
                sums[i, c] += (v0 + v1) + (v2 + v3)
                squares[i, c] += (v0 * v0 + v1 * v1) + (v2 * v2 + v3 * v3)
        for p in range(fours, places):
            for c in range(channels):
                v = images[i, p, c] * 1.0
                sums[i, c] += v
                squares[i, c] += v * v


# rows of `Moments.sums`: for image i with k values of sum a and sum of squares b, both of
# deviations from the pivot, the sums over images of these products
A, B, KA, KB, AA, AB, BB = range(7)
TINY = 1e-300


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
        pairs: Number of ordered pairs of images that shared a batch.
        pair_squares: Sum over those pairs of the squared inner product, over channels, of the two
            images' parts in the error: of the mean, and of the log-variance; (2,), float64. It
            tells how far channels err together.
    """

    images: int
    count: int
    square_count: int
    pivot: torch.Tensor
    sums: torch.Tensor
    lost: torch.Tensor
    pairs: int
    pair_squares: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor) -> Moments:
        """Return the moments of activations (N, C, ...), computed in float32 at least.

        Nothing is copied off the device.
        """
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        return cls.of_images(math.prod(values.shape[2:]), *image_sums(values, _wide(values.device)))

    @classmethod
    def of_images(cls, k: int, pivot: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Moments:
        """Return the moments of images whose sums are known.

        Args:
            k: Values behind each channel of one image, H x W.
            pivot: What deviations were taken from, (C,).
            a: Sums of deviations over each image's values, (N, C).
            b: Sums of their squares, (N, C).
        """
        rows = [a.sum(0), b.sum(0), k * a.sum(0), k * b.sum(0)]
        rows += [(a * a).sum(0), (a * b).sum(0), (b * b).sum(0)]
        sums = torch.stack(rows)
        n = len(a)
        return cls(
            n, n * k, n * k * k, pivot, sums, torch.zeros_like(sums), n * (n - 1),
            _pair_squares(a / k, b / k).to(sums),
        )  # fmt: skip

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
            self.pairs + other.pairs,
            self.pair_squares + other.pair_squares,
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
        return replace(self, pivot=pivot, sums=sums, lost=torch.zeros_like(sums))

    def on_cpu(self) -> Moments:
        """Return the same in float64 on the CPU."""
        return replace(
            self,
            pivot=self.pivot.cpu().double(),
            sums=self.sums.cpu().double(),
            lost=self.lost.cpu().double(),
            pair_squares=self.pair_squares.cpu().double(),
        )

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

    def independent_channels(self) -> tuple[float, float]:
        """Return how many independent channels would err as these do, for mean and log-variance.

        With S the covariance over channels of one image's part in the error, trace(S)^2 /
        trace(S^2): C where channels are independent and alike, 1 where they err together. The trace
        of S^2 is the mean over pairs of images of their squared inner product.

        Source: Satterthwaite, "An approximate distribution of estimates of variance components",
        Biometrics 2, 1946.
        """
        if not self.pairs:
            return 1.0, 1.0
        most = float(len(self.pivot))
        found = []
        for error, squares in zip(self.standard_errors(), self.pair_squares, strict=True):
            trace = float(error.square().sum()) * self.images
            of_square = max(float(squares) / self.pairs, trace**2 / most, TINY)
            found.append(min(most, max(1.0, trace**2 / of_square)))
        return found[0], found[1]

    @property
    def _total(self) -> torch.Tensor:
        return self.sums + self.lost


def _pair_squares(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the sums over pairs of images, (2,), from means and mean squares about the pivot."""
    variance = b.mean(0)
    safe = torch.where(variance > 0, variance, 1.0)
    squares = []
    for part in (a / safe.sqrt(), (b - variance) / safe):
        products = part.float() @ part.float().T
        squares.append(products.square().sum() - products.diagonal().square().sum())
    return torch.stack(squares)


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
