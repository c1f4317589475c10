"""The images on which an int8 file gets its ranges, and those by which it is judged."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recal.data.images import ImageSource
from recal.data.sampling import even_over_classes, spread
from recal.data.splits import TEST, TRAIN
from recal.datasets.classes import class_answers, network_order
from recal.errors import InputError, UsageError
from recal.networks.spec import ModelSpec
from recal.onnx_file.record import RangeImagesRecord
from recal.policies.families import open_family_images
from recal.policies.policy import Policy, load_policy, policy_names
from recal.policies.prepared import PreparedImages
from recal.variant.statistics import EstimatedStatistics, Statistics

RANGE_IMAGES = 128
TEST_IMAGES = 2000


@dataclass(frozen=True, eq=False, kw_only=True)
class RangeImages:
    """Images on which activations get their ranges.

    Attributes:
        record: Policy, data and seed of the images.
        pixels: uint8 (N, size, size, C), after the policy.
        indices: Numbers of the images in the data set, int64 (N,).
        where: The folder or file that they were read from.
    """

    record: RangeImagesRecord
    pixels: NDArray[np.uint8]
    indices: NDArray[np.int64]
    where: Path


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldOutImages:
    """Images by which an int8 file is judged.

    Attributes:
        pixels: uint8 (N, size, size, C), prepared as test images are.
        answers: The classes that are right for each, int64 (N, A), or None if there are none that
            fit the network's classes.
        what: A description for people.
    """

    pixels: NDArray[np.uint8]
    answers: NDArray[np.int64] | None
    what: str


def variant_policy(spec: ModelSpec, statistics: Statistics) -> Policy:
    """Return the policy that a variant's statistics are of; `clean` where they are of none.

    Raises:
        UsageError: The record does not hold the policy's text.
    """
    if not isinstance(statistics, EstimatedStatistics):
        return spec.clean_policy
    name = statistics.policy
    try:
        shipped = shipped_policy(spec, name, statistics.policy_sha256)
        return shipped or Policy.from_text(name, statistics.policy_text)
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


def range_images(
    spec: ModelSpec,
    statistics: Statistics,
    data: Path | None,
    *,
    policy: Policy | None = None,
    count: int = RANGE_IMAGES,
) -> RangeImages:
    """Choose training images, evenly over the classes, and apply the variant's own policy.

    Args:
        spec: Preprocessing.
        statistics: Those of the variant; their policy and seed give the same images and draws.
        data: The user's folder, or None to look in the usual places.
        policy: A policy that overrides the variant's own.
        count: Largest number of images.

    Raises:
        InputError: There are no images, or they do not fit.
        UsageError: The variant's policy cannot be read from its record.
    """
    policy = policy or variant_policy(spec, statistics)
    source = open_family_images(spec, data, TRAIN)
    seed = statistics.seed if isinstance(statistics, EstimatedStatistics) else 0
    order = np.random.default_rng(seed).permutation(len(source))
    indices = even_over_classes(order, source.labels, count)
    record = RangeImagesRecord(
        policy=policy.name,
        policy_sha256=policy.sha256,
        data_sha256=source.fingerprint(indices.tolist()),
        images=len(indices),
        seed=seed,
        class_balanced=source.labels is not None,
    )
    pixels = PreparedImages(source, policy, seed, spec.preparation).batch(indices)
    return RangeImages(record=record, pixels=pixels, indices=indices, where=source.where)


def held_out_images(
    spec: ModelSpec, data: Path | None, used: RangeImages, count: int = TEST_IMAGES
) -> HeldOutImages:
    """Read test images that are spread evenly over a data set, without those used for the ranges.

    Args:
        spec: Preprocessing.
        data: The user's folder, or None to look in the usual places.
        used: Images that are left out if the folder has no splits.
        count: Largest number of images.

    Raises:
        InputError: There are no images, or none but those used for the ranges.
    """
    source = open_family_images(spec, data, TEST)
    left = np.arange(len(source))
    if source.where == used.where:
        left = np.setdiff1d(left, used.indices)
    if not len(left):
        raise InputError(
            f"{source.where}: expected images beside the {len(used.indices)} used for the ranges, "
            "got none. Take fewer with --int8-samples, or give more."
        )
    indices = left[spread(len(left), count)]
    pixels = PreparedImages(source, spec.clean_policy, 0, spec.preparation).batch(indices)
    answers = _answers(source, spec)
    kind = "unlabelled" if answers is None else "labelled"
    return HeldOutImages(
        pixels=pixels,
        answers=None if answers is None else answers[indices],
        what=f"{len(indices):,} {kind} images of {source.where}",
    )


def _answers(source: ImageSource, spec: ModelSpec) -> NDArray[np.int64] | None:
    """Return the network's classes of all images, or None if the labels do not give them."""
    try:
        return class_answers(source, network_order(spec.classes, spec.family, source.classes))
    except InputError:
        return None
