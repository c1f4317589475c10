"""NumPy arrays inside a tar file, mapped where they stand."""

from __future__ import annotations

import tarfile
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from recal.data.archives import check_end, checked_name
from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import IO

    from numpy.typing import NDArray


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
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                name = PurePosixPath(checked_name(member, archive, ""))
                if member.isdir() or name.suffix != ".npy" or name.name.startswith("."):
                    continue
                if name.stem in arrays:
                    raise InputError(f"{archive}: holds '{name.name}' twice. Refused.")
                arrays[name.stem] = _mapped(archive, name, member.offset_data, member.size)
            check_end(tar, archive)
    except (tarfile.TarError, OSError, EOFError, UnicodeError, ValueError) as error:
        raise InputError(
            f"{archive}: expected a whole tar archive without compression, got another file "
            f"({error}). Unpack it and name the folder."
        ) from error
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
