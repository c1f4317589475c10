"""Checking a PyTorch file before PyTorch reads it: names, sizes and checksums.

`torch.load(weights_only=True)` runs no code, but it trusts the sizes in the file and allocates as
much as they say. The pickle is therefore first walked through without building any object: every
global has to be in a literal list, every storage has to be as long as it says, and nesting is
limited.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

from recal.checkpoint.inert import CONDITIONAL, RECORDS, TENSOR_GLOBALS
from recal.checkpoint.walk import Bounded, Walk
from recal.errors import InputError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PICKLES = 5
# the first operation is a version, or in versions 0 and 1 a global, tuple, dictionary or list
PICKLE_STARTS = (b"\x80", b"c", b"(", b"}", b"]")


def vet_file(path: Path) -> None:
    """Refuse a PyTorch file that is damaged, has wrong sizes, or imports a forbidden global."""
    try:
        is_archive = zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        is_archive = True  # an archive with a damaged end, which is reported when it is opened
    if is_archive:
        _vet_archive(path)
    else:
        _vet_legacy(path)


def _vet_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries)
            pickles = [e.filename for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise InputError(
                    f"{path}: expected a PyTorch checkpoint, got a zip archive with "
                    f"{len(pickles)} data.pkl in it."
                )
            # the checksum is checked when an entry is read to its end
            for entry in entries:
                with archive.open(entry) as file:
                    while file.read(1 << 20):
                        pass
            storages = _walk_or_refuse(path, io.BytesIO(archive.read(pickles[0])))
            folder = pickles[0].removesuffix("data.pkl") + "data/"
            lengths = {entry.filename: entry.file_size for entry in entries}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error
    for key, size in storages.items():
        if (found := lengths.get(folder + key, 0)) != size:
            raise InputError(
                f"{path}: expected {size:,} bytes for storage {key}, got {found:,}. The file is "
                "damaged or forged."
            )


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    files = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in files:
        raise InputError(
            f"{path}: expected weights, got a TorchScript program. Load it where you trust it, "
            "with torch.jit.load, and save its state_dict() alone."
        )
    if "archive_format" in files or "serialized_exported_program.json" in files:
        raise InputError(
            f"{path}: expected weights, got a torch.export program. Save the state_dict of the "
            "exported program alone."
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputError(
            f"{path}: expected the uncompressed archive that PyTorch writes, got compressed "
            "entries. Save it again with torch.save."
        )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise InputError(f"{path}: its entries overlap; the file is damaged or forged.")
    if len({entry.filename for entry in entries}) != len(entries):
        raise InputError(f"{path}: two entries of one name; the file is damaged or forged.")


def _vet_legacy(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(1) not in PICKLE_STARTS:
            raise InputError(f"{path}: expected a checkpoint, got {_guess(path)}.")
        file.seek(0)
        # before PyTorch 1.6, files were five pickles and the storages; other files are one pickle
        pickles = LEGACY_PICKLES if LEGACY_MAGIC.to_bytes(10, "little") in file.read(32) else 1
        file.seek(0)
        size = path.stat().st_size
        stream = Bounded(file, size)
        total = sum(sum(_walk_or_refuse(path, stream).values()) for _ in range(pickles))
    if total > size:
        raise InputError(
            f"{path}: expected {total:,} bytes of storages, got a file of {size:,}. It is "
            "truncated or forged."
        )


def _walk_or_refuse(path: Path, stream: io.BytesIO | Bounded) -> dict[str, int]:
    walk, problem = Walk(), None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about odd escapes in damaged strings
            walk.run(stream)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        problem = error
    # a forbidden global is the better reason, even if the rest is damaged, too
    for name in walk.names:
        if name in CONDITIONAL or not (name in TENSOR_GLOBALS or name in RECORDS):
            raise InputError(
                f"{path}: refused, because loading it would call {name[:200]}; nothing was run. "
                "Where you trust the file, load it there and save the state_dict() alone."
            )
    if problem is not None:
        raise _damaged(path, problem) from problem
    return walk.storages


def _damaged(path: Path, problem: Exception) -> InputError:
    return InputError(
        f"{path}: expected a whole PyTorch checkpoint, got a damaged one ({problem}). Copy or "
        "download it again."
    )


# first bytes of other kinds of files
KINDS = (
    (b"\x89HDF\r\n", "an HDF5 file (Keras?). Convert it to PyTorch first"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip archive. Unpack it"),
    (b"\xfd7zXZ", "an xz archive. Unpack it"),
    (b"BZh", "a bzip2 archive. Unpack it"),
    (b"GGUF", "a GGUF file, which holds no BatchNorm"),
    (b"version https://git-lfs", "a Git LFS pointer. Fetch the file itself (git lfs pull)"),
    (b"<", "a web page or XML. The download went wrong"),
    (b"\x08", "what looks like an ONNX file. Give the checkpoint that it was exported from"),
)


def _guess(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
        file.seek(257)
        tar = file.read(5) == b"ustar"
    if not head:
        return "an empty file"
    if tar:
        return "a tar archive. Unpack it"
    known = (text for magic, text in KINDS if head.startswith(magic))
    return next(known, "neither a PyTorch nor a safetensors file")
