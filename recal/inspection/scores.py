"""Scoring branches on images: how accurate each is, and how far its statistics are from theirs."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

from recal.calibration.estimators import merge_found
from recal.calibration.hooks import Found, Listener
from recal.checkpoint.checkpoint import Checkpoint, Finding
from recal.data.batches import Batches
from recal.data.folders import find_images
from recal.data.normalise import normalise
from recal.data.sampling import seeded_batches
from recal.datasets.classes import class_answers, network_order
from recal.inspection.activations import SCORED, compare_activations
from recal.inspection.distances import gaussian_distances
from recal.policies.prepared import PreparedImages, PreparedTogether
from recal.progress import Progress, silent
from recal.variant.build import build_classifier
from recal.variant.plain import batch_norms
from recal.variant.variant import branch_variant

BATCH = 100


@dataclass(frozen=True, kw_only=True)
class BranchScore:
    """The results of one branch on clean images.

    Attributes:
        branch: Name of the branch.
        images: Number of images.
        accuracy: Top-1 accuracy in [0, 1], or None if the images have no labels.
        data_distance: Symmetric KL divergence between the branch's statistics and those of the
            images as this branch's network in eval mode sees them, in nats, mean over channels,
            median over layers.
        furthest: The layer with the largest distance.
        furthest_distance: The distance of that layer.
    """

    branch: str
    images: int
    accuracy: float | None
    data_distance: float
    furthest: str
    furthest_distance: float


def score_activations(
    checkpoint: Checkpoint, data: Path, *, samples: int = 2000, seed: int = 0
) -> Finding | None:
    """Score the branches with and without the activations of their layers, where that is in doubt.

    Args:
        checkpoint: The checkpoint with the branches.
        data: A folder of images.
        samples: Largest number of images, of which some are used.
        seed: Seed of the choice of images.

    Returns:
        The finding of `compare_activations`; None without doubt or without labels.
    """
    spec = checkpoint.spec
    source = find_images(data, (), "test", what="images to score the branches on")
    if checkpoint.lost_activations is None:
        return None
    (chosen,) = seeded_batches(len(source), min(samples, SCORED), SCORED, seed)
    images = PreparedImages(source, spec.clean_policy, seed, spec.preparation)
    variants = {name: branch_variant(checkpoint, name) for name in checkpoint.branches}
    answers = class_answers(source, network_order(spec.classes, spec.family, source.classes))
    if answers is None:
        return None
    return compare_activations(checkpoint, variants, images.batch(chosen), answers[chosen])


@torch.inference_mode()
def score_branches(
    checkpoint: Checkpoint,
    data: Path,
    *,
    samples: int = 2000,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[BranchScore, ...]:
    """Send the same clean images through every branch.

    Args:
        checkpoint: The checkpoint with the branches.
        data: A folder of images, with or without labels; if it has splits, its test images.
        samples: Largest number of images, which the seed chooses.
        seed: Seed of the choice of images.
        progress: Called with the numbers of images done and in total, over all branches.

    Returns:
        The scores in the order of the branches.

    Raises:
        InputError: There are no images, or labels that are not of the network's classes.
        UsageError: The architecture cannot be determined.
    """
    spec = checkpoint.spec
    source = find_images(data, (), "test", what="images to score the branches on")
    chosen = seeded_batches(len(source), samples, BATCH, seed)
    numbers = class_answers(source, network_order(spec.classes, spec.family, source.classes))
    answers = None if numbers is None else torch.from_numpy(numbers)
    images = PreparedTogether(source, [spec.clean_policy], seed, spec.preparation)
    batches = Batches(images, chosen, keep=True)
    done, total = 0, sum(map(len, chosen)) * len(checkpoint.branches)
    scores = []
    for name in checkpoint.branches:
        listener = Listener(build_classifier(checkpoint, name).network, by_batch=False)
        moments: Found = {}
        correct = 0
        for indices, (pixels,) in zip(chosen, batches, strict=True):
            found = listener(normalise(pixels, spec.normalisation, torch.device("cpu")))
            moments = merge_found([moments, found])
            done += len(indices)
            progress(done, total)
            if answers is not None:
                predicted = listener.output.argmax(1, keepdim=True)
                correct += int((predicted == answers[indices]).any(1).sum())
        count = sum(map(len, chosen))
        distances = _distances(listener.network, moments)
        furthest = max(distances, key=lambda layer: distances[layer])
        scores.append(
            BranchScore(
                branch=name,
                images=count,
                accuracy=None if answers is None else correct / count,
                data_distance=median(distances.values()),
                furthest=furthest,
                furthest_distance=distances[furthest],
            )
        )
    return tuple(scores)


def _distances(network: nn.Module, moments: Found) -> dict[str, float]:
    layers = batch_norms(network)
    result = {}
    for name, found in moments.items():
        mean, variance = (layers[name].get_buffer(leaf) for leaf in ("running_mean", "running_var"))
        result[name] = gaussian_distances(mean, variance, found.mean, found.variance)[2]
    return result
