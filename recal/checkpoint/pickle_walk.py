"""Walking through a pickle without building what it describes.

The walk follows the pickle machine's stack, with tokens in the place of objects, so that it knows
which globals a pickle names, which storages it asks for, and how deeply its tuples are nested.
"""

from __future__ import annotations

import _compat_pickle
import pickletools
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

# real training checkpoints have some hundred thousand operations
MOST_OPERATIONS = 4_000_000
# a tuple of itself twice, sixty times over, takes for ever to hash
MOST_NODES = 100_000

ITEM_SIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1,
    "BoolStorage": 1, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "UntypedStorage": 1,
}  # fmt: skip


class Readable(Protocol):
    """What a pickle is read from."""

    def read(self, count: int, /) -> bytes:
        """Return so many bytes, or what is left."""
        ...

    def readline(self) -> bytes:
        """Return one line."""
        ...


class Global(NamedTuple):
    """A name that the pickle imports."""

    name: str


class Items(NamedTuple):
    """A tuple, and the number of values in it and in the tuples in it, counted as often as met."""

    values: tuple[Any, ...]
    nodes: int


class Thing(NamedTuple):
    """Any other object."""

    nodes: int = 1


class Walk:
    """The state of a walk through one pickle.

    Attributes:
        names: The globals that the pickle names, in order.
        storages: Length in bytes of the storages that it refers to, by key.
    """

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.storages: dict[str, int] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._protocol = 0

    def run(self, stream: Readable) -> None:
        """Walk to the end of the pickle, which is where the stream is left.

        Raises:
            ValueError, IndexError, KeyError: It is no pickle, or not one that a checkpoint needs.
        """
        operations = pickletools.genops(stream)  # type: ignore[arg-type]
        for count, (opcode, argument, _) in enumerate(operations):
            if count > MOST_OPERATIONS:
                raise ValueError("more operations than any checkpoint needs")
            step = STEPS.get(opcode.name)
            if step is None:  # a string, number, True, False or None
                self._stack.append(argument)
            else:
                step(self, argument)

    def skip(self, _: Any) -> None:
        """Do nothing."""

    def protocol(self, argument: int) -> None:
        """Note the version, by which the names of modules differ."""
        self._protocol = argument

    def mark(self, _: Any) -> None:
        """Remember the height of the stack."""
        self._marks.append(len(self._stack))

    def take_marked(self, _: Any = None) -> list[Any]:
        """Take what was put on the stack since the last mark."""
        return self._take(len(self._stack) - self._marks.pop())

    def import_name(self, argument: str) -> None:
        """Name a global, module and name with a space between."""
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def import_stacked(self, _: Any) -> None:
        """Name a global, module and name on the stack."""
        module, name = self._take(2)
        self._name(str(module), str(name))

    def import_extension(self, _: Any) -> None:
        """Name a global by its number in a table of the process."""
        self._name("copyreg", "an extension")

    def instance(self, argument: str) -> None:
        """Make an object, protocol 0."""
        self.take_marked()
        self.import_name(argument)

    def tuple_of(self, size: int | None) -> None:
        """Make a tuple of the last values, or of all since the mark."""
        values = self.take_marked() if size is None else self._take(size)
        nodes = 1 + sum(getattr(value, "nodes", 1) for value in values)
        if nodes > MOST_NODES:
            raise ValueError("tuples nested beyond reason")
        self._stack.append(Items(tuple(values), nodes))

    def remember(self, argument: int | None) -> None:
        """Put the last value into the memo."""
        self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]

    def recall(self, argument: int) -> None:
        """Take a value out of the memo."""
        self._stack.append(self._memo[argument])

    def refer(self, _: Any) -> None:
        """Ask for a storage."""
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
        self._stack.append(Thing())

    def call(self, arguments: int) -> None:
        """Call a global with so many values from the stack."""
        function, *values = self._take(1 + arguments)
        _check_call(function, values[0])
        self._stack.append(Thing(sum(getattr(value, "nodes", 1) for value in values)))

    def make_object(self, _: Any) -> None:
        """Call the first value since the mark with the others."""
        values = self.take_marked()
        _check_call(values[0], None)
        self._stack.append(Thing())

    def collect(self, _: Any) -> None:
        """Make a list, dictionary or frozenset of the values since the mark."""
        self.take_marked()
        self._stack.append(Thing())

    def repeat(self, _: Any) -> None:
        """Repeat the last value."""
        self._stack.append(self._stack[-1])

    def drop(self, count: int) -> None:
        """Drop the last values."""
        self._take(count)

    def empty(self, _: Any) -> None:
        """Make an empty list, dictionary or set."""
        self._stack.append(Thing())

    def _take(self, count: int) -> list[Any]:
        if not 0 <= count <= len(self._stack):
            raise IndexError("takes more values than there are")
        values = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return values

    def _name(self, module: str, name: str) -> None:
        if self._protocol < 3:  # written under the names of Python 2
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        self.names[f"{module}.{name}"] = None
        self._stack.append(Global(f"{module}.{name}"))


def _check_call(function: Any, arguments: Any) -> None:
    if not isinstance(function, Global):
        raise ValueError("a call of something that is no global")
    if function.name.endswith("Storage"):
        raise ValueError("a storage made out of nothing")
    if function.name == "_codecs.encode":
        values = arguments.values if isinstance(arguments, Items) else ()
        if len(values) != 2 or values[1] not in ("latin1", "latin-1"):
            raise ValueError("a text in an encoding that no checkpoint uses")


STEPS: dict[str, Callable[[Walk, Any], Any]] = {
    "PROTO": Walk.protocol,
    **dict.fromkeys(("FRAME", "STOP"), Walk.skip),
    "MARK": Walk.mark,
    "GLOBAL": Walk.import_name,
    "STACK_GLOBAL": Walk.import_stacked,
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), Walk.import_extension),
    "INST": Walk.instance,
    "OBJ": Walk.make_object,
    "EMPTY_TUPLE": lambda walk, _: walk.tuple_of(0),
    "TUPLE1": lambda walk, _: walk.tuple_of(1),
    "TUPLE2": lambda walk, _: walk.tuple_of(2),
    "TUPLE3": lambda walk, _: walk.tuple_of(3),
    "TUPLE": lambda walk, _: walk.tuple_of(None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Walk.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Walk.recall),
    **dict.fromkeys(("PERSID", "BINPERSID"), Walk.refer),
    "REDUCE": lambda walk, _: walk.call(1),
    "NEWOBJ": lambda walk, _: walk.call(1),
    "NEWOBJ_EX": lambda walk, _: walk.call(2),
    "BUILD": lambda walk, _: walk.drop(1),
    "APPEND": lambda walk, _: walk.drop(1),
    "SETITEM": lambda walk, _: walk.drop(2),
    **dict.fromkeys(("APPENDS", "SETITEMS", "ADDITEMS", "POP_MARK"), Walk.take_marked),
    **dict.fromkeys(("LIST", "DICT", "FROZENSET"), Walk.collect),
    "POP": lambda walk, _: walk.drop(1),
    "DUP": Walk.repeat,
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), Walk.empty),
}
