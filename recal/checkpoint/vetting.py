"""Looking through a PyTorch file before PyTorch reads it: names, sizes and checksums.

`torch.load(weights_only=True)` runs no code, but trusts sizes and allocates what it is told to. So the pickle
is first walked through without building anything: every global must be in a literal list, every
storage must be as long as it says, and nothing may be nested so deeply that it costs time.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from recal.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

# real training checkpoints have some hundred thousand operations
MOST_OPERATIONS = 4_000_000
MOST_NODES = 100_000
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PICKLES = 5

ITEM_SIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1,
    "BoolStorage": 1, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "UntypedStorage": 1,
}  # fmt: skip

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


@dataclass
class Storages:
    """The storages that a pickle asks for.

    Attributes:
        sizes: Length in bytes by key.
    """

    sizes: dict[str, int] = field(default_factory=dict)

    def ask(self, reference: Any) -> None:
        """Note a persistent reference.

        Raises:
            ValueError: It is none to a storage of a known type and length, or contradicts another.
        """
        items = reference.items if isinstance(reference, _Tuple) else ()
        if len(items) < 5 or items[0] != "storage" or not isinstance(items[1], _Global):
            raise ValueError("a reference to something that is no storage")
        item_size = ITEM_SIZES.get(items[1].name.rpartition(".")[2])
        key, count = items[2], items[4]
        if item_size is None or not isinstance(count, int) or count < 0:
            raise ValueError("a storage of unknown type or length")
        if self.sizes.setdefault(str(key), count * item_size) != count * item_size:
            raise ValueError(f"two lengths for storage {key}")


class _Global(NamedTuple):
    name: str


class _Tuple(NamedTuple):
    items: tuple[Any, ...]
    nodes: int


class _Object(NamedTuple):
    nodes: int = 1


def vet_file(path: Path) -> None:
    """Refuse a PyTorch file that is damaged, dishonest about sizes, or wants a global.

    Raises:
        InputError: It is one of these, or no PyTorch checkpoint at all.
    """
    if zipfile.is_zipfile(path):
        _vet_archive(path)
    else:
        _vet_legacy(path)


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
    for key, size in storages.sizes.items():
        if lengths.get(folder + key, 0) != size:
            raise InputError(
                f"{path}: expected {size:,} bytes for storage {key}, got "
                f"{lengths.get(folder + key, 0):,}. The file is damaged or forged."
            )


def _refuse_programs(path: Path, names: list[str]) -> None:
    files = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in files:
        raise InputError(
            f"{path}: expected weights, got a TorchScript program. Load it where you trust it, with "
            "torch.jit.load, and save its state_dict() alone."
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
        if file.read(1) != b"\x80":
            raise InputError(f"{path}: expected a checkpoint, got {_guess(path)}.")
        file.seek(0)
        # a file from before PyTorch 1.6 is five pickles, then the storages; another pickle is one
        pickles = LEGACY_PICKLES if _starts_with_magic(file) else 1
        total = 0
        for _ in range(pickles):
            total += sum(_walk_or_refuse(path, file).sizes.values())
    if total > path.stat().st_size:
        raise InputError(
            f"{path}: expected {total:,} bytes of storages, got a file of "
            f"{path.stat().st_size:,}. It is truncated or forged."
        )


def _starts_with_magic(file: BinaryIO) -> bool:
    head = file.read(32)
    file.seek(0)
    return LEGACY_MAGIC.to_bytes(10, "little") in head


def _walk_or_refuse(path: Path, stream: BinaryIO) -> Storages:
    try:
        storages, globals_ = walk(stream)
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: expected a whole PyTorch checkpoint, got a damaged one ({error}). "
            "Copy or download it again."
        ) from error
    for name in globals_:
        if name not in TENSOR_GLOBALS and name not in RECORD_GLOBALS:
            raise InputError(
                f"{path}: refused, because loading it would call {name}; nothing was run. Where you "
                "trust the file, load it there and save the state_dict() alone."
            )
    return storages


def walk(stream: BinaryIO) -> tuple[Storages, list[str]]:
    """Walk through one pickle without building what it describes.

    Returns:
        The storages that it refers to and the globals that it names, in order.

    Raises:
        ValueError, IndexError, KeyError: It is no pickle, or not a reasonable one.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    storages, names = Storages(), dict[str, None]()

    def pop_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def push_tuple(items: list[Any]) -> None:
        nodes = 1 + sum(getattr(item, "nodes", 1) for item in items)
        if nodes > MOST_NODES:
            # a tuple of itself twice, sixty times over, takes for ever to hash
            raise ValueError("tuples nested beyond reason")
        stack.append(_Tuple(tuple(items), nodes))

    def push_global(name: str) -> None:
        names[name] = None
        stack.append(_Global(name))

    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > MOST_OPERATIONS:
            raise ValueError("more operations than any checkpoint needs")
        op = opcode.name
        if op in ("PROTO", "FRAME", "STOP", "NOP"):
            continue
        if op == "MARK":
            marks.append(len(stack))
        elif op in ("GLOBAL", "INST"):
            if op == "INST":
                pop_mark()
            push_global(argument.replace(" ", "."))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            push_global(f"{module}.{name}")
        elif op in ("EXT1", "EXT2", "EXT4"):
            push_global("an extension of copyreg")
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(op[-1])
            items = stack[len(stack) - size :]
            del stack[len(stack) - size :]
            push_tuple(items)
        elif op == "TUPLE":
            push_tuple(pop_mark())
        elif op in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif op == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif op in ("BINPERSID", "PERSID"):
            storages.ask(stack.pop() if op == "BINPERSID" else argument)
            stack.append(_Object())
        elif op in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            arguments = [stack.pop() for _ in range(2 if op == "NEWOBJ_EX" else 1)]
            _check_call(stack.pop(), arguments[-1])
            stack.append(_Object(sum(getattr(item, "nodes", 1) for item in arguments)))
        elif op == "OBJ":
            _check_call(*(pop_mark()[:1] or [None]), None)
            stack.append(_Object())
        elif op in ("BUILD", "APPEND", "SETITEM"):
            del stack[len(stack) - (2 if op == "SETITEM" else 1) :]
        elif op in ("APPENDS", "SETITEMS", "ADDITEMS"):
            pop_mark()
        elif op in ("LIST", "DICT", "FROZENSET"):
            pop_mark()
            stack.append(_Object())
        elif op == "POP":
            stack.pop()
        elif op == "POP_MARK":
            pop_mark()
        elif op == "DUP":
            stack.append(stack[-1])
        elif op.startswith("EMPTY_"):
            stack.append(_Tuple((), 1) if op == "EMPTY_TUPLE" else _Object())
        else:  # a string, number, True, False or None
            stack.append(argument)
    return storages, list(names)


def _check_call(function: Any, arguments: Any) -> None:
    if not isinstance(function, _Global):
        raise ValueError("a call of something that is no global")
    if function.name == "torch.storage.UntypedStorage" or function.name.endswith("Storage"):
        raise ValueError("a storage made out of nothing")
    if function.name == "_codecs.encode":
        items = arguments.items if isinstance(arguments, _Tuple) else ()
        if len(items) != 2 or items[1] not in ("latin1", "latin-1"):
            raise ValueError("a text in an encoding that no checkpoint uses")


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
        file.seek(257 if path.stat().st_size > 265 else 0)
        tar = file.read(5) == b"ustar"
    if not head:
        return "an empty file"
    if tar:
        return "a tar archive. Unpack it"
    known = (text for magic, text in KINDS if head.startswith(magic))
    return next(known, "neither a PyTorch nor a safetensors file")
