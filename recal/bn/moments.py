"""Pooled moments: count, mean and sum of squared deviations, merged exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Moments:
    """Moments of the values of each channel.

    Attributes:
        count: Number of values behind each channel, N x H x W.
        mean: float64 (C,).
        m2: Sum of squared deviations from the mean, float64 (C,).
    """

    count: int
    mean: torch.Tensor
    m2: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor) -> Moments:
        """Return the moments of activations (N, C, ...), computed in float32 at least.

        Deviations are taken from the mean before they are squared, so a large mean costs no digits.
        """
        dims = [0, *range(2, values.ndim)]
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        variance, mean = torch.var_mean(values, dims, correction=0)
        count = values.numel() // values.shape[1]
        return cls(count, mean.double(), variance.double() * count)

    @property
    def variance(self) -> torch.Tensor:
        """Biased variance, float64 (C,)."""
        return self.m2 / self.count

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of values together.

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
        sample variances", 1979.
        """
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + delta.square() * (self.count * other.count / count)
        return Moments(count, mean, m2)
