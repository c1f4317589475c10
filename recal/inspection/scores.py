"""Scoring branches on images: which one is the clean one, and how far off each is."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from recal.calibration.moments import Moments
from recal.data.batches import Batches
from recal.data.folders import find_images
from recal.data.normalise import normalise
from recal.data.sampling import seeded_batches
from recal.errors import InputError
from recal.inspection.distances import gaussian_distances
from recal.networks.build import build
from recal.networks.plain import batch_norms
from recal.policies.policy import load_policy
from recal.policies.prepared import PreparedTogether

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm

    from recal.checkpoint.checkpoint import Checkpoint
    from recal.progress import Progress


BATCH = 100


@dataclass(frozen=True, kw_only=True)
class BranchScore:
    """How one branch does on clean images.

    Attributes:
        branch: Its name.
        images: Number of images.
        accuracy: Top-1 accuracy as a fraction, or None where the images have no labels.
        data_distance: Symmetric KL, mean over channels, in nats, between the branch's statistics
            and those of the same images as this branch's network in eval mode sees them; median
            over layers.
        furthest: The layer where it is largest.
        furthest_distance: And how large it is there.
    """

    branch: str
    images: int
    accuracy: float | None
    data_distance: float
    furthest: str
    furthest_distance: float


@torch.inference_mode()
def score_branches(
    checkpoint: Checkpoint,
    data: Path,
    *,
    samples: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
    **asked: Any,
) -> tuple[BranchScore, ...]:
    """Send the same clean images through every branch.

    Args:
        checkpoint: The branches.
        data: A folder of images, with or without labels; its test images where it has a split.
        samples: How many images at most, drawn by the seed.
        seed: Draws the images.
        progress: Called with the images done and their total number, over all branches.
        **asked: Fields of `ModelSpec` that the file does not give.

    Raises:
        InputError: No images, or labels beyond the network's classes.
        UsageError: The architecture cannot be told.
    """
    spec = checkpoint.spec(**asked)
    source = find_images(data, (), "test", classes=None, what="images to score the branches on")
    chosen = seeded_batches(len(source), samples, BATCH, seed)
    labels = None if source.labels is None else torch.from_numpy(source.labels)
    if labels is not None and int(labels.max()) >= spec.classes:
        raise InputError(
            f"{data}: expected labels of {spec.classes} classes, got label {int(labels.max())}. "
            "Give the images that the network was trained for, or images without labels."
        )
    images = PreparedTogether(source, [load_policy(spec.family, "clean")], seed, spec.size)
    batches = Batches(images, chosen, keep=True)
    done, total = 0, sum(map(len, chosen)) * len(checkpoint.branches)
    scores = []
    for name in checkpoint.branches:
        network = build(checkpoint, name, **asked)
        moments = _watch(network)
        correct = 0
        for indices, (pixels,) in zip(chosen, batches, strict=True):
            batch = normalise(pixels, spec.mean, spec.std, torch.device("cpu"))
            predicted = network(batch).argmax(1)
            done += len(indices)
            if progress is not None:
                progress(done, total)
            if labels is not None:
                correct += int((predicted == labels[indices]).sum())
        count = sum(map(len, chosen))
        distances = _distances(network, moments)
        furthest = max(distances, key=lambda layer: distances[layer])
        scores.append(
            BranchScore(
                branch=name,
                images=count,
                accuracy=None if labels is None else correct / count,
                data_distance=median(distances.values()),
                furthest=furthest,
                furthest_distance=distances[furthest],
            )
        )
    return tuple(scores)


def _watch(network: nn.Module) -> dict[str, Moments]:
    """Collect the moments of what reaches each BatchNorm layer."""
    moments: dict[str, Moments] = {}

    def collect(name: str, values: torch.Tensor) -> None:
        found = Moments.of(values)
        moments[name] = moments[name].merge(found) if name in moments else found

    def watch(name: str, layer: _BatchNorm) -> None:
        layer.register_forward_pre_hook(lambda _, inputs: collect(name, inputs[0]))

    for name, layer in batch_norms(network).items():
        watch(name, layer)
    return moments


def _distances(network: nn.Module, moments: dict[str, Moments]) -> dict[str, float]:
    layers = batch_norms(network)
    result = {}
    for name, found in moments.items():
        mean, variance = layers[name].running_mean, layers[name].running_var
        assert mean is not None
        assert variance is not None
        result[name] = gaussian_distances(mean, variance, found.mean, found.variance)[2]
    return result
