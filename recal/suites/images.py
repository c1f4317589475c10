"""The images of a suite's cells: clean, published, or corrupted on the fly."""

import hashlib
import io
import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image

from recal import corruptions
from recal.data.images import ArraySource, ImageSource, with_channels
from recal.data.labels import nearest_answers
from recal.datasets.catalogue import REGENERATED, label_of
from recal.datasets.regenerate import JPEG_QUALITY, read_prepared
from recal.errors import InputError
from recal.machine import may_keep
from recal.policies.ops import Prepare, Transform
from recal.policies.policy import Policy
from recal.policies.preparation import Preparation
from recal.policies.prepared import USED_WHOLE, PreparedImages
from recal.schema import to_json
from recal.suites.clean import CleanImages
from recal.suites.published import Published
from recal.suites.suite import Cell, Suite


class RegeneratedImages:
    """Corrupted images, equal to those that `recal data generate` writes for the same seed.

    CIFAR's are clean images under corruptions. The larger sets are published as JPEG files, of
    images that the benchmark's generator has prepared: both is done here in the same way. They have
    the published size, whatever the network's. `clean` are the clean images as test images.
    """

    def __init__(self, suite: Suite, clean: PreparedImages, seed: int) -> None:
        self._suite, self._clean, self._seed = suite, clean, seed
        self._as_clean = suite.corrupted.parameters == "cifar"
        # a clean image that is ready to be corrupted, by its index, uint8 (H, W, 3)
        self.read = clean.read if self._as_clean else self._read

    @property
    def identity(self) -> str:
        """The parameters of the pixels, apart from the clean images and the cell."""
        prepared = self._clean.policy.sha256 if self._as_clean else "generator"
        images = self._suite.corrupted
        return f"{images.parameters} {images.layout} {self._seed} {prepared}"

    def _read(self, index: int) -> NDArray[np.uint8]:
        return read_prepared(self._clean.source, index, self._suite.corrupted.parameters)

    def corrupt(
        self, cell: Cell, images: NDArray[np.uint8], indices: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Return images under a cell's corruption, uint8 (N, H, W, 3)."""
        assert cell.corruption is not None
        assert cell.severity is not None
        corrupted = corruptions.corrupt(
            images,
            cell.corruption,
            cell.severity,
            family=self._suite.corrupted.parameters,
            seed=self._seed,
            indices=indices,
        )
        if self._suite.corrupted.layout == "arrays":
            return corrupted
        for image in corrupted:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
            with Image.open(buffer) as decoded:
                image[:] = np.asarray(decoded.convert("RGB"))
        return corrupted


# numbers of images that one thread reads at a time, and that share a hash
READ, HASHED = 16, 512
PUBLISHED_FILES = "published files"


@dataclass(frozen=True, eq=False, kw_only=True)
class ChosenImages:
    """The images of a cell that are used.

    Attributes:
        labels: Labels of all images, int64 (N,).
        indices: Indices of the images that are used, rising, int64 (n,).
        answers: All right answers of all images, int64 (N, A), or None where there is one for each.
    """

    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    answers: NDArray[np.int64] | None = None

    def right(self, logits: NDArray[np.float32], batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what the predictions of some images are compared with, int64 (n,).

        It is the label; of several right answers, the one that the network prefers.
        """
        if self.answers is None:
            return self.labels[batch]
        return nearest_answers(logits, self.answers[batch])


@dataclass(eq=False, kw_only=True)
class SuiteImages:
    """The images of a suite's cells, read, corrupted and hashed on demand.

    It keeps decoded clean images, their hashes and the list of files of the last cell.

    Attributes:
        suite: The suite.
        clean: The clean test images, or None if there are none.
        published: The published corrupted images, or None to corrupt clean ones on the fly.
        network: How images become the networks' input.
        policy: The policy that prepares the clean images.
        seed: Seed of corruptions made on the fly.
        of_clean: The images of the clean cell that are used; None if there is no clean cell.
        of_corrupted: The images of every corrupted cell that are used, or None. Cells whose indices
            and labels are equal are of the same images.
        threads: Number of threads that read and corrupt.
        warnings: Warnings about the images, for the user.
    """

    suite: Suite
    clean: CleanImages | None
    published: Published | None
    network: Preparation
    policy: Policy
    seed: int
    of_clean: ChosenImages | None
    of_corrupted: ChosenImages | None
    threads: int
    warnings: tuple[str, ...]

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.threads, "images")
        self._hashes: dict[range, list[str]] = {}
        self._sources: dict[Cell, ImageSource] = {}
        self._kept: dict[Callable[[int], NDArray[np.uint8]], dict[int, NDArray[np.uint8]]] = {}
        used = 0 if self.of_clean is None else len(self.of_clean.indices)
        self._keeps = used > 0 and may_keep(used * self.network.size**2 * self.network.channels)

    @property
    def provenance(self) -> str | None:
        """The kind of the corrupted images, for people, or None for a clean suite."""
        if self.of_corrupted is None:
            return None
        if self.published is None:
            return REGENERATED
        # a folder of the published layout may itself have been regenerated
        return label_of(self.published.where) or PUBLISHED_FILES

    def chosen(self, cell: Cell) -> ChosenImages:
        """Return the images of a cell that are used."""
        found = self.of_clean if cell.corruption is None else self.of_corrupted
        assert found is not None
        return found

    def source(self, cell: Cell) -> ImageSource:
        """Return the source of a cell's images: the clean ones if they are corrupted here."""
        if cell.corruption is None or self.published is None:
            assert self.clean is not None
            return self.clean.source
        if cell not in self._sources:
            # one at a time: the list of files of a cell of ImageNet-C is some MB
            self._sources = {cell: self.published.source(cell)}
        return self._sources[cell]

    def read(self, cell: Cell, batch: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return some of a cell's images, uint8 (n, size, size, C), all of the network's size."""
        source = self.source(cell)
        if isinstance(source, ArraySource) and self._keeps_arrays(cell, source):
            images = source.images[batch]
            forget_pages(source.images)
            return images
        parts = np.split(batch, range(READ, len(batch), READ))
        return np.concatenate(list(self._pool.map(lambda part: self._read(cell, part), parts)))

    def check(self, cell: Cell) -> None:
        """Read a cell's first image, before it is corrupted, or raise the error of `read`."""
        first = self.chosen(cell).indices[:1]
        if cell.corruption is not None and self.published is None:
            (image,) = self._each(self._regenerated.read, first)
            self._whole(cell, int(first[0]), image)
        else:
            self.read(cell, first)

    def resizings(self, cells: Sequence[Cell]) -> list[str]:
        """Return warnings about images that were cropped before, or that are resized again."""
        side, own = self.network.size, self.suite.corrupted.size
        warnings = []
        if self.of_clean is not None and self._prepared.whole:
            warnings.append(f"{self._prepared.source.where}: {USED_WHOLE}")
        if own not in (0, side) and any(cell.corruption is not None for cell in cells):
            warnings.append(
                f"suite {self.suite.name}: corrupted images are defined at {own}x{own} pixels, and "
                f"are resized to the networks' {side}x{side} ({self.network.interpolation})."
            )
        return warnings

    def fingerprints(self, cell: Cell, part: slice = slice(None)) -> list[str]:
        """Return hashes of the images and labels of a cell that are used, one for each 512.

        `part` is the part of them to return, so that several processes can share the work.
        """
        chosen, source = self.chosen(cell), self.source(cell)
        cuts = range(0, len(chosen.indices), HASHED)[part]
        # cells that are made of the clean images share their hashes
        known = self._hashes if self.clean is not None and source is self.clean.source else {}

        def of_part(start: int) -> str:
            some = chosen.indices[start : start + HASHED]
            labels = chosen.labels[some].astype("<i8").tobytes()
            content = source.fingerprint(some.tolist())
            if isinstance(source, ArraySource):
                forget_pages(source.images)
            return hashlib.sha256(labels + content.encode()).hexdigest()

        if cuts not in known:
            known[cuts] = list(self._pool.map(of_part, cuts))
        return known[cuts]

    def fingerprint(self, cell: Cell, hashes: Sequence[str] | None = None) -> str:
        """Return a hash of everything that determines the pixels and labels of a cell.

        `hashes` is the result of `fingerprints` for the cell, if it is known.
        """
        words = [*(self.fingerprints(cell) if hashes is None else hashes), to_json(self.network)]
        if cell.corruption is None:
            words.append(self.policy.sha256)
        elif self.published is None:
            words += [cell.name, self._regenerated.identity]
        return hashlib.sha256(" ".join(words).encode()).hexdigest()

    def size_in_bytes(self, cell: Cell) -> int:
        """Return the approximate number of bytes read for a cell; 0 if images are made here."""
        if cell.corruption is None or self.published is None:
            return 0
        used = len(self.chosen(cell).indices) / len(self.published.labels)
        return int(self.published.size_in_bytes(cell) * used)

    def _read(self, cell: Cell, part: NDArray[np.int64]) -> NDArray[np.uint8]:
        if cell.corruption is None:
            return self._each(self._prepared.read, part)
        if self.published is None:
            clean = self._each(self._regenerated.read, part)
            corrupted = [*self._regenerated.corrupt(cell, clean, part)]
        else:
            source = self.source(cell)
            corrupted = [source[index] for index in part.tolist()]
        pairs = zip(part.tolist(), corrupted, strict=True)
        return np.stack([self._whole(cell, index, image) for index, image in pairs])

    def _each(
        self, read: Callable[[int], NDArray[np.uint8]], part: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        kept = self._kept.setdefault(read, {})
        images = [kept[index] if index in kept else read(index) for index in part.tolist()]
        if self._keeps:
            kept.update(zip(part.tolist(), images, strict=True))
        return np.stack(images)

    def _keeps_arrays(self, cell: Cell, source: ArraySource) -> bool:
        """Tell whether the rows of a source's array are a cell's images as they are."""
        side = self.network.size
        if source.images.shape[1:] != (side, side, self.network.channels):
            return False
        if cell.corruption is None:
            return self.policy.keeps(self._prepared.network)
        return self.published is not None

    def _whole(self, cell: Cell, index: int, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a corrupted image, which was cropped before, in the networks' size."""
        side, own = self.network.size, self.suite.corrupted.size
        if image.shape[2] != self.network.channels:
            image = with_channels(image, self.network.channels, self.source(cell).name(index))
        if image.shape[:2] == (side, side):
            return image
        height, width = image.shape[:2]
        if self.network.crop_mode == "none" or height != width or own not in (0, height):
            expected = f"{own}x{own}" if own else "square images of"
            raise InputError(
                f"{self.source(cell).where}: {cell.name}, image {index}: expected "
                f"{side}x{side} pixels, which the networks take, got {width}x{height}. Evaluate "
                "networks of their size, or set --size; with --crop-mode center, images of "
                f"{expected} pixels are resized."
            )
        if self.network.channels == 3:
            return np.asarray(self._resize(Image.fromarray(image)))
        planes = [self._resize(Image.fromarray(plane)) for plane in np.moveaxis(image, 2, 0)]
        return np.stack([np.asarray(plane) for plane in planes], axis=2)

    @cached_property
    def _resize(self) -> Transform:
        return Prepare().transform(self.network.whole)

    @cached_property
    def _prepared(self) -> PreparedImages:
        assert self.clean is not None
        return PreparedImages(self.clean.source, self.policy, 0, self.network)

    @cached_property
    def _regenerated(self) -> RegeneratedImages:
        prepared = self._prepared
        if prepared.channels != 3:  # corruptions are made in RGB
            network = replace(self.network, channels=3)
            prepared = PreparedImages(prepared.source, self.policy, 0, network)
        return RegeneratedImages(self.suite, prepared, self.seed)


def forget_pages(array: NDArray[np.uint8]) -> None:
    """Release the memory of a mapped file, which would grow to the file's size over many cells.

    The system caches it while there is room, so that reading it again costs little.
    """
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)
