"""Looking through a PyTorch file before PyTorch reads it: names, sizes and checksums.

`torch.load(weights_only=True)` runs no code, but trusts sizes and allocates what it is told to. So
the pickle is first walked through without building anything: every global must be in a literal
list, every storage must be as long as it says, and nothing may be nested so deeply that it costs
time.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

from recal.checkpoint.pickle_walk import ITEM_SIZES, Readable, Walk
from recal.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PICKLES = 5
# a version, or, in versions 0 and 1, a global, a tuple, dictionary or list
PICKLE_STARTS = (b"\x80", b"c", b"(", b"}", b"]")

# what PyTorch needs for dense tensors; none allocates by itself or runs anything given
TENSOR_GLOBALS = frozenset(
    {
        "collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex",
        "_codecs.encode", "torch.Size", "torch.device", "torch.nn.parameter.Parameter",
        "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state", "torch.storage.UntypedStorage",
        *(f"torch.{name}" for name in ITEM_SIZES if name != "UntypedStorage"),
        *(f"torch.{name}" for name in ("float64", "float32", "float16", "bfloat16", "complex64",
          "complex128", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64",
          "bool", "float8_e4m3fn", "float8_e5m2")),
    }
)  # fmt: skip

# what training scripts keep beside tensors; each is read as an inert `Record`, never as itself
RECORD_GLOBALS = (
    "argparse.Namespace",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "numpy.dtype", "numpy.ndarray",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    "datetime.datetime", "datetime.timedelta",
)  # fmt: skip


class Record:
    """Stands for an object of a harmless type, whose own code is never run.

    Attributes:
        state: The attributes that were stored, where they are a dictionary.
    """

    def __init__(self, *_: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.state = {key: value for key, value in state.items() if isinstance(key, str)}


def vet_file(path: Path) -> None:
    """Refuse a PyTorch file that is damaged, dishonest about sizes, or wants a global.

    Raises:
        InputError: It is one of these, or no PyTorch checkpoint at all.
    """
    if _is_archive(path):
        _vet_archive(path)
    else:
        _vet_legacy(path)


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True  # one with a broken end, which opening it will tell


def _vet_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _refuse_programs(path, [entry.filename for entry in entries])
            _check_entries(path, entries)
            pickles = [e.filename for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise InputError(
                    f"{path}: expected a PyTorch checkpoint, got a zip archive with "
                    f"{len(pickles)} data.pkl in it."
                )
            # reading an entry to its end checks its checksum
            for entry in entries:
                with archive.open(entry) as file:
                    while file.read(1 << 20):
                        pass
            storages = _walk_or_refuse(path, io.BytesIO(archive.read(pickles[0])))
            folder = pickles[0].removesuffix("data.pkl") + "data/"
            lengths = {entry.filename: entry.file_size for entry in entries}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: expected a whole PyTorch checkpoint, got a damaged one ({error}). "
            "Copy or download it again."
        ) from error
    for key, size in storages.items():
        if lengths.get(folder + key, 0) != size:
            raise InputError(
                f"{path}: expected {size:,} bytes for storage {key}, got "
                f"{lengths.get(folder + key, 0):,}. The file is damaged or forged."
            )


def _refuse_programs(path: Path, names: list[str]) -> None:
    files = {name.rpartition("/")[2] for name in names}
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


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
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
        stream = _Bounded(file, path.stat().st_size)
        # a file from before PyTorch 1.6 is five pickles, then the storages; another pickle is one
        pickles = LEGACY_PICKLES if _starts_with_magic(file) else 1
        total = 0
        for _ in range(pickles):
            total += sum(_walk_or_refuse(path, stream).values())
    if total > path.stat().st_size:
        raise InputError(
            f"{path}: expected {total:,} bytes of storages, got a file of "
            f"{path.stat().st_size:,}. It is truncated or forged."
        )


class _Bounded:
    """A file whose reader is never asked, and so never makes room, for more than there is."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.readline = file.readline
        self.tell = file.tell
        self._read = file.read
        self._size = size

    def read(self, count: int) -> bytes:
        if count > self._size:
            raise ValueError("a value longer than the file")
        return self._read(count)


def _starts_with_magic(file: BinaryIO) -> bool:
    head = file.read(32)
    file.seek(0)
    return LEGACY_MAGIC.to_bytes(10, "little") in head


def _walk_or_refuse(path: Path, stream: Readable) -> dict[str, int]:
    walk, problem = Walk(), None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in damaged strings
            walk.run(stream)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        problem = error
    # a global is the more telling reason, also where what follows it is strange
    for name in walk.names:
        if name not in TENSOR_GLOBALS and name not in RECORD_GLOBALS:
            raise InputError(
                f"{path}: refused, because loading it would call {name[:200]}; nothing was run. "
                "Where you trust the file, load it there and save the state_dict() alone."
            )
    if problem is not None:
        raise InputError(
            f"{path}: expected a whole PyTorch checkpoint, got a damaged one ({problem}). "
            "Copy or download it again."
        ) from problem
    return walk.storages


# how files of other kinds begin
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
