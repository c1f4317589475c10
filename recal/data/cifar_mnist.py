"""The files in which CIFAR-10, CIFAR-100 and MNIST are published."""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recal.data.arrays import checked_source
from recal.data.images import ArraySource
from recal.errors import InputError

CIFAR_PICKLES = {
    ("cifar-10-batches-py", True): tuple(f"data_batch_{i}" for i in range(1, 6)),
    ("cifar-10-batches-py", False): ("test_batch",),
    ("cifar-100-python", True): ("train",),
    ("cifar-100-python", False): ("test",),
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickler that builds NumPy arrays and plain containers, and refuses every other name."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def cifar_pickles(folder: Path, *, training: bool) -> ArraySource | None:
    """Read CIFAR's own pickles without running their code, or return None if there are none.

    Raises:
        InputError: They are malformed, or contain anything but arrays.
    """
    for (name, holds_training), files in CIFAR_PICKLES.items():
        for base in (folder / name, folder):
            paths = [base / file for file in files]
            if holds_training != training or not all(path.is_file() for path in paths):
                continue
            batches = [_read_cifar_pickle(path) for path in paths]
            images = np.concatenate([images for images, _ in batches])
            return ArraySource(base, images, np.concatenate([labels for _, labels in batches]))
    return None


def _read_cifar_pickle(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        flat = np.asarray(batch[b"data"])
        labels = batch[b"fine_labels"] if b"fine_labels" in batch else batch[b"labels"]
        if flat.dtype != np.uint8 or flat.ndim != 2 or flat.shape[1] != 3 * 32 * 32:
            raise ValueError(f"data of {flat.dtype} {flat.shape}")
        if len(labels) != len(flat):
            raise ValueError(f"{len(labels)} labels for {len(flat)} images")
        return flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.asarray(labels, np.int64)
    except Exception as error:
        raise InputError(f"{path}: expected one of CIFAR's own files, got {error}.") from error


def mnist_files(folder: Path, *, training: bool) -> ArraySource | None:
    """Read MNIST's idx files, plain or gzipped, or return None if there are none.

    Raises:
        InputError: They are malformed, or the labels are missing.
    """
    stem = "train" if training else "t10k"
    images = _read_idx(folder / f"{stem}-images-idx3-ubyte")
    if images is None:
        return None
    path = folder / f"{stem}-labels-idx1-ubyte"
    labels = _read_idx(path)
    if labels is None:
        raise InputError(f"{path}: expected the labels beside the images, but it does not exist.")
    return checked_source(path, images, labels)


def _read_idx(path: Path) -> NDArray[np.uint8] | None:
    """Read an idx file of bytes (type 0x08), plain or gzipped."""
    packed = path.with_name(f"{path.name}.gz")
    if path.is_file():
        content = path.read_bytes()
    elif packed.is_file():
        try:
            content = gzip.decompress(packed.read_bytes())
        except (OSError, EOFError) as error:
            raise InputError(f"{packed}: expected a whole gzip file, got {error}.") from error
    else:
        return None
    rank = content[3] if content[:3] == b"\0\0\x08" and len(content) > 4 else 0
    shape = tuple(np.frombuffer(content, ">u4", rank, offset=4)) if len(content) > 4 * rank else ()
    body = np.frombuffer(content, np.uint8, offset=min(4 + 4 * rank, len(content)))
    if not shape or body.size != np.prod(shape, dtype=np.int64):
        raise InputError(f"{path}: expected a whole idx file of bytes, got another content.")
    return body.reshape(shape)
