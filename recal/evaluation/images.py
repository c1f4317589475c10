"""The images of a suite's cells: clean, published, or corrupted on the fly."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from recal.data.finding import candidates, find_images, places_searched
from recal.data.layouts import TEST, checked_labels, open_array
from recal.data.policies import load_family, load_policy
from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recal.data.sources import ImageSource
    from recal.evaluation.suites import Cell, Suite

KEPT_BYTES = 1 << 30
PUBLISHED = "published files"
REGENERATED = "regenerated: not comparable digit for digit with the published set"


@dataclass(eq=False)
class SuiteImages:
    """Where a suite's images come from.

    Attributes:
        suite: The suite.
        clean: The clean test images, or None where there are none.
        published: The folder with the published .npy files, or None to corrupt on the fly.
        size: Side of the network's input in pixels.
    """

    suite: Suite
    clean: ImageSource | None
    published: Path | None
    size: int
    _prepared: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def provenance(self) -> str | None:
        """What the corrupted images are, or None for a clean suite."""
        if not self.suite.corruptions:
            return None
        return PUBLISHED if self.published is not None else REGENERATED

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels of the test images, int64 (N,)."""
        if self.published is not None:
            path = self.published / "labels.npy"
            labels = open_array(path)
            return checked_labels(path, labels, len(labels))[: self.suite.rows]
        assert self.clean is not None
        assert self.clean.labels is not None
        return self.clean.labels

    def read(self, cell: Cell, indices: NDArray[np.int64], seed: int) -> NDArray[np.uint8]:
        """Return images of a cell, uint8 (n, size, size, 3)."""
        if cell.corruption is None or cell.severity is None:
            return self._read_clean(indices)
        if self.published is not None:
            return np.asarray(self._rows(cell)[indices])
        from recal.corruptions import corrupt

        return corrupt(
            self._read_clean(indices), cell.corruption, cell.severity,
            family=self.suite.parameters, seed=seed, indices=indices,
        )  # fmt: skip

    def fingerprint(self, cell: Cell, indices: NDArray[np.int64], seed: int) -> str:
        """Return a hash of what determines a cell's images and labels."""
        if cell.corruption is not None and self.published is not None:
            rows = self._rows(cell)
            digest = hashlib.sha256(self.labels[indices].astype("<i8").tobytes())
            for part in np.array_split(indices, max(1, len(indices) // 1024)):
                digest.update(rows[part].tobytes())
            return digest.hexdigest()
        if cell.corruption is None:
            return self._clean_fingerprint(indices)
        text = f"{self._clean_fingerprint(indices)} {cell.name} {self.suite.parameters} {seed}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _rows(self, cell: Cell) -> NDArray[np.uint8]:
        assert self.published is not None
        assert cell.severity is not None
        path = self.published / f"{cell.corruption}.npy"
        array, rows = open_array(path), self.suite.rows
        expected = (rows * 5, self.size, self.size, 3)
        if array.dtype != np.uint8 or array.shape != expected:
            raise InputError(f"{path}: expected uint8 {expected}, got {array.dtype} {array.shape}.")
        return array[(cell.severity - 1) * rows : cell.severity * rows]

    def _clean_fingerprint(self, indices: NDArray[np.int64]) -> str:
        assert self.clean is not None
        if not hasattr(self, "_clean_hash"):
            policy = load_policy(self.suite.family, "clean")
            text = f"{self.clean.fingerprint(indices.tolist())} {policy.sha256} {self.size}"
            self._clean_hash = hashlib.sha256(text.encode()).hexdigest()
        return self._clean_hash

    def _read_clean(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        from recal.data.loading import PolicyImages

        assert self.clean is not None
        images = PolicyImages(self.clean, load_policy(self.suite.family, "clean"), 0, self.size)
        # every cell reads the same clean images: decode them once where they fit
        keep = len(self.clean) * self.size**2 * 3 <= KEPT_BYTES
        wanted = [int(index) for index in indices]
        read = {i: self._prepared[i] if i in self._prepared else images[i].numpy() for i in wanted}
        if keep:
            self._prepared |= read
        return np.stack([read[i] for i in wanted])


def open_suite_images(
    suite: Suite, data: Path | None, size: int, cells: Sequence[Cell]
) -> SuiteImages:
    """Find the images of a suite.

    Args:
        suite: The suite.
        data: The user's folder, or None to look in the usual places.
        size: Side of the network's input in pixels.
        cells: The corrupted cells wanted: published files are used if all of theirs are there.

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
    images = SuiteImages(suite, clean, published, size)
    if published is not None:
        _check_published(suite, published, cells)
    labels = images.labels
    for found in (labels, clean.labels if clean is not None else None):
        if found is not None and (found.min() < 0 or found.max() >= suite.classes):
            raise InputError(
                f"suite {suite.name}: expected labels 0 to {suite.classes - 1}, got "
                f"{found.min()} to {found.max()}. Is this another data set?"
            )
    return images


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
        ways = f"the published .npy files ({suite.folders[0]}/), or {ways} to regenerate them from"
    reason = f" ({error})" if data is not None else f" {places_searched(data)}"
    return f"suite {suite.name}: expected {ways}, got neither.{reason}"


def stratified_sample(labels: NDArray[np.int64], limit: int | None, seed: int) -> Any:
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
