"""Images in arrays: .npy and .npz files, .npy inside tar files, CIFAR's pickles, MNIST's files.

A file that is missing or damaged, or holds another type or shape, is an `InputError`.
"""

import gzip
import io
import os
import pickle
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recal.data.images import ArraySource
from recal.data.tars import no_tar, plain_members
from recal.errors import InputError

ROWS = 1024
CIFAR_PICKLES: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar-10-batches-py": {
        "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test": ("test_batch",),
    },
    "cifar-100-python": {"train": ("train",), "test": ("test",)},
}


def plain_array(path: Path, _split: str) -> ArraySource:
    """Open an .npy file of images. `images.npy` has its labels in `labels.npy` beside it."""
    beside = path.with_name(path.name.replace("images", "labels"))
    labels = open_array(beside) if beside != path and beside.is_file() else None
    return checked_source(path, open_array(path), labels)


def packed_arrays(path: Path, split: str) -> ArraySource:
    """Read an .npz file of `<split>_images`, `images` or `arr_0`, and labels named likewise."""
    with _refusing_bad_arrays(path), np.load(path, allow_pickle=False) as arrays:
        names = [name for name in (f"{split}_images", "images", "arr_0") if name in arrays]
        if not names:
            raise InputError(
                f"{path}: expected an array 'images' or '{split}_images', got "
                f"{', '.join(arrays.files) or 'none'}."
            )
        _require_memory(path, arrays, names[0])
        images = arrays[names[0]]
        beside = names[0].replace("images", "labels")
        labels = arrays[beside] if beside != names[0] and beside in arrays else None
    return checked_source(path, images, labels)


def _require_memory(path: Path, arrays: Any, name: str) -> None:
    """Refuse an array that unpacks to more than this machine's memory, be it large or a bomb."""
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    entries = arrays.zip.infolist()
    needed = sum(e.file_size for e in entries if e.filename.removesuffix(".npy") == name)
    if needed > memory:
        raise InputError(
            f"{path}: expected an array that fits into memory ({memory / 1e9:.1f} GB), got "
            f"'{name}' of {needed / 1e9:.1f} GB. Save it as .npy, which is read by memory map."
        )


def open_array(path: Path) -> NDArray[Any]:
    """Open an .npy file as a read-only memory map; pickled objects are refused."""
    with _refusing_bad_arrays(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


@contextmanager
def _refusing_bad_arrays(path: Path) -> Iterator[None]:
    """Turn any error of NumPy about a malformed file into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: expected a whole NumPy file without pickled objects, got {error}."
        ) from error


def checked_source(path: Path, images: NDArray[Any], labels: NDArray[Any] | None) -> ArraySource:
    """Return images and integer labels (N,) as a source, or raise an error that shows what to do.

    Images are uint8 (N, H, W, C), or (N, H, W) for grey. Channels in front of the sides of square
    images are refused.
    """
    shape = images.shape
    fits = images.ndim in (3, 4)
    if images.ndim == 4 and shape[3] not in (1, 3):
        fits = not (shape[2] == shape[3] != shape[1] and shape[1] < shape[2])
    one_in_colour = images.ndim == 3 and shape[2] == 3
    if images.dtype != np.uint8 or not fits or one_in_colour:
        raise InputError(
            f"{path}: expected images of uint8 (N, H, W, C) or (N, H, W), "
            f"got {images.dtype} {shape}{_range(images)}.{_conversion(images)}"
        )
    if labels is not None:
        labels = checked_labels(path, labels, len(images))
    return ArraySource(path, images[..., 0] if shape[3:] == (1,) else images, labels)


def checked_labels(path: Path, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return integer labels (count,) or (count, 1) as int64 (count,), or refuse anything else."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise InputError(
            f"{path}: expected integer labels ({count},), got {labels.dtype} {labels.shape}, one "
            "column per class (one-hot). Make them numbers: labels.argmax(axis=1)."
        )
    if labels.shape not in ((count,), (count, 1)) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{path}: expected integer labels ({count},), got {labels.dtype} {labels.shape}."
        )
    return labels.reshape(count).astype(np.int64)


def _range(images: NDArray[Any]) -> str:
    """Return the range of floating-point images, for messages."""
    if not np.issubdtype(images.dtype, np.floating) or not images.size or not images.ndim:
        return ""
    lowest, highest, bad_values, bad_images = np.inf, -np.inf, 0, 0
    for start in range(0, len(images), ROWS):
        part = np.asarray(images[start : start + ROWS])
        finite = np.isfinite(part)
        lowest = min(lowest, part.min(where=finite, initial=np.inf))
        highest = max(highest, part.max(where=finite, initial=-np.inf))
        bad_values += int((~finite).sum())
        bad_images += int((~finite.reshape(len(part), -1).all(axis=1)).sum())
    text = f" of {lowest:.3g} to {highest:.3g}" if lowest <= highest else ""
    if bad_values:
        text += f", with {bad_values:,} values NaN or infinite in {bad_images:,} images"
    return text


def _conversion(images: NDArray[Any]) -> str:
    if np.issubdtype(images.dtype, np.floating):
        return (
            " Make them uint8, which for images in [0, 1] is (images * 255).round()"
            '.astype("uint8"), and leave out what is not finite.'
        )
    if images.dtype == np.uint8 and images.ndim == 4:
        return " Put the channels last: images.transpose(0, 2, 3, 1)."
    if images.dtype == np.uint8 and images.ndim == 3:
        return " If that is one image, add an axis: images[None]."
    return ""


@lru_cache(maxsize=4)
def tarred_arrays(archive: Path) -> Mapping[str, NDArray[Any]]:
    """Map the .npy files of a tar file read-only into memory, by their names without `.npy`."""
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in plain_members(tar, archive):
                name = PurePosixPath(member.name)
                if name.suffix != ".npy" or name.name.startswith("."):
                    continue
                if name.stem in arrays:
                    raise InputError(f"{archive}: holds '{name.name}' twice. Refused.")
                arrays[name.stem] = _mapped(archive, name, member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError, UnicodeError, ValueError) as error:
        raise no_tar(archive, error) from error
    return arrays


def _mapped(archive: Path, name: PurePosixPath, offset: int, size: int) -> NDArray[Any]:
    with archive.open("rb") as file:
        file.seek(offset)
        try:
            if np.lib.format.read_magic(file) == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        except (ValueError, TypeError, SyntaxError) as error:
            raise InputError(f"{archive}: {name}: expected a NumPy file, got {error}.") from error
        begin = file.tell()
    length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if dtype.hasobject or length != offset + size - begin or offset + size > archive.stat().st_size:
        raise InputError(
            f"{archive}: {name}: expected a whole NumPy file without pickled objects, got "
            f"{size:,} bytes for {dtype} {shape}."
        )
    order = "F" if fortran else "C"
    return np.memmap(archive, dtype, "r", begin, shape, order)  # type: ignore[call-overload, no-any-return]


class _ArraysOnly(pickle.Unpickler):
    """Unpickler that builds NumPy arrays and plain containers, and refuses every other name."""

    ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def cifar_pickles(folder: Path, split: str) -> ArraySource | None:
    """Read CIFAR's own pickles without running their code, or return None if there are none."""
    for name, files in CIFAR_PICKLES.items():
        for base in (folder / name, folder):
            paths = [base / file for file in files[split]]
            if all(path.is_file() for path in paths):
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


def mnist_files(folder: Path, split: str) -> ArraySource | None:
    """Read MNIST's idx files, plain or gzipped, or return None if there are none."""
    stem = {"train": "train", "test": "t10k"}[split]
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
