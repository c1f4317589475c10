"""Mixing variants of the same weights: the path between branches, and shrinkage towards a prior."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from recal.errors import InputError, UsageError
from recal.variant.variant import AFFINE, Variant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


TOTAL_TOLERANCE = 1e-6
MIX = "mix"


def mix(variants: Sequence[Variant], weights: Sequence[float]) -> Variant:
    """Mix variants: affine linearly, statistics as the moments of the mixture.

    With weights w_i: mean = sum w_i mean_i, var = sum w_i (var_i + mean_i^2) - mean^2, computed in
    float64 as sum w_i (var_i + (mean_i - mean)^2). So the statistics of two sets of images, mixed
    by the sets' shares, are the statistics of all the images.

    Args:
        variants: Of the same weights and architecture.
        weights: Not negative, of sum 1.

    Raises:
        UsageError: The weights are others.
        InputError: The variants belong to different weights.
    """
    if len(weights) != len(variants) or not variants:
        raise UsageError(f"mix: expected a weight for each of {len(variants)} variants.")
    fair = all(math.isfinite(w) and w >= 0 for w in weights)
    if not fair or abs(sum(weights) - 1) > TOTAL_TOLERANCE:
        shown = ", ".join(f"{w:g}" for w in weights)
        raise UsageError(f"mix: expected weights >= 0 of sum 1, got {shown}.")
    _check_same_network(variants)
    tensors: dict[str, torch.Tensor] = {}
    for name in variants[0].tensors:
        if name.endswith((*AFFINE, ".running_mean")):
            tensors[name] = _weighted([v.tensors[name] for v in variants], weights)
    for name in variants[0].tensors:
        if name.endswith(".running_var"):
            mean_name = f"{name.removesuffix('.running_var')}.running_mean"
            mean = tensors[mean_name]
            second = [
                v.tensors[name].double() + (v.tensors[mean_name].double() - mean).square()
                for v in variants
            ]
            tensors[name] = _weighted(second, weights)
    label = " + ".join(f"{w:g} {v.label}" for v, w in zip(variants, weights, strict=True))
    return _mixed(variants, tensors, {"label": label, "weights": list(weights)})


def blend_with_prior(source: Variant, adapted: Variant, prior: float) -> Variant:
    """Shrink statistics from n images towards those of the source domain.

    lambda = N / (N + n); mean and variance are each linear, lambda of the source's, without the
    variance between the two means. The affine is the source's.

    Args:
        source: The variant whose statistics are the prior.
        adapted: A variant whose statistics were estimated on n images.
        prior: N, the number of images that the prior counts for; not negative.

    Raises:
        UsageError: `prior` is negative, or `adapted` does not say how many images it is from.
        InputError: The variants belong to different weights.

    Source: Schneider et al., arXiv 2006.16971, section 3.
    """
    images = adapted.statistics.get("images")
    if not isinstance(images, int):
        raise UsageError(
            f"--prior: expected statistics estimated on images, got '{adapted.label}'. Put the "
            "calibrated variant second."
        )
    if not (math.isfinite(prior) and prior >= 0):
        raise UsageError(f"--prior: expected a number of images >= 0, got {prior:g}.")
    _check_same_network([source, adapted])
    share = prior / (prior + images)
    tensors = {
        name: tensor.double()
        if name.endswith(AFFINE)
        else _weighted([tensor, adapted.tensors[name]], [share, 1 - share])
        for name, tensor in source.tensors.items()
    }
    label = f"{adapted.label}, prior {prior:g}"
    return _mixed([source, adapted], tensors, {"label": label, "prior": prior})


def _weighted(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    # a weight of zero leaves a tensor out even where it holds NaN
    parts = [w * t.double() for t, w in zip(tensors, weights, strict=True) if w]
    return torch.stack(parts).sum(0)


def _check_same_network(variants: Sequence[Variant]) -> None:
    first = variants[0]
    for other in variants[1:]:
        if other.weights_sha256 != first.weights_sha256:
            raise InputError(
                f"mix: expected variants of the same weights ({first.weights_sha256[:12]}), got "
                f"'{other.label}' of others ({other.weights_sha256[:12]})."
            )
        if other.spec != first.spec:
            raise InputError(
                f"mix: expected the same architecture and preprocessing, got {first.spec} and "
                f"{other.spec}."
            )
        if other.tensors.keys() != first.tensors.keys():
            odd = sorted(other.tensors.keys() ^ first.tensors.keys())[0]
            raise InputError(f"mix: expected the same BatchNorm layers, got '{odd}' in one only.")


def _mixed(
    variants: Sequence[Variant], tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]
) -> Variant:
    parts = [{"affine": v.affine, "statistics": dict(v.statistics)} for v in variants]
    return Variant(
        tensors={name: tensor.float() for name, tensor in tensors.items()},
        weights_sha256=variants[0].weights_sha256,
        spec=variants[0].spec,
        affine=MIX if len({v.affine for v in variants}) > 1 else variants[0].affine,
        statistics={"source": MIX, **record, "parts": parts},
    )
