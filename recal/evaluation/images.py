"""The images of a suite's cells: clean, published, or corrupted on the fly."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from recal.data.arrays import checked_labels, open_array
from recal.data.finding import candidates, find_images, places_searched
from recal.data.layouts import TEST
from recal.data.policies import load_family, load_policy
from recal.data.prepared import PreparedImages
from recal.data.provenance import REGENERATED, label_of
from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recal.data.sources import ImageSource
    from recal.evaluation.suites import Cell, Suite

KEPT_BYTES = 1 << 30
PUBLISHED = "published files"


@dataclass(frozen=True, eq=False, kw_only=True)
class SuiteImages:
    """Where a suite's images come from, and which of them are used.

    Attributes:
        suite: The suite.
        clean: The clean test images, or None where there are none.
        published: The folder with the published .npy files, or None to corrupt on the fly.
        size: Side of the network's input in pixels.
        labels: Labels of all test images, int64 (N,).
        indices: The images that are used, int64 (n,), the same in every cell.
        seed: Of corruptions made on the fly.
    """

    suite: Suite
    clean: ImageSource | None
    published: Path | None
    size: int
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    seed: int

    @property
    def provenance(self) -> str | None:
        """What the corrupted images are, or None for a clean suite."""
        if not self.suite.corruptions:
            return None
        if self.published is None:
            return REGENERATED
        # a folder of the published layout may itself have been regenerated
        return label_of(self.published) or PUBLISHED

    def read(self, cell: Cell, batch: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return some of a cell's images, uint8 (n, size, size, 3)."""
        if cell.corruption is None or cell.severity is None:
            return self._read_clean(batch)
        if self.published is not None:
            return np.asarray(self._rows(cell)[batch])
        from recal.corruptions import corrupt

        return corrupt(
            self._read_clean(batch), cell.corruption, cell.severity,
            family=self.suite.parameters, seed=self.seed, indices=batch,
        )  # fmt: skip

    def fingerprint(self, cell: Cell) -> str:
        """Return a hash of what determines the images and labels that are used of a cell."""
        if cell.corruption is None:
            return self._clean_fingerprint
        if self.published is None:
            text = f"{self._clean_fingerprint} {cell.name} {self.suite.parameters} {self.seed}"
            return hashlib.sha256(text.encode()).hexdigest()
        rows = self._rows(cell)
        digest = hashlib.sha256(self.labels[self.indices].astype("<i8").tobytes())
        for part in np.array_split(self.indices, max(1, len(self.indices) // 1024)):
            digest.update(rows[part].tobytes())
        return digest.hexdigest()

    def _rows(self, cell: Cell) -> NDArray[np.uint8]:
        assert self.published is not None
        assert cell.severity is not None
        path = self.published / f"{cell.corruption}.npy"
        array, rows = open_array(path), self.suite.rows
        expected = (rows * 5, self.size, self.size, 3)
        if array.dtype != np.uint8 or array.shape != expected:
            raise InputError(f"{path}: expected uint8 {expected}, got {array.dtype} {array.shape}.")
        return array[(cell.severity - 1) * rows : cell.severity * rows]

    @cached_property
    def _prepared(self) -> PreparedImages:
        assert self.clean is not None
        return PreparedImages(self.clean, load_policy(self.suite.family, "clean"), 0, self.size)

    @cached_property
    def _clean_fingerprint(self) -> str:
        assert self.clean is not None
        content = self.clean.fingerprint(self.indices.tolist())
        text = f"{content} {self._prepared.policy.sha256} {self.size}"
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _decoded(self) -> dict[int, NDArray[np.uint8]]:
        return {}

    def _read_clean(self, batch: NDArray[np.int64]) -> NDArray[np.uint8]:
        # every cell reads the same clean images: decode them once where they fit
        keep = len(self.indices) * self.size**2 * 3 <= KEPT_BYTES
        images = []
        for index in batch.tolist():
            image = self._decoded.get(index)
            if image is None:
                image = self._prepared.read(index)
                if keep:
                    self._decoded[index] = image
            images.append(image)
        return np.stack(images)


def open_suite_images(
    suite: Suite,
    data: Path | None,
    size: int,
    cells: Sequence[Cell],
    *,
    limit: int | None = None,
    seed: int = 0,
) -> SuiteImages:
    """Find the images of a suite.

    Args:
        suite: The suite.
        data: The user's folder, or None to look in the usual places.
        size: Side of the network's input in pixels.
        cells: The corrupted cells wanted; published files must hold all of them.
        limit: Use a stratified sample of so many images.
        seed: Of that sample, and of corruptions made on the fly.

    Raises:
        InputError: There are neither clean images nor published files, labels are missing or beyond
            the classes, or files are malformed.
    """
    published = _find_published(suite, data)
    names = load_family(suite.family).folders.get(suite.classes, ())
    try:
        clean = find_images(data, names, TEST, classes=suite.classes, what=f"suite {suite.name}")
        if clean.labels is None:
            raise InputError(
                f"{clean.where}: expected labelled test images (class folders), got plain images."
            )
    except InputError as error:
        if published is None:
            raise InputError(_how_to_get(suite, data, error)) from error
        clean = None
    if published is not None:
        _check_published(suite, published, cells)
        path = published / "labels.npy"
        labels = checked_labels(path, open_array(path)[: suite.rows], suite.rows)
    else:
        assert clean is not None
        assert clean.labels is not None
        labels = clean.labels
    for found in (labels, clean.labels if clean is not None else None):
        if found is not None and (found.min() < 0 or found.max() >= suite.classes):
            raise InputError(
                f"suite {suite.name}: expected labels 0 to {suite.classes - 1}, got "
                f"{found.min()} to {found.max()}. Is this another data set?"
            )
    return SuiteImages(
        suite=suite, clean=clean, published=published, size=size, labels=labels,
        indices=stratified_sample(labels, limit, seed), seed=seed,
    )  # fmt: skip


def _find_published(suite: Suite, data: Path | None) -> Path | None:
    if not suite.folders:
        return None
    for folder in candidates(data, suite.folders):
        if any((folder / f"{name}.npy").is_file() for name in suite.corruptions):
            return folder
    return None


def _check_published(suite: Suite, folder: Path, cells: Sequence[Cell]) -> None:
    wanted = {cell.corruption for cell in cells}
    missing = [n for n in suite.corruptions if n in wanted and not (folder / f"{n}.npy").is_file()]
    if missing or not (folder / "labels.npy").is_file():
        names = ", ".join(f"{name}.npy" for name in missing) or "labels.npy"
        raise InputError(
            f"{folder}: expected the published set, got one without {names}. Complete it, or leave "
            "corruptions out with --corruptions."
        )
    labels = open_array(folder / "labels.npy")
    if labels.shape not in ((suite.rows * 5,), (suite.rows,)):
        raise InputError(
            f"{folder / 'labels.npy'}: expected {suite.rows * 5} labels, got {labels.shape}."
        )


def _how_to_get(suite: Suite, data: Path | None, error: InputError) -> str:
    if data is not None and not suite.folders:
        return str(error)
    ways = f"the clean test images ({suite.family}, {suite.classes} classes)"
    if suite.folders:
        ways = (
            f"the published .npy files ({suite.folders[0]}/, to be downloaded by `recal data fetch "
            f"{suite.name}`), or {ways} to regenerate them from"
        )
    reason = f" ({error})" if data is not None else f" {places_searched(data)}"
    return f"suite {suite.name}: expected {ways}, got neither.{reason}"


def stratified_sample(labels: NDArray[np.int64], limit: int | None, seed: int) -> NDArray[np.int64]:
    """Return the indices of `limit` images, as even over the classes as can be, in order.

    Files often come sorted by class, so the first ones would not do.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels[order]
    # the n-th image of its class comes in round n: whole rounds first
    by_class = np.argsort(shuffled, kind="stable")
    starts = np.searchsorted(shuffled[by_class], shuffled[by_class])
    rounds = np.empty(len(labels), np.int64)
    rounds[by_class] = np.arange(len(labels)) - starts
    return np.sort(order[np.argsort(rounds, kind="stable")[:limit]])
