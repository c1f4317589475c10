"""Recognising how a folder holds images: CIFAR's pickles, arrays, MNIST's files, class folders.

To add a layout: write a function that returns a source, or None where the folder is not of this
layout, and add one line to the table at the foot.
"""

from __future__ import annotations

import gzip
import io
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

from recal.data.sources import ArraySource, FileSource, ImageSource
from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif"})
TRAIN, TEST = "train", "test"
SPLIT_FOLDERS = {TRAIN: ("train",), TEST: ("test", "val", "validation")}
CIFAR_PICKLES = {
    ("cifar-10-batches-py", TRAIN): tuple(f"data_batch_{i}" for i in range(1, 6)),
    ("cifar-10-batches-py", TEST): ("test_batch",),
    ("cifar-100-python", TRAIN): ("train",),
    ("cifar-100-python", TEST): ("test",),
}


def open_images(folder: Path, split: str) -> ImageSource:
    """Open one split of the images in a folder, whatever its layout.

    Args:
        folder: Holds CIFAR-10's or CIFAR-100's own pickles; `<split>.npz` (arrays `images` and
            `labels`); `<split>_images.npy` or `<split>/images.npy`, with labels likewise; MNIST's
            idx files; class folders, below `train/` and `test/` (or `val/`) or directly; or images.
        split: `train` or `test`. A folder without splits is used for either.

    Raises:
        InputError: There is no such folder, no image in it, or what is there is malformed.
    """
    if not folder.exists():
        raise InputError(f"{folder}: expected a folder of images, got nothing there.")
    if not folder.is_dir():
        hint = " Unpack it and name the folder." if ".tar" in folder.name else ""
        raise InputError(f"{folder}: expected a folder of images, got a file.{hint}")
    for read in LAYOUTS:
        source = read(folder, split)
        if source is not None:
            if not len(source):
                raise InputError(f"{folder}: expected images, got none.")
            return source
    raise InputError(
        f"{folder}: expected images for '{split}', got none. It may hold CIFAR's own files, "
        f".npy or .npz arrays, MNIST's idx files, class folders (also below {split}/) or plain "
        "images."
    )


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that builds NumPy arrays and plain containers, and refuses every other name."""

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


def _cifar_pickles(folder: Path, split: str) -> ImageSource | None:
    for (name, its_split), files in CIFAR_PICKLES.items():
        for base in (folder / name, folder):
            paths = [base / file for file in files]
            if its_split != split or not all(path.is_file() for path in paths):
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


def _arrays(folder: Path, split: str) -> ImageSource | None:
    packed = folder / f"{split}.npz"
    if packed.is_file():
        with _refusing_bad_arrays(packed), np.load(packed, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays.get("labels")
        return _checked_arrays(packed, images, labels)
    for stem in (f"{split}_", f"{split}/", ""):
        path, beside = folder / f"{stem}images.npy", folder / f"{stem}labels.npy"
        if path.is_file():
            labels = open_array(beside) if beside.is_file() else None
            return _checked_arrays(path, open_array(path), labels)
    return None


class _refusing_bad_arrays:  # noqa: N801  (reads as a verb where it is used)
    """Turn what NumPy raises on a malformed array file into an `InputError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, InputError):
            raise InputError(
                f"{self.path}: expected a whole NumPy file without pickled objects, got {error}."
            ) from error


def open_array(path: Path) -> NDArray[Any]:
    """Open an .npy file as a read-only memory map.

    Raises:
        InputError: It is missing, truncated, or holds pickled objects.
    """
    with _refusing_bad_arrays(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def _checked_arrays(path: Path, images: NDArray[Any], labels: NDArray[Any] | None) -> ArraySource:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
        raise InputError(
            f"{path}: expected images of uint8 (N, H, W, 3) or (N, H, W), "
            f"got {images.dtype} {images.shape}."
        )
    if labels is not None:
        labels = checked_labels(path, labels, len(images))
    return ArraySource(path, images, labels)


def checked_labels(path: Path, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return labels as int64 (N,).

    Raises:
        InputError: They are not integers, or not `count` of them.
    """
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{path}: expected integer labels ({count},), got {labels.dtype} {labels.shape}."
        )
    return labels.astype(np.int64)


def _mnist_files(folder: Path, split: str) -> ImageSource | None:
    stem = "train" if split == TRAIN else "t10k"
    images = _read_idx(folder / f"{stem}-images-idx3-ubyte")
    if images is None:
        return None
    path = folder / f"{stem}-labels-idx1-ubyte"
    labels = _read_idx(path)
    if labels is None:
        raise InputError(f"{path}: expected the labels beside the images, got nothing there.")
    return _checked_arrays(path, images, labels)


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


def _class_folders(folder: Path, split: str) -> ImageSource | None:
    base = _split_folder(folder, split)
    names = sorted(path.name for path in base.iterdir() if path.is_dir())
    found = [(name, path) for name in names for path in _images_below(base / name)]
    if not found:
        return None
    classes = sorted({name for name, _ in found})
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[name] for name, _ in found], np.int64)
    return FileSource(base, tuple(path for _, path in found), labels, tuple(classes))


def _plain_images(folder: Path, split: str) -> ImageSource | None:
    base = _split_folder(folder, split)
    paths = tuple(path for path in sorted(base.iterdir()) if _is_image(path))
    return FileSource(base, paths, None) if paths else None


def _split_folder(folder: Path, split: str) -> Path:
    named = [folder / name for name in SPLIT_FOLDERS[split] if (folder / name).is_dir()]
    return named[0] if named else folder


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _is_image(path))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


LAYOUTS: tuple[Callable[[Path, str], ImageSource | None], ...] = (
    _cifar_pickles,
    _arrays,
    _mnist_files,
    _class_folders,
    _plain_images,
)
