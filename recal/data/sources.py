"""Where images come from: every layout is read as the same sequence of uint8 RGB arrays."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class ImageSource(Protocol):
    """A sequence of images, with labels where there are any."""

    @property
    def where(self) -> Path:
        """The folder or file that it was read from, for messages."""
        ...

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The labels, int64 (N,), or None."""
        ...

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes' names in the order of the labels, or None where they have none."""
        ...

    def __len__(self) -> int:
        """Return the number of images, N."""
        ...

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`, uint8 (H, W, 3)."""
        ...

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Return a hash of these images' names, contents and labels, in hexadecimal."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in one array, possibly a memory map: uint8 (N, H, W, 3), or (N, H, W) for grey."""

    where: Path
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        image = np.asarray(self.images[index])
        return np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Return a hash of these images' contents and labels, in hexadecimal."""
        digest = hashlib.sha256(repr(self.images.shape[1:]).encode())
        for start in range(0, len(indices), 1024):
            digest.update(self.images[indices[start : start + 1024]].tobytes())
        if self.labels is not None:
            digest.update(self.labels[list(indices)].astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class FileSource:
    """One image a file."""

    where: Path
    paths: tuple[Path, ...]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(
                f"{path}: expected an image, got a file that cannot be decoded ({error}). "
                "Replace or remove it."
            ) from error

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Return a hash of these images' names, contents and labels, in hexadecimal."""
        digest = hashlib.sha256()
        for index in indices:
            path = self.paths[index]
            label = -1 if self.labels is None else int(self.labels[index])
            name = path.relative_to(self.where).as_posix()
            digest.update(f"{name}\0{label}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()
