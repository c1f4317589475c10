"""The images of a suite's cells: clean, published, or corrupted on the fly."""

from __future__ import annotations

import hashlib
import io
import mmap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from recal.data.images import ArraySource
from recal.datasets.generate import REGENERATED, label_of
from recal.errors import InputError
from recal.machine import may_keep
from recal.policies.policy import load_policy
from recal.policies.prepared import PreparedImages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from recal.data.images import ImageSource
    from recal.suites.clean import CleanImages
    from recal.suites.published import Published
    from recal.suites.suite import Cell, Suite


class CorruptedHere:
    """Corrupted images, equal to those that `recal data generate` writes for the same seed.

    Of CIFAR's layout they are clean images under corruptions. The larger sets come as JPEG files of
    images that the benchmark's generator has prepared: so they are prepared and compressed alike.

    Args:
        suite: Says which parameters, and which layout.
        clean: The clean images under the family's clean policy.
        seed: Of the draws.
    """

    def __init__(self, suite: Suite, clean: PreparedImages, seed: int) -> None:
        self._suite, self._clean, self._seed = suite, clean, seed
        self.as_clean = suite.parameters == "cifar"

    @property
    def identity(self) -> str:
        """What the pixels depend on, beside the clean images and the cell."""
        prepared = self._clean.policy.sha256 if self.as_clean else "generator"
        return f"{self._suite.parameters} {self._suite.layout} {self._seed} {prepared}"

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return a clean image as it is before it is corrupted, uint8 (size, size, 3).

        Raises:
            InputError: It cannot be decoded, or is not of the networks' size.
        """
        if self.as_clean:
            return self._clean.read(index)
        from recal.datasets.regenerate import prepare

        where, side = self._clean.source.where, self._clean.size
        try:
            image = prepare(self._clean.source[index], self._suite.parameters)
        except ValueError as error:
            raise InputError(f"{where}: image {index}: {error}.") from error
        if image.shape != (side, side, 3):
            raise InputError(
                f"{where}: image {index}: expected {side}x{side} pixels, which the networks take, "
                f"got {image.shape[1]}x{image.shape[0]}, which the corruptions are defined for."
            )
        return image

    def corrupt(
        self, cell: Cell, images: NDArray[np.uint8], indices: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Return images under a cell's corruption, uint8 (N, size, size, 3)."""
        from recal.corruptions import corrupt

        assert cell.corruption is not None
        assert cell.severity is not None
        corrupted = corrupt(
            images, cell.corruption, cell.severity,
            family=self._suite.parameters, seed=self._seed, indices=indices,
        )  # fmt: skip
        if self._suite.layout == "arrays":
            return corrupted
        return np.stack([_as_jpeg(image) for image in corrupted])


def _as_jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from recal.datasets.regenerate import JPEG_QUALITY

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    with Image.open(buffer) as decoded:
        return np.asarray(decoded.convert("RGB"))


# images that one thread reads at a time, and whose contents are hashed together
READ, HASHED = 16, 512
PUBLISHED = "published files"


@dataclass(frozen=True, eq=False, kw_only=True)
class Chosen:
    """Which images of a cell are used.

    Attributes:
        labels: Of all images, int64 (N,).
        indices: Those that are used, rising, int64 (n,).
    """

    labels: NDArray[np.int64]
    indices: NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class SuiteImages:
    """Where a suite's images come from, and which of them are used.

    Attributes:
        suite: The suite.
        clean: The clean test images, or None where there are none.
        published: The published corrupted images, or None to corrupt clean ones on the fly.
        size: Side of the network's input in pixels.
        seed: Of corruptions made on the fly.
        of_clean: Which images of the clean cell are used; None where there is none.
        of_corrupted: Likewise, of every corrupted cell. Cells whose indices and labels are equal
            are of the same images.
        threads: That read and corrupt.
        warnings: What is merely odd about the images.
    """

    suite: Suite
    clean: CleanImages | None
    published: Published | None
    size: int
    seed: int
    of_clean: Chosen | None
    of_corrupted: Chosen | None
    threads: int
    warnings: tuple[str, ...]

    @property
    def provenance(self) -> str | None:
        """What the corrupted images are, or None for a clean suite."""
        if self.of_corrupted is None:
            return None
        if self.published is None:
            return REGENERATED
        # a folder of the published layout may itself have been regenerated
        return label_of(self.published.where) or PUBLISHED

    def chosen(self, cell: Cell) -> Chosen:
        """Return which images of a cell are used."""
        found = self.of_clean if cell.corruption is None else self.of_corrupted
        assert found is not None
        return found

    def source(self, cell: Cell) -> ImageSource:
        """Return where a cell's images are read from; clean ones, where they are corrupted here."""
        if cell.corruption is None or self.published is None:
            assert self.clean is not None
            return self.clean.source
        if cell not in self._sources:
            self._sources.clear()  # the list of files of a cell of ImageNet-C is some MB
            self._sources[cell] = self.published.source(cell)
        return self._sources[cell]

    def read(self, cell: Cell, batch: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return some of a cell's images, uint8 (n, size, size, 3).

        Raises:
            InputError: One cannot be decoded, or is of another size.
        """
        source = self.source(cell)
        as_they_are = self._uses_pixels_of(cell)
        if isinstance(source, ArraySource) and as_they_are and source.images.ndim == 4:
            images = self._checked(cell, source.images[batch], batch)
            forget_pages(source.images)
            return images
        parts = np.split(batch, range(READ, len(batch), READ))
        return np.concatenate(list(self._pool.map(lambda part: self._read(cell, part), parts)))

    def check(self, cell: Cell) -> None:
        """Read a cell's first image, before it is corrupted.

        Raises:
            InputError: It cannot be decoded, or is not of the networks' size.
        """
        first = self.chosen(cell).indices[:1]
        if cell.corruption is not None and self.published is None:
            self._each(self._to_corrupt, self._corrupted_here.read, first)
        else:
            self.read(cell, first)

    def fingerprints(self, cell: Cell, part: slice = slice(None)) -> list[str]:
        """Return hashes of the images and labels that are used of a cell, one for each 512.

        Args:
            cell: The cell.
            part: Which of the hashes are wanted, so that several processes can share the work.
        """
        chosen, source = self.chosen(cell), self.source(cell)
        cuts = range(0, len(chosen.indices), HASHED)[part]
        # cells that are made of the clean images have their hashes in common
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
        """Return a hash of all that determines the pixels and labels that are used of a cell.

        Args:
            cell: The cell.
            hashes: What `fingerprints` says, where it is known.
        """
        words = [*(self.fingerprints(cell) if hashes is None else hashes), str(self.size)]
        if cell.corruption is None:
            words.append(self._prepared.policy.sha256)
        elif self.published is None:
            words += [cell.name, self._corrupted_here.identity]
        return hashlib.sha256(" ".join(words).encode()).hexdigest()

    def size_in_bytes(self, cell: Cell) -> int:
        """Return about what is read of the disk for a cell; 0 for images that are made here."""
        if cell.corruption is None or self.published is None:
            return 0
        used = len(self.chosen(cell).indices) / len(self.published.labels)
        return int(self.published.size_in_bytes(cell) * used)

    def _uses_pixels_of(self, cell: Cell) -> bool:
        """Whether a cell's pixels are those of its source."""
        if cell.corruption is None:
            return not self._prepared.policy.ops
        return self.published is not None

    def _read(self, cell: Cell, part: NDArray[np.int64]) -> NDArray[np.uint8]:
        if cell.corruption is None:
            return self._each(self._clean, self._prepared.read, part)
        if self.published is None:
            here = self._corrupted_here
            return here.corrupt(cell, self._each(self._to_corrupt, here.read, part), part)
        source = self.source(cell)
        images = [source[index] for index in part.tolist()]
        for image, index in zip(images, part, strict=True):
            self._checked(cell, image[None], np.array([index]))
        return np.stack(images)

    def _each(
        self,
        kept: dict[int, NDArray[np.uint8]],
        read: Callable[[int], NDArray[np.uint8]],
        part: NDArray[np.int64],
    ) -> NDArray[np.uint8]:
        images = []
        for index in part.tolist():
            image = kept.get(index)
            if image is None:
                image = read(index)
                if self._keeps:
                    kept[index] = image
            images.append(image)
        return np.stack(images)

    def _checked(
        self, cell: Cell, images: NDArray[np.uint8], batch: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        if images.shape[1:] != (self.size, self.size, 3):
            height, width = images.shape[1:3]
            raise InputError(
                f"{self.source(cell).where}: {cell.name}, image {batch[0]}: expected "
                f"{self.size}x{self.size} pixels, which the networks take, got {width}x{height}. "
                "These images are used as they are: evaluate networks of their size, or set --size."
            )
        return images

    @property
    def _used_of_clean(self) -> NDArray[np.int64]:
        assert self.of_clean is not None
        return self.of_clean.indices

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, "images")

    @cached_property
    def _hashes(self) -> dict[range, list[str]]:
        return {}

    @cached_property
    def _sources(self) -> dict[Cell, ImageSource]:
        return {}

    @cached_property
    def _prepared(self) -> PreparedImages:
        assert self.clean is not None
        policy = load_policy(self.suite.family, "clean")
        return PreparedImages(self.clean.source, policy, 0, self.size)

    @cached_property
    def _corrupted_here(self) -> CorruptedHere:
        return CorruptedHere(self.suite, self._prepared, self.seed)

    @cached_property
    def _keeps(self) -> bool:
        """Whether clean images, which every cell reads, are decoded once only."""
        return may_keep(len(self._used_of_clean) * self.size**2 * 3)

    @cached_property
    def _clean(self) -> dict[int, NDArray[np.uint8]]:
        return {}

    @cached_property
    def _to_corrupt(self) -> dict[int, NDArray[np.uint8]]:
        return self._clean if self._corrupted_here.as_clean else {}


def forget_pages(array: NDArray[np.uint8]) -> None:
    """Let go of what was read of a mapped file: a set of many cells would add up to its size.

    The system keeps it while there is room, so that reading it again costs little.
    """
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)
