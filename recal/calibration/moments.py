"""Moments of the values of each channel, computed per image and merged without rounding loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import TYPE_CHECKING, Any

import torch

from recal.variant.statistics import LayerError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def image_sums(
    values: torch.Tensor, wide: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum the values of each image and channel, and their squares, as deviations from a pivot.

    Args:
        values: Activations (N, C, ...), float32 or float64.
        wide: Type of the sums: float64 if the device has it.

    Returns:
        The pivot, (C,), which is near the mean, so that squares stay precise; the sums of
        deviations, (N, C); and the sums of their squares, (N, C).
    """
    k = math.prod(values.shape[2:])
    kernel_fits = values.device.type == "cpu" and values.dtype == torch.float32
    if kernel_fits and values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        images = values.permute(0, 2, 3, 1).flatten(1, 2)
        sums, squares = torch.zeros((2, len(images), images.shape[2]), dtype=torch.float64)
        _kernel()(images.numpy(), sums.numpy(), squares.numpy())
        pivot = sums.mean(0) / k
        # in float64, because a mean of 10,000 standard deviations costs half of the digits
        squares += pivot * (k * pivot - 2 * sums)
        return pivot, sums - k * pivot, squares
    places = tuple(range(2, values.ndim))
    sums = values.sum(places) if places else values
    pivot = (sums.to(wide).mean(0) / k).to(values.dtype)
    deviations = (values - pivot.view(1, -1, *(1 for _ in places))).square_()
    squares = (deviations.sum(places) if places else deviations).to(wide)
    return pivot.to(wide), sums.to(wide) - k * pivot.to(wide), squares


@cache
def _kernel() -> Callable[..., Any]:
    """Return the kernel that sums channels-last images in one reading, where torch needs four."""
    from recal.kernels import compiled

    return compiled(_add_image_sums)


def _add_image_sums(
    images: NDArray[np.float32], sums: NDArray[np.float64], squares: NDArray[np.float64]
) -> None:
    """Add the sums over places of (N, places, C) to (N, C), four places at a time for speed."""
    count, places, channels = images.shape
    fours = places - places % 4
    for i in range(count):
        for p in range(0, fours, 4):
            for c in range(channels):
                # times 1.0 makes float64 of the values, because a float32 sum would round
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
TENSORS = ("pivot", "sums", "lost", "pair_squares")
TINY = 1e-300


@dataclass(frozen=True)
class ImageSums:
    """Sums of the values of each image and channel of a batch, over one use of a layer or more.

    Attributes:
        k: Values behind each channel of one image, H x W; over several uses, their sum.
        pivot: What deviations are taken from, (C,); near the mean, so that squares cost no digits.
        a: Sums of deviations over each image's values, (N, C).
        b: Sums of their squares, (N, C).
        each: Number of rows that belong to one image; then N is the number of rows.
    """

    k: int
    pivot: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    each: int = 1

    @classmethod
    def of(cls, values: torch.Tensor, images: int = 0) -> ImageSums:
        """Sum activations (N, C, ...) in float32 at least; nothing is copied off the device.

        Args:
            values: Activations. Several rows of an image are frames, crops, or halves of a siamese
                network.
            images: Number of images in the batch. If the rows are no multiple of it, each counts as
                an image.
        """
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        k, rows = math.prod(values.shape[2:]), len(values)
        each = rows // images if images and rows % images == 0 else 1
        return cls(k, *image_sums(values, _wide(values.device)), each)

    def plus(self, other: ImageSums) -> ImageSums:
        """Return the sums of the same images over the uses of both."""
        d = other.pivot - self.pivot
        a = other.a + other.k * d
        b = other.b + d * (2 * other.a + other.k * d)
        return replace(self, k=self.k + other.k, a=self.a + a, b=self.b + b)

    def mean_and_variance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and biased variance of the batch, each (C,)."""
        count = len(self.a) * self.k
        shift, square = self.a.sum(0) / count, self.b.sum(0) / count
        return self.pivot + shift, (square - shift.square()).clamp_min(0)

    def moments(self) -> Moments:
        """Return the moments of the batch; several rows of an image count as equal ones."""
        k, a, b, n = self.k, self.a, self.b, len(self.a)
        rows = [a.sum(0), b.sum(0), k * a.sum(0), k * b.sum(0)]
        rows += [(a * a).sum(0), (a * b).sum(0), (b * b).sum(0)]
        sums = torch.stack(rows)
        # what images differ by is then at most overrated (Cauchy and Schwarz)
        sums[KA:] *= self.each
        return Moments(
            images=n // self.each,
            count=n * k,
            square_count=n * k * k * self.each,
            pivot=self.pivot,
            sums=sums,
            lost=torch.zeros_like(sums),
            pairs=n * (n - 1),
            pair_squares=_pair_squares(a / k, b / k).to(sums),
        )


@dataclass(frozen=True)
class Moments:
    """Moments of the values of each channel, and their variation between images.

    Attributes:
        images: Number of images, N.
        count: Number of values behind each channel, the sum over images of k = H x W.
        square_count: Sum over images of k^2.
        pivot: Origin of the deviations, (C,); near the mean, so that squares stay precise.
        sums: Sums over images, (7, C), float64, or float32 on devices without float64.
        lost: Rounding errors of `sums`, to be added to them, of the same shape and type.
        pairs: Number of ordered pairs of images that shared a batch.
        pair_squares: Sum over those pairs of the squared inner product, over channels, of the two
            images' parts in the error: of the mean, and of the log-variance; (2,), float64. It
            shows how far the errors of channels are correlated.
        each: The moments of each use, if a layer was used several times for one batch; they are
            not merged with those of other batches.
    """

    images: int
    count: int
    square_count: int
    pivot: torch.Tensor
    sums: torch.Tensor
    lost: torch.Tensor
    pairs: int
    pair_squares: torch.Tensor
    each: tuple[Moments, ...] = ()

    @classmethod
    def of(cls, values: torch.Tensor) -> Moments:
        """Return the moments of activations (N, C, ...), as `ImageSums.of` sums them."""
        return ImageSums.of(values).moments()

    @classmethod
    def of_uses(cls, uses: Sequence[ImageSums]) -> Moments:
        """Return the moments over all uses of a layer for one batch; an image counts once."""
        each = tuple(sums.moments() for sums in uses)
        if len(each) == 1:
            return each[0]
        if len({len(sums.a) for sums in uses}) == 1:
            pooled = reduce(ImageSums.plus, uses).moments()
        else:  # uses of other rows, which belong to no image in particular
            pooled = reduce(Moments.merge, each)
        return replace(pooled, each=each)

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

        Sums are added together with their rounding errors, so that order and partition affect only
        the last digit, even in float32.

        Source: Knuth, The Art of Computer Programming, volume 2, section 4.2.2, theorem B.
        """
        other = other.about(self.pivot)
        total = self.sums + other.sums
        part = total - self.sums
        error = (self.sums - (total - part)) + (other.sums - part)
        added = ("images", "count", "square_count", "pairs", "pair_squares")
        return replace(
            self,
            sums=total,
            lost=self.lost + other.lost + error,
            each=(),
            **{name: getattr(self, name) + getattr(other, name) for name in added},
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
        """Return the same moments in float64 on the CPU."""
        return replace(
            self,
            each=(),
            **{name: getattr(self, name).cpu().double() for name in TENSORS},
        )

    def standard_errors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the standard errors of mean and variance, with images as independent draws.

        The errors follow from the spread over images of k (mean_i - mean), and of the analogous
        term for the variance (the delta method for ratios). They are conditional on the statistics
        of earlier layers.

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
        of_variance = s[BB] - variance * (2 * s[KB] - variance * self.square_count)
        scale = math.sqrt(self.images / (self.images - 1)) / self.count
        varies = variance > 0
        safe = torch.where(varies, variance, 1.0)
        mean = s[AA].clamp_min(0).sqrt() * scale / safe.sqrt()
        log_variance = of_variance.clamp_min(0).sqrt() * scale / safe
        return torch.where(varies, mean, 0.0), torch.where(varies, log_variance, 0.0)

    def error(self) -> LayerError:
        """Return the errors of a layer, rounded to four digits.

        The 95 % quantile of a root mean square over channels is near its expectation if the errors
        of channels are independent, and 1.96 times as large if they are equal. It is taken from the
        chi-square distribution with as many degrees of freedom as there are independent channels.
        """
        errors = [float(error.square().mean().sqrt()) for error in self.standard_errors()]
        return LayerError.with_bounds(errors, self.independent_channels())

    def independent_channels(self) -> tuple[float, float]:
        """Return the effective numbers of independent channels, for mean and log-variance.

        With S the covariance over channels of one image's part in the error, trace(S)^2 /
        trace(S^2): C if channels are independent and alike, 1 if their errors are equal. The trace
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
