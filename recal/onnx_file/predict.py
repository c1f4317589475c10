"""Classifying images with an ONNX file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recal.data.images import IMAGE_SUFFIXES, FileSource
from recal.errors import BrokenImageError, InputError, UsageError, shown
from recal.networks.completion import complete_spec
from recal.networks.spec import ModelOverrides, ModelSpec
from recal.onnx_file.session import OnnxNetwork
from recal.policies.prepared import PreparedImages
from recal.progress import Progress, silent

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of one image, the likeliest first.

    Attributes:
        image: The image's file.
        indices: Numbers of the classes.
        names: Names of the classes, or their numbers as text if the file has no names.
        probabilities: Probabilities of the classes, in [0, 1].
    """

    image: Path
    indices: tuple[int, ...]
    names: tuple[str, ...]
    probabilities: tuple[float, ...]


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the given images, and the images in the given folders, sorted within each folder.

    Raises:
        InputError: A path does not exist, or there are no images.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{path}: expected an image or a folder, but it does not exist.")
    if not files:
        raise InputError(f"{', '.join(map(str, paths))}: expected images, got none.")
    return files


def network_spec(network: OnnxNetwork, overrides: ModelOverrides, where: str) -> ModelSpec:
    """Return how images are prepared for the network of file `where`, unless overridden.

    Raises:
        UsageError: recal did not write the file, and the preprocessing is not given; or what is
            overridden is part of its graph.
    """
    if network.record is not None:
        own = network.record.model
        spec = own.overridden(overrides)
        options = network.record.options
        for key in options.inside:
            inside, given = getattr(own, key), getattr(spec, key)
            if inside != given and not (key == "size" and options.any_size):
                raise UsageError(
                    f"{where}: --{key.replace('_', '-')}: expected {shown(inside)}, which is part "
                    f"of the graph, got {shown(given)}. Leave it out, or export again with it."
                )
        return spec
    if overrides.family is None and (overrides.mean is None or overrides.std is None):
        raise UsageError(
            f"{where}: was not written by recal, so that its preprocessing is unknown. Give "
            "--family, or --mean and --std."
        )
    known = ModelOverrides(
        arch="onnx", classes=network.classes, size=network.size, channels=network.channels
    )
    return complete_spec(overrides.over(known), ModelOverrides(), {}, where)


def prepared_files(files: Sequence[Path], spec: ModelSpec) -> PreparedImages:
    """Return image files, prepared as the network's test images are."""
    source = FileSource(Path(), tuple(files), None)
    return PreparedImages(source, spec.clean_policy, 0, spec.preparation)


def predict(
    network: OnnxNetwork,
    images: PreparedImages,
    spec: ModelSpec,
    *,
    top: int = 5,
    on_broken: Callable[[BrokenImageError], None] | None = None,
    progress: Progress = silent,
) -> Iterator[Prediction]:
    """Classify images.

    Args:
        network: The network.
        images: The images and how they are prepared, unless the file prepares them itself.
        spec: Preprocessing.
        top: Largest number of classes per image.
        on_broken: Called with the error of each broken image, which is left out; None to raise it.
        progress: Called with the numbers of images done and in total.

    Raises:
        InputError: An image cannot be decoded, or is of another size where none is resized.
    """
    names = network.record.classes if network.record else None
    # a file that prepares images takes them one by one, because each has its own size
    count = 1 if network.prepares else BATCH
    read_one = images.decoded if network.prepares else images.read
    for start in range(0, len(images), count):
        end = min(start + count, len(images))
        read = {}
        for index in range(start, end):
            try:
                read[index] = read_one(index)
            except BrokenImageError as error:
                if on_broken is None:
                    raise
                on_broken(error)
        progress(end, len(images))
        if not read:
            continue
        logits = network.classify(np.stack(list(read.values())), spec.normalisation)
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        for index, row, chosen in zip(read, probabilities, order, strict=True):
            yield Prediction(
                image=Path(images.source.name(index)),
                indices=tuple(int(i) for i in chosen),
                names=tuple(names[i] if names else str(i) for i in chosen),
                probabilities=tuple(float(row[i]) for i in chosen),
            )
