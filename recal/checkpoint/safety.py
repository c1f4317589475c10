"""Checking a PyTorch file before PyTorch reads it: names, sizes and checksums.

`torch.load(weights_only=True)` runs no code, but it trusts the sizes in the file and allocates as
much as they say. The pickle is therefore first walked through without building any object: every
global has to be in a literal list, every storage has to be as long as it says, and nesting is
limited.
"""

from __future__ import annotations

import _compat_pickle
import io
import pickletools
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from recal.errors import InputError

# training checkpoints have up to some hundred thousand operations
MOST_OPERATIONS = 4_000_000
# a pair of the same pair, nested sixty times, has 2^60 values to hash
MOST_NODES = 100_000

ITEM_SIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1,
    "BoolStorage": 1, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "UntypedStorage": 1,
}  # fmt: skip


class Global(NamedTuple):
    """A name that the pickle imports."""

    name: str


class Items(NamedTuple):
    """A tuple, with the number of values in it and in the tuples inside, repetitions included."""

    values: tuple[Any, ...]
    nodes: int


class Thing(NamedTuple):
    """Any other object."""

    nodes: int = 1


class Walk:
    """The state of a walk through one pickle.

    Attributes:
        names: The globals that the pickle imports, in order.
        storages: Lengths in bytes of the storages that the pickle refers to, by key.
    """

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.storages: dict[str, int] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._protocol = 0

    def run(self, stream: io.BytesIO | _Bounded) -> None:
        """Walk to the end of the pickle, and leave the stream there."""
        operations = pickletools.genops(stream)  # type: ignore[arg-type]
        for count, (opcode, argument, _) in enumerate(operations):
            if count > MOST_OPERATIONS:
                raise ValueError("more operations than any checkpoint needs")
            step = STEPS.get(opcode.name)
            if step is None:  # a string, number, True, False or None
                self._stack.append(argument)
            else:
                step(self, argument)

    # names of modules differ between versions of the protocol
    def _set_protocol(self, argument: int) -> None:
        self._protocol = argument

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _take(self, count: int) -> list[Any]:
        if not 0 <= count <= len(self._stack):
            raise IndexError("takes more values than there are")
        values = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return values

    def _take_marked(self, _: Any = None) -> list[Any]:
        return self._take(len(self._stack) - self._marks.pop())

    def _import(self, module: str, name: str) -> None:
        if self._protocol < 3:  # written under the names of Python 2
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        self.names[f"{module}.{name}"] = None
        self._stack.append(Global(f"{module}.{name}"))

    def _import_given(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._import(module, name)

    def _import_stacked(self, _: Any) -> None:
        module, name = self._take(2)
        self._import(str(module), str(name))

    # INST of protocol 0: the class is named, and its arguments lie above the mark
    def _instance(self, argument: str) -> None:
        self._take_marked()
        self._import_given(argument)

    def _tuple(self, values: list[Any]) -> None:
        nodes = 1 + sum(getattr(value, "nodes", 1) for value in values)
        if nodes > MOST_NODES:
            raise ValueError("tuples nested beyond reason")
        self._stack.append(Items(tuple(values), nodes))

    def _remember(self, argument: int | None) -> None:
        self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]

    # a reference to a storage
    def _refer(self, _: Any) -> None:
        (reference,) = self._take(1)
        values = reference.values if isinstance(reference, Items) else ()
        if len(values) < 5 or values[0] != "storage" or not isinstance(values[1], Global):
            raise ValueError("a reference to something that is no storage")
        item_size = ITEM_SIZES.get(values[1].name.rpartition(".")[2])
        key, count = str(values[2]), values[4]
        if item_size is None or not isinstance(count, int) or count < 0:
            raise ValueError("a storage of unknown type or length")
        if self.storages.setdefault(key, count * item_size) != count * item_size:
            raise ValueError(f"two lengths for storage {key}")
        self._push_thing()

    # a global is called with this number of values from the stack
    def _call(self, arguments: int) -> None:
        function, *values = self._take(1 + arguments)
        _check_call(function, values[0])
        self._stack.append(Thing(sum(getattr(value, "nodes", 1) for value in values)))

    # OBJ of protocol 1: the first value above the mark is called with the others
    def _object(self, _: Any) -> None:
        _check_call(self._take_marked()[0], None)
        self._push_thing()

    # a list, dictionary or frozenset of the values above the mark
    def _collect(self, _: Any) -> None:
        self._take_marked()
        self._push_thing()

    def _push_thing(self, _: Any = None) -> None:
        self._stack.append(Thing())


def _check_call(function: Any, arguments: Any) -> None:
    if not isinstance(function, Global):
        raise ValueError("a call of something that is no global")
    if function.name.endswith("Storage"):
        raise ValueError("a storage made out of nothing")
    if function.name == "_codecs.encode":
        values = arguments.values if isinstance(arguments, Items) else ()
        if len(values) != 2 or values[1] not in ("latin1", "latin-1"):
            raise ValueError("a text in an encoding that no checkpoint uses")


STEPS: dict[str, Callable[[Walk, Any], object]] = {
    "PROTO": Walk._set_protocol,
    **dict.fromkeys(("FRAME", "STOP"), lambda *_: None),
    "MARK": Walk._mark,
    "GLOBAL": Walk._import_given,
    "STACK_GLOBAL": Walk._import_stacked,
    **dict.fromkeys(
        ("EXT1", "EXT2", "EXT4"), lambda walk, _: walk._import("copyreg", "an extension")
    ),
    "INST": Walk._instance,
    "OBJ": Walk._object,
    "EMPTY_TUPLE": lambda walk, _: walk._tuple([]),
    "TUPLE1": lambda walk, _: walk._tuple(walk._take(1)),
    "TUPLE2": lambda walk, _: walk._tuple(walk._take(2)),
    "TUPLE3": lambda walk, _: walk._tuple(walk._take(3)),
    "TUPLE": lambda walk, _: walk._tuple(walk._take_marked()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Walk._remember),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"), lambda walk, key: walk._stack.append(walk._memo[key])
    ),
    **dict.fromkeys(("PERSID", "BINPERSID"), Walk._refer),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda walk, _: walk._call(1)),
    "NEWOBJ_EX": lambda walk, _: walk._call(2),
    **dict.fromkeys(("BUILD", "APPEND", "POP"), lambda walk, _: walk._take(1)),
    "SETITEM": lambda walk, _: walk._take(2),
    **dict.fromkeys(("APPENDS", "SETITEMS", "ADDITEMS", "POP_MARK"), Walk._take_marked),
    **dict.fromkeys(("LIST", "DICT", "FROZENSET"), Walk._collect),
    "DUP": lambda walk, _: walk._stack.append(walk._stack[-1]),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), Walk._push_thing),
}


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PICKLES = 5
# the first operation is a version, or in versions 0 and 1 a global, tuple, dictionary or list
PICKLE_STARTS = (b"\x80", b"c", b"(", b"}", b"]")

# globals that dense tensors need; none of them allocates memory or runs code from the file
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

# types that training scripts store beside tensors; each is read as an inert `Record`
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
    """Replacement for an object of a harmless type, whose own code is never run.

    Attributes:
        state: The stored attributes, if they are a dictionary.
    """

    def __init__(self, *_: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.state = {key: value for key, value in state.items() if isinstance(key, str)}


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
        stream = _Bounded(file, size)
        total = sum(sum(_walk_or_refuse(path, stream).values()) for _ in range(pickles))
    if total > size:
        raise InputError(
            f"{path}: expected {total:,} bytes of storages, got a file of {size:,}. It is "
            "truncated or forged."
        )


class _Bounded:
    """A file whose reader never allocates memory for more bytes than the file has."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.readline = file.readline
        self.tell = file.tell
        self._read = file.read
        self._size = size

    def read(self, count: int) -> bytes:
        if count > self._size:
            raise ValueError("a value longer than the file")
        return self._read(count)


def _walk_or_refuse(path: Path, stream: io.BytesIO | _Bounded) -> dict[str, int]:
    walk, problem = Walk(), None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about odd escapes in damaged strings
            walk.run(stream)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        problem = error
    # a forbidden global is the better reason, even if the rest is damaged, too
    for name in walk.names:
        if name not in TENSOR_GLOBALS and name not in RECORD_GLOBALS:
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
