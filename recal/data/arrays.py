"""Images in NumPy files: .npy, .npz, and .npy inside tar files."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from recal.data.images import ArraySource
from recal.data.tars import no_tar, plain_members
from recal.errors import InputError

ROWS = 1024


def plain_array(path: Path, _split: str) -> ArraySource:
    """Open an .npy file of images. `images.npy` has its labels in `labels.npy` beside it.

    Raises:
        InputError: The images or labels are of another type or shape, or damaged.
    """
    beside = path.with_name(path.name.replace("images", "labels"))
    labels = open_array(beside) if beside != path and beside.is_file() else None
    return checked_source(path, open_array(path), labels)


def packed_arrays(path: Path, split: str) -> ArraySource:
    """Read an .npz file with arrays `images` and `labels`, or `arr_0`.

    Args:
        path: The file.
        split: Arrays `<split>_images` and `<split>_labels` take precedence.

    Raises:
        InputError: It has none of these, or they are of another type or shape, or damaged.
    """
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
    if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
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
    """Open an .npy file as a read-only memory map.

    Raises:
        InputError: It is missing, truncated, or holds pickled objects.
    """
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
    """Return images as a source.

    Args:
        path: The file that they were read from, for messages.
        images: uint8 (N, H, W, 3), or (N, H, W) or (N, H, W, 1) for grey.
        labels: Integers (N,), or None.

    Raises:
        InputError: They are of another type or shape. The message shows how to convert them.
    """
    shape = images.shape
    fits = images.ndim in (3, 4) and shape[3:] in ((), (1,), (3,))
    one_in_colour = images.ndim == 3 and shape[2] == 3
    if images.dtype != np.uint8 or not fits or one_in_colour:
        raise InputError(
            f"{path}: expected images of uint8 (N, H, W, 3) or (N, H, W), "
            f"got {images.dtype} {shape}{_range(images)}.{_conversion(images)}"
        )
    if labels is not None:
        labels = checked_labels(path, labels, len(images))
    return ArraySource(path, images[..., 0] if shape[3:] == (1,) else images, labels)


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
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] == 3:
        return " Put the channels last: images.transpose(0, 2, 3, 1)."
    if images.dtype == np.uint8 and images.ndim == 3:
        return " If that is one image, add an axis: images[None]."
    return ""


@lru_cache(maxsize=4)
def tarred_arrays(archive: Path) -> Mapping[str, NDArray[Any]]:
    """Map the .npy files of a tar file read-only into memory, by their names without `.npy`.

    Raises:
        InputError: It is compressed, damaged, holds a link, a device, a path that leads out of it,
            two arrays of one name, or an array that is cut off or of pickled objects.
    """
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
        shape, fortran, dtype = _header(file, archive, name)
        begin = file.tell()
    length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if dtype.hasobject or length != offset + size - begin or offset + size > archive.stat().st_size:
        raise InputError(
            f"{archive}: {name}: expected a whole NumPy file without pickled objects, got "
            f"{size:,} bytes for {dtype} {shape}."
        )
    order = "F" if fortran else "C"
    return np.memmap(archive, dtype, "r", begin, shape, order)  # type: ignore[call-overload, no-any-return]


def _header(
    file: IO[bytes], archive: Path, name: PurePosixPath
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        return np.lib.format.read_array_header_2_0(file)
    except (ValueError, TypeError, SyntaxError) as error:
        raise InputError(f"{archive}: {name}: expected a NumPy file, got {error}.") from error
