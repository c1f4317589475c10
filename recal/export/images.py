"""The images that an int8 file is calibrated on, and those that it is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from recal.data.folders import TEST, TRAIN, open_images
from recal.data.sampling import even_over_classes
from recal.datasets.imagenet import wnids
from recal.errors import InputError, UsageError
from recal.policies.families import open_family_images
from recal.policies.policy import Policy, load_policy, policy_names
from recal.policies.prepared import PreparedImages
from recal.resources import sample_images

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from recal.data.images import ImageSource
    from recal.networks.spec import ModelSpec


# enough to tell branches apart, and run in a second
IMAGES = 256


def comparison_images(
    spec: ModelSpec, data: Path | None, count: int
) -> tuple[NDArray[np.uint8], str]:
    """Read images spread evenly over a data set.

    Args:
        spec: Says which preparation and size.
        data: The user's folder, or None for the bundled images, resized to the network's input.
        count: How many at most.

    Returns:
        uint8 (n, size, size, 3), and what they are, for people.
    """
    if data is None:
        source = open_images(sample_images(), TEST)
        chosen = [Image.fromarray(source[int(i)]) for i in spread(len(source), count)]
        resized = [np.asarray(image.resize((spec.size, spec.size))) for image in chosen]
        return np.stack(resized), f"{len(resized)} bundled Fashion-MNIST images"
    source = open_images(data, TEST)
    images = PreparedImages(source, load_policy(spec.family, "clean"), 0, spec.size)
    read = images.batch(spread(len(source), count))
    return read, f"{len(read)} images of {source.where}"


def spread(available: int, count: int) -> NDArray[np.int64]:
    """Return at most `count` numbers from 0 to `available` - 1, evenly apart.

    Raises:
        InputError: There is nothing to choose from.
    """
    if not available:
        raise InputError("expected images, got none.")
    return np.unique(np.linspace(0, available - 1, min(count, available)).astype(np.int64))


CALIBRATION_IMAGES = 128
TEST_IMAGES = 2000


@dataclass(frozen=True, eq=False, kw_only=True)
class CalibrationImages:
    """Images that activations take their ranges from.

    Attributes:
        pixels: uint8 (N, size, size, 3), under the policy.
        record: What they are: `policy`, `policy_sha256`, `data_sha256`, `images`, `seed`,
            `class_balanced`.
        indices: Their numbers in the data set, int64 (N,).
        where: The folder or file that they were read from.
    """

    pixels: NDArray[np.uint8]
    record: Mapping[str, Any]
    indices: NDArray[np.int64]
    where: Path


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldOutImages:
    """Images that a file is judged by.

    Attributes:
        pixels: uint8 (N, size, size, 3), prepared as the family's clean images are.
        labels: int64 (N,), or None where there are none that fit the network's classes.
        what: What they are, for people.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    what: str


def variant_policy(spec: ModelSpec, statistics: Mapping[str, Any]) -> Policy:
    """Return the policy that a variant's statistics are of; `clean` where they are of none.

    Raises:
        UsageError: The record does not hold the policy's text.
    """
    if statistics.get("source") != "policy":
        return load_policy(spec.family, "clean")
    name = statistics["policy"]
    shipped = shipped_policy(spec, name, statistics["policy_sha256"])
    if shipped is not None:
        return shipped
    try:
        return Policy.from_text(name, statistics["policy_text"])
    except InputError as error:
        raise UsageError(
            f"--int8: expected a record with the text of policy '{name}', got another text "
            f"({error}). Name it with --policy, or another with --mode."
        ) from error


def shipped_policy(spec: ModelSpec, name: str, sha256: str) -> Policy | None:
    """Return the family's policy of this name, or None where it is another than was recorded."""
    if name not in policy_names(spec.family):
        return None
    policy = load_policy(spec.family, name)
    return policy if policy.sha256 == sha256 else None


def calibration_images(
    spec: ModelSpec,
    statistics: Mapping[str, Any],
    data: Path | None,
    *,
    policy: Policy | None = None,
    count: int = CALIBRATION_IMAGES,
) -> CalibrationImages:
    """Choose training images, as many of each class as can be, and apply the variant's own policy.

    Args:
        spec: Preprocessing.
        statistics: The variant's record of its statistics: policy and seed, by which images and
            draws are those that the statistics were estimated on, as far as there are so many.
        data: The user's folder, or None to look in the usual places.
        policy: Another policy.
        count: How many images at most.

    Raises:
        InputError: There are no images, or they do not fit.
        UsageError: The policy cannot be had.
    """
    policy = policy or variant_policy(spec, statistics)
    source = open_family_images(spec, data, TRAIN)
    seed = int(statistics.get("seed", 0))
    order = np.random.default_rng(seed).permutation(len(source))
    indices = even_over_classes(order, source.labels, count)
    record = {
        "policy": policy.name,
        "policy_sha256": policy.sha256,
        "data_sha256": source.fingerprint(indices.tolist()),
        "images": len(indices),
        "seed": seed,
        "class_balanced": source.labels is not None,
    }
    pixels = PreparedImages(source, policy, seed, spec.size).batch(indices)
    return CalibrationImages(pixels=pixels, record=record, indices=indices, where=source.where)


def held_out_images(
    spec: ModelSpec, data: Path | None, calibration: CalibrationImages, count: int = TEST_IMAGES
) -> HeldOutImages:
    """Read test images spread evenly over a data set, none of those that were calibrated on.

    Args:
        spec: Preprocessing.
        data: The user's folder, or None to look in the usual places.
        calibration: The images left out, where the folder has no splits.
        count: How many at most.

    Raises:
        InputError: There are none, or none but those.
    """
    source = open_family_images(spec, data, TEST)
    left = np.arange(len(source))
    if source.where == calibration.where:
        left = np.setdiff1d(left, calibration.indices)
    if not len(left):
        raise InputError(
            f"{source.where}: expected images beside the {len(calibration.indices)} that are "
            "calibrated on, got none. Take fewer with --int8-images, or give more."
        )
    indices = left[spread(len(left), count)]
    pixels = PreparedImages(source, load_policy(spec.family, "clean"), 0, spec.size).batch(indices)
    labels = _labels(source, spec)
    if labels is not None:
        labels = labels[indices]
    kind = "labelled" if labels is not None else "unlabelled"
    return HeldOutImages(
        pixels=pixels, labels=labels, what=f"{len(indices):,} {kind} images of {source.where}"
    )


def _labels(source: ImageSource, spec: ModelSpec) -> NDArray[np.int64] | None:
    """Return the network's classes of all images, or None where the labels are not known as such.

    Class folders stand for the network's classes where there are as many; of ImageNet's a part
    will do, as they say which they are.
    """
    if source.labels is None:
        return None
    labels, folders = np.asarray(source.labels, np.int64), source.classes
    if folders and len(folders) != spec.classes:
        order = {wnid: number for number, wnid in enumerate(wnids("imagenet"))}
        if len(order) != spec.classes or not order.keys() >= set(folders):
            return None
        labels = np.array([order[folder] for folder in folders], np.int64)[labels]
    return labels if labels.min() >= 0 and labels.max() < spec.classes else None
