"""What an ONNX file should compute, and the images on which that is examined."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from recal.checkpoint.checkpoint import Checkpoint
from recal.data.folders import open_images
from recal.data.images import with_channels
from recal.data.sampling import spread
from recal.data.splits import TEST
from recal.errors import InputError
from recal.files import sample_images
from recal.networks.detect import RGB
from recal.networks.outputs import width
from recal.networks.spec import ModelSpec
from recal.policies.prepared import PreparedImages
from recal.variant.build import build_classifier
from recal.variant.statistics import BranchStatistics
from recal.variant.variant import Variant, branch_variant

IMAGES = 256  # enough to tell branches apart within a second


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """One variant that an ONNX file is made of, or should be.

    Attributes:
        name: The variant's name in the file.
        variant: BatchNorm tensors and preprocessing.
        network: The network that is traced; in eval mode, on the CPU.
        reference: The network that the file is compared with: that of the architecture's own code
            where recal replaced layers of it; in eval mode, on the CPU.
        rivals: Networks of the same shape that the file must not be, by name.
        images: Images to compare outputs on, uint8 (N, size, size, C).
        where: What is examined, for messages: `export`, or a file's name.
    """

    name: str
    variant: Variant
    network: nn.Module
    reference: nn.Module
    rivals: Mapping[str, nn.Module]
    images: NDArray[np.uint8]
    where: str

    @property
    def spec(self) -> ModelSpec:
        """Architecture and preprocessing."""
        return self.variant.spec


def make_subjects(
    checkpoint: Checkpoint,
    variants: Mapping[str, Variant],
    images: NDArray[np.uint8],
    where: str = "export",
) -> tuple[Subject, ...]:
    """Build the networks of all variants in one file.

    The rivals of a single variant are the checkpoint's other branches, if it stores their
    statistics; the rivals of one among several are the others.

    Args:
        checkpoint: The weights.
        variants: The variants, by name, in the order of the file.
        images: Images to compare outputs on, uint8 (N, size, size, C).
        where: What is examined, for messages.

    Raises:
        InputError: A network cannot be built, or variants or images differ in preprocessing.
    """
    first = next(iter(variants.values()))
    for name, variant in variants.items():
        if variant.spec != first.spec:
            raise InputError(
                f"{name}: expected the preprocessing of the other variants, {first.spec}, got "
                f"{variant.spec}."
            )
    channels, side, _ = first.spec.input_shape
    if images.dtype != np.uint8 or not len(images) or images.shape[1:] != (side, side, channels):
        raise InputError(
            f"{where}: expected images uint8 (N, {side}, {side}, {channels}), got {images.dtype} "
            f"{images.shape}."
        )
    built = {name: build_classifier(checkpoint, variant) for name, variant in variants.items()}
    for name, pair in built.items():
        found = width(pair.network, torch.zeros(1, images.shape[-1], side, side))
        if found not in (None, first.spec.classes):
            raise InputError(
                f"{where}: {name}: expected {first.spec.classes} logits, because the variant says "
                f"so many classes, got {found}. Give --classes {found}, and calibrate again if it "
                "is a variant file."
            )
    rivals = {name: pair.network for name, pair in built.items()}
    if len(built) == 1 and not checkpoint.missing:
        rivals = {
            name: build_classifier(
                checkpoint, branch_variant(checkpoint, name, spec=first.spec)
            ).network
            for name in checkpoint.branches
            if (first.affine, first.statistics) != (name, BranchStatistics(branch=name))
        }
    return tuple(
        Subject(
            name=name,
            variant=variants[name],
            network=pair.network,
            reference=pair.own,
            rivals={n: rival for n, rival in rivals.items() if rival is not pair.network},
            images=images,
            where=where,
        )
        for name, pair in built.items()
    )


def comparison_images(
    spec: ModelSpec, data: Path | None, count: int = IMAGES
) -> tuple[NDArray[np.uint8], str]:
    """Return images spread evenly over a data set, uint8 (n, size, size, C), and a description.

    Args:
        spec: Preparation, size and channels of the images.
        data: The user's folder, or None for the bundled images, resized to the network's input.
            These are grey: with other than 3 channels, each channel is another image.
        count: Largest number of images.
    """
    if data is None:
        source = open_images(sample_images(), TEST)
        chosen = [Image.fromarray(source[int(i)]) for i in spread(len(source), count)]
        read = np.stack([np.asarray(image.resize((spec.size, spec.size))) for image in chosen])
        if spec.channels != 3:
            planes = [np.roll(read[..., 0], channel, axis=0) for channel in range(spec.channels)]
            read = np.stack(planes, axis=3)
        return read, f"{len(read)} bundled Fashion-MNIST images"
    source = open_images(data, TEST)
    images = PreparedImages(source, spec.clean_policy, 0, spec.preparation)
    read = images.batch(spread(len(source), count))
    return read, f"{len(read)} images of {source.where}"


def pictures(
    spec: ModelSpec, data: Path | None, count: int = IMAGES
) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of `comparison_images` as they are before preparation, uint8 (H, W, C)."""
    source = open_images(sample_images() if data is None else data, TEST)
    for index in spread(len(source), count).tolist():
        image = source[index]
        if data is None and spec.channels != RGB:
            planes = [np.roll(image[..., 0], channel, axis=0) for channel in range(spec.channels)]
            image = np.stack(planes, axis=2)
        yield with_channels(image, spec.channels, source.name(index))


@torch.inference_mode()
def run_torch(network: nn.Module, images: NDArray[np.floating], *, softmax: bool) -> NDArray[Any]:
    """Map normalised images (N, C, H, W) to a file's outputs (N, K): logits, or their softmax."""
    logits = torch.cat([network(part) for part in torch.split(torch.from_numpy(images), 64)])
    outputs: NDArray[Any] = (logits.softmax(dim=1) if softmax else logits).numpy()
    return outputs
