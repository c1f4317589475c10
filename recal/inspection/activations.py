"""Finding out, by labelled images, whether a network was trained with its norms' activations."""

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from recal.checkpoint.checkpoint import Checkpoint, Finding
from recal.data.normalise import normalise_array
from recal.variant.build import build_classifier
from recal.variant.variant import Variant

# images that are scored, and how many in a batch
SCORED, BATCH = 200, 50
# standard deviations of the difference from which on one of the two is clearly better
CLEARLY = 3.0


def compare_activations(
    checkpoint: Checkpoint,
    variants: Mapping[str, Variant],
    pixels: NDArray[np.uint8],
    answers: NDArray[np.int64],
    kept: NDArray[np.int64] | None = None,
) -> Finding:
    """Score variants with and without the activations inside of BatchNorm layers.

    Args:
        checkpoint: The weights, for which `lost_activations` is a finding.
        variants: The variants, by the name to call them.
        pixels: Images, uint8 (N, size, size, 3).
        answers: The right classes of each image, int64 (N, A).
        kept: Indices of the logits that the classes count, or None for all of them.

    Returns:
        The finding with the accuracies of both, and the option to give.
    """
    lost = checkpoint.lost_activations
    assert lost is not None
    told, best = [], np.zeros((2, len(answers)), bool)
    for name, variant in variants.items():
        right = np.array([_right(checkpoint, variant, on, pixels, answers, kept) for on in (1, 0)])
        told.append(f"{name} {right[0].mean():.1%} with and {right[1].mean():.1%} without")
        # the branch that is better in its better form knows these images best
        best = max(best, right, key=lambda pair: pair.sum(axis=1).max())
    gap = int(best[0].sum()) - int(best[1].sum())
    if abs(gap) <= CLEARLY * sqrt((best[0] != best[1]).sum()):
        follows = "Neither is clearly better: give --no-bn-act or --bn-act by how it was trained."
    elif gap < 0:
        follows = "It was trained without them: give --no-bn-act."
    else:
        follows = "It was trained with them: give --bn-act, which says so and ends this warning."
    what = (
        f"{len(lost.layers)} BatchNorm layers with several branches carry the network's "
        f"activations, which some training code drops. Accuracy on {len(answers):,} images: "
        f"{', '.join(told)}"
    )
    return replace(lost, what=what, follows=follows)


@torch.inference_mode()
def _right(
    checkpoint: Checkpoint,
    variant: Variant,
    bn_act: int,
    pixels: NDArray[np.uint8],
    answers: NDArray[np.int64],
    kept: NDArray[np.int64] | None,
) -> NDArray[np.bool_]:
    spec = msgspec.structs.replace(variant.spec, bn_act=bool(bn_act))
    network = build_classifier(checkpoint, replace(variant, spec=spec)).network
    images = torch.from_numpy(normalise_array(pixels, spec.normalisation))
    logits = torch.cat([network(part) for part in torch.split(images, BATCH)]).numpy()
    predicted = (logits if kept is None else logits[:, kept]).argmax(axis=1)
    result: NDArray[np.bool_] = (predicted[:, None] == answers).any(axis=1)
    return result
