"""Mixing variants of the same weights: the path between branches, and shrinkage towards a prior."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recal.errors import InputError, UsageError
from recal.variant.statistics import MixedPart, MixedStatistics
from recal.variant.variant import AFFINE, Variant

TOTAL_TOLERANCE = 1e-6


def mix(variants: Sequence[Variant], weights: Sequence[float]) -> Variant:
    """Mix variants: affine linearly, statistics as the moments of the mixture.

    With weights w_i: mean = sum w_i mean_i, var = sum w_i (var_i + (mean_i - mean)^2), in float64.
    The statistics of two sets of images, mixed by the sets' shares of the images, are therefore the
    statistics of all the images.

    Args:
        variants: Variants of the same weights and architecture.
        weights: Share of each variant; at least 0, with sum 1.

    Raises:
        UsageError: The shares are negative or do not sum to 1.
        InputError: The variants belong to different weights.
    """
    if len(weights) != len(variants) or not variants:
        raise UsageError(f"mix: expected a weight for each of {len(variants)} variants.")
    if not (all(w >= 0 for w in weights) and abs(sum(weights) - 1) <= TOTAL_TOLERANCE):
        shown = ", ".join(f"{w:g}" for w in weights)
        raise UsageError(f"mix: expected weights >= 0 of sum 1, got {shown}.")
    _check_same_network(variants)
    names = variants[0].tensors
    tensors = {name: _weighted([v.tensors[name] for v in variants], weights) for name in names}
    for variance in (name for name in names if name.endswith(".running_var")):
        mean = f"{variance.removesuffix('var')}mean"
        seconds = [
            v.tensors[variance] + np.square(v.tensors[mean].astype(np.float64) - tensors[mean])
            for v in variants
        ]
        tensors[variance] = _weighted(seconds, weights)
    return _mixed(variants, tensors, weights)


def blend_with_prior(source: Variant, adapted: Variant, prior: float) -> Variant:
    """Shrink statistics from n images towards those of the source domain.

    With lambda = N / (N + n), mean and variance are each lambda times the source's plus
    (1 - lambda) times the adapted, without the variance between the two means. Layers that saw no
    images, because others were chosen or none reached them, keep the source's statistics. The
    affine is the source's.

    Args:
        source: The variant whose statistics are the prior.
        adapted: A variant whose statistics were estimated on n images.
        prior: N, the number of images that the prior counts for; at least 0.

    Raises:
        UsageError: `prior` is negative, or the statistics of `adapted` were not estimated on
            images.
        InputError: The variants belong to different weights.

    Source: Schneider et al., arXiv 2006.16971, section 3.
    """
    estimated = adapted.estimated
    images = estimated.images
    if not (math.isfinite(prior) and prior >= 0):
        raise UsageError(f"--prior: expected a number of images >= 0, got {prior:g}.")
    _check_same_network([source, adapted])
    share = prior / (prior + images)
    seen = {*(estimated.layers or adapted.layers)} - {*estimated.layers_without_data}
    tensors = {
        name: tensor.astype(np.float64)
        if name.endswith(AFFINE) or name.rpartition(".")[0] not in seen
        else _weighted([tensor, adapted.tensors[name]], [share, 1 - share])
        for name, tensor in source.tensors.items()
    }
    return _mixed([source, adapted], tensors, [share, 1 - share], prior)


def _weighted(tensors: Sequence[NDArray[Any]], weights: Sequence[float]) -> NDArray[np.float64]:
    # a weight of zero leaves a tensor out even if it holds NaN
    parts = [w * t.astype(np.float64) for t, w in zip(tensors, weights, strict=True) if w]
    return np.asarray(np.sum(parts, axis=0))


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
    variants: Sequence[Variant],
    tensors: Mapping[str, NDArray[np.float64]],
    weights: Sequence[float],
    prior: float | None = None,
) -> Variant:
    parts = tuple(MixedPart(affine=v.affine, statistics=v.statistics) for v in variants)
    return replace(
        variants[0],
        tensors={name: tensor.astype(np.float32) for name, tensor in tensors.items()},
        affine="mix" if len({part.affine for part in parts}) > 1 else parts[0].affine,
        statistics=MixedStatistics(parts=parts, weights=tuple(map(float, weights)), prior=prior),
    )
