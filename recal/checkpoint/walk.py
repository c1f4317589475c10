"""A walk through a pickle that builds none of its objects, and finds what it would call."""

from __future__ import annotations

import _compat_pickle
import io
import math
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from recal.checkpoint.inert import CONDITIONAL, ITEM_SIZES, REBUILD, RECORDS

LATIN = ("latin1", "latin-1")
# training checkpoints have up to some hundred thousand operations
MOST_OPERATIONS = 4_000_000
# a pair of the same pair, nested sixty times, has 2^60 values to hash
MOST_NODES = 100_000


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
    is_bytes: bool = False


class Bounded:
    """A file whose reader never allocates memory for more bytes than the file has."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.readline = file.readline
        self.tell = file.tell
        self._read = file.read
        self._size = size

    def read(self, count: int) -> bytes:
        """Return the next bytes; more than the file has are a ValueError."""
        if count > self._size:
            raise ValueError("a value longer than the file")
        return self._read(count)


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

    def run(self, stream: io.BytesIO | Bounded) -> None:
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
        if f"{module}.{name}" not in CONDITIONAL:
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
        self._check_call(function, values[0])
        nodes = sum(getattr(value, "nodes", 1) for value in values)
        self._stack.append(Thing(nodes, is_bytes=function.name == "_codecs.encode"))

    # OBJ of protocol 1: the first value above the mark is called with the others
    def _object(self, _: Any) -> None:
        self._check_call(self._take_marked()[0], None)
        self._push_thing()

    # a list, dictionary or frozenset of the values above the mark
    def _collect(self, _: Any) -> None:
        self._take_marked()
        self._push_thing()

    def _push_thing(self, _: Any = None) -> None:
        self._stack.append(Thing())

    def _check_call(self, function: Any, arguments: Any) -> None:
        """Refuse a call that would allocate memory, or reach for an attribute of anything real."""
        if not isinstance(function, Global):
            raise ValueError("a call of something that is no global")
        name = function.name
        values = arguments.values if isinstance(arguments, Items) else ()
        if name.endswith("Storage"):
            raise ValueError("a storage made out of nothing")
        if name == "torch.Tensor":
            raise ValueError("a tensor made out of nothing")
        if name == "_codecs.encode" and (len(values) != 2 or values[1] not in LATIN):
            raise ValueError("a text in an encoding that no checkpoint uses")
        if name == "builtins.bytearray" and (
            not isinstance(arguments, Items) or not all(getattr(v, "is_bytes", 0) for v in values)
        ):
            self.names[name] = None
        if name == "builtins.getattr" and not (
            len(values) == 2 and isinstance(values[0], Global) and values[0].name in RECORDS
        ):
            self.names[name] = None
        if name == "torch._utils._rebuild_qtensor":
            size = values[2].values if len(values) > 2 and isinstance(values[2], Items) else (-1,)
            counts = [count for count in size if isinstance(count, int) and count >= 0]
            if len(counts) != len(size) or math.prod(counts) > sum(self.storages.values()):
                raise ValueError("a tensor larger than its storage")
        if name == "torch._tensor._rebuild_from_type_v2":
            inner = values[0] if len(values) > 2 else None
            if not isinstance(inner, Global) or inner.name not in REBUILD:
                raise ValueError("a tensor made by something that makes none")
            self._check_call(inner, values[2])


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
