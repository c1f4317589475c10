"""The one door for content from outside: TOML and JSON are read into typed, checked records.

A record is a class derived from `Record`, and its annotations are the schema:

    class Crop(Record, frozen=True, kw_only=True):
        size: Annotated[int, Meta(ge=1, le=16384)]
        padding_mode: Literal["reflect", "constant"] = "constant"

Whatever is wrong with the content ends in one InputError, `<where>: <place>: expected <what>, got
<value>.`, where the place is the path of keys inside, with list items counted from 1: `op 2: size`.
A check that annotations cannot express is a ValueError raised in `__post_init__`; its message gets
the same place in front. Numbers have to be finite and integers fit into 64 bits. An integer is
accepted where a float is expected, and a boolean only where a boolean is. A field `format` of type
`Literal` is checked first, so that files of a newer version are named as such.

Content is text or UTF-8 bytes. Its type is `kind`, usually a subclass of `Record`. It is held by
`where`, a file or key, which messages name.
"""

import math
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import msgspec
from msgspec import Meta, Struct

from recal.errors import InputError, did_you_mean, reason, shown

T = TypeVar("T")

MAX_DEPTH = 64
NAMES: dict[object, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    types.NoneType: "null",
    None: "null",
}


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all classes that are read from, or written to, TOML and JSON.

    Subclasses repeat `frozen=True, kw_only=True`, which type checkers do not inherit.
    """


def read_toml(path: Path, kind: type[T]) -> T:
    """Read a TOML file as a `kind`.

    Raises:
        InputError: The file cannot be read, is not TOML, or its content does not fit `kind`.
    """
    return parse_toml(_read(path), kind, str(path))


def parse_toml(content: bytes | str, kind: type[T], where: str) -> T:
    """Parse TOML as a `kind`.

    Raises:
        InputError: It is not TOML, or its content does not fit `kind`.
    """
    try:
        parsed = tomllib.loads(content.decode() if isinstance(content, bytes) else content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected TOML, got {_reason(error)}") from error
    return convert(parsed, kind, where)


def read_json_file(path: Path, kind: type[T]) -> T:
    """Read a JSON file as a `kind`.

    Raises:
        InputError: The file cannot be read, is not JSON, or its content does not fit `kind`.
    """
    return read_json(_read(path), kind, str(path))


def read_json(content: bytes | str, kind: type[T], where: str) -> T:
    """Parse JSON as a `kind`.

    Raises:
        InputError: It is not JSON, or its content does not fit `kind`.
    """
    try:
        parsed = msgspec.json.decode(content)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected JSON, got {_reason(error)}") from error
    return convert(parsed, kind, where)


def convert(content: object, kind: type[T], where: str) -> T:
    """Check parsed content (dictionaries, lists and plain values), and return it as `kind`.

    Raises:
        InputError: The content does not fit. The message names the place inside.
    """
    oddity = _find_oddity(content)
    if oddity is not None:
        raise InputError(f"{where}: {oddity}")
    try:
        return msgspec.convert(content, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_explain(content, kind, error)}") from error


def to_json(value: object, *, indent: int = 0) -> str:
    """Return a record as JSON with sorted keys: equal records give equal text.

    The value may be a list or dictionary of records and plain values. With `indent` 0 the text is
    one line.

    Raises:
        InputError: A string in it is not Unicode text, such as the name of an odd file.
    """
    try:
        encoded = msgspec.json.encode(value, order="sorted")
    except UnicodeEncodeError as error:
        raise InputError(f"expected text in UTF-8, got {shown(error.object)}.") from error
    return msgspec.json.format(encoded, indent=indent).decode() if indent else encoded.decode()


def json_schema(kind: type) -> dict[str, Any]:
    """Return the JSON schema of a record, which editors use to complete and check files."""
    return msgspec.json.schema(kind)


def describe(kind: Any) -> str:
    """Return what an annotation accepts, such as `a number from 0 to 1`."""
    kind, metas = _bare(kind)
    said = next((meta.description for meta in metas if meta.description), None)
    if said is not None:
        return said
    if get_origin(kind) is Literal:
        words = ", ".join(map(str, get_args(kind)))
        return words if len(get_args(kind)) == 1 else f"one of {words}"
    if _is_union(kind):
        members = [member for member in get_args(kind) if member is not msgspec.UnsetType]
        return " or ".join(dict.fromkeys(describe(member) for member in members))
    if _is_list(kind):
        return _describe_list(kind, metas)
    name = NAMES.get(kind, "a table" if _is_table(kind) else "another value")
    return name + "".join(_bounds(meta) for meta in metas)


def _describe_list(kind: Any, metas: list[Meta]) -> str:
    arguments = get_args(kind)
    least = next((meta.min_length for meta in metas if meta.min_length is not None), 0)
    most = next((meta.max_length for meta in metas if meta.max_length is not None), None)
    if get_origin(kind) is tuple and arguments[-1] is not Ellipsis:
        least = most = len(arguments)
    if most is None:
        return f"a list of at least {least} items" if least else "a list"
    return f"a list of {most} items" if least == most else f"a list of {least} to {most} items"


def _bounds(meta: Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        return f" from {meta.ge:g} to {meta.le:g}"
    signs = ((">=", meta.ge), (">", meta.gt), ("<=", meta.le), ("<", meta.lt))
    words = [f" {sign} {bound:g}" for sign, bound in signs if bound is not None]
    if meta.min_length is not None:
        words.append(f" of at least {meta.min_length} characters")
    if meta.max_length is not None:
        words.append(f" of at most {meta.max_length} characters")
    if meta.pattern is not None:
        words.append(f" of the form {meta.pattern}")
    return " and".join(words)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}).") from error


def _reason(error: BaseException) -> str:
    """Return a parser's message, cut, as the end of a sentence."""
    if isinstance(error, RecursionError):
        return "too many levels of nesting."
    if isinstance(error, UnicodeError):
        return "text that is not UTF-8."
    return f"{reason(error).rstrip('.')}."


class _Problem(NamedTuple):
    """What is wrong, and where inside: keys, and numbers of list items counted from 1."""

    place: tuple[str | int, ...]
    text: str

    def __str__(self) -> str:
        words = "".join(f": {p}" if isinstance(p, str) else f" {p}" for p in self.place)
        return f"{words.removeprefix(': ').strip()}: {self.text}" if words else self.text


def _find_oddity(content: object) -> _Problem | None:
    """Return what no schema accepts: deep nesting, numbers out of bounds, broken text."""
    rest: list[tuple[object, tuple[str | int, ...]]] = [(content, ())]
    while rest:
        value, place = rest.pop()
        if len(place) > MAX_DEPTH:
            return _Problem(place[:3], f"expected at most {MAX_DEPTH} levels of nesting.")
        if isinstance(value, dict):
            rest.extend((part, (*place, _label(key))) for key, part in value.items())
            rest.extend((key, place) for key in value)
        elif isinstance(value, list | tuple):
            rest.extend((part, (*place, index)) for index, part in enumerate(value, start=1))
        elif isinstance(value, float) and not math.isfinite(value):
            return _Problem(place, f"expected a finite number, got {value}.")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            return _Problem(place, "expected an integer of 64 bits, got a larger one.")
        elif isinstance(value, str) and not _is_unicode(value):
            return _Problem(place, f"expected Unicode text, got {shown(value)}.")
    return None


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _explain(content: object, kind: Any, error: Exception) -> _Problem:
    """Return what is wrong with content that msgspec refused, by the innermost value at fault."""
    bare, _ = _bare(kind)
    if _is_union(bare):
        member = _member(content, get_args(bare))
        if isinstance(member, _Problem):
            return member
        if member is not None:
            return _explain(content, member, error)
    problem = _wrong_keys(content, bare) if isinstance(content, Mapping) else None
    if problem is not None:
        return problem
    for label, child, child_kind in _children(content, bare):
        try:
            msgspec.convert(child, child_kind, str_keys=True)
        except msgspec.ValidationError as inner:
            problem = _explain(child, child_kind, inner)
            return _Problem((label, *problem.place), problem.text)
    if _is_record(bare) and isinstance(content, Mapping):
        # __post_init__ refused it; msgspec adds its own path to the message
        text = str(error).rpartition(" - at `")[0] or str(error)
        return _Problem((), text if text.endswith((".", "?")) else f"{text}.")
    choices = get_args(bare) if get_origin(bare) is Literal else ()
    hint = did_you_mean(content, [*map(str, choices)]) if isinstance(content, str) else ""
    return _Problem((), f"expected {describe(kind)}, got {shown(content)}.{hint}")


def _member(content: object, members: tuple[Any, ...]) -> Any:
    """Return the one member of a union that content of this form can be, a problem, or None."""
    records = [member for member in members if _is_record(member)]
    if isinstance(content, Mapping) and records and records[0].__struct_config__.tag_field:
        field = records[0].__struct_config__.tag_field
        by_tag = {record.__struct_config__.tag: record for record in records}
        if field not in content:
            return _Problem((), f"{field} is missing. Add one of {', '.join(map(str, by_tag))}.")
        tag = content[field]
        if not isinstance(tag, str) or tag not in by_tag:
            hint = did_you_mean(str(tag), by_tag)
            return _Problem(
                (field,), f"expected one of {', '.join(by_tag)}, got {shown(tag)}.{hint}"
            )
        return by_tag[tag]
    fitting = [
        member
        for member in members
        if (isinstance(content, Mapping) and _is_table(_bare(member)[0]))
        or (isinstance(content, list | tuple) and _is_list(_bare(member)[0]))
    ]
    return fitting[0] if len(fitting) == 1 else None


def _wrong_keys(content: Mapping[Any, Any], kind: Any) -> _Problem | None:
    if not _is_record(kind):
        return _wrong_key(content, *get_args(kind)[:1]) if _is_table(kind) else None
    config = kind.__struct_config__
    fields = msgspec.structs.fields(kind)
    known = [field.encode_name for field in fields]
    if config.tag_field is not None:
        known.append(config.tag_field)
        if content.get(config.tag_field, config.tag) != config.tag:
            got = shown(content[config.tag_field])
            return _Problem((config.tag_field,), f"expected {config.tag}, got {got}.")
    version = content.get("format")
    allowed = next((get_args(field.type) for field in fields if field.encode_name == "format"), ())
    if allowed and type(version) is int and version not in allowed:
        text = f"expected {' or '.join(map(str, allowed))}, got {version}."
        return _Problem(
            ("format",), f"{text} Use the version of recal that wrote it, or a newer one."
        )
    for key in content:
        if key not in known and config.forbid_unknown_fields:
            hint = did_you_mean(str(key), known)
            return _Problem((), f"expected one of {', '.join(known)}, got {shown(key)}.{hint}")
    missing = [f.encode_name for f in fields if f.required and f.encode_name not in content]
    return _Problem((), f"{', '.join(missing)} missing. Add it.") if missing else None


def _wrong_key(content: Mapping[Any, Any], kind: Any = Any) -> _Problem | None:
    for key in content:
        try:
            msgspec.convert({key: None}, dict[kind, None], str_keys=True)
        except msgspec.ValidationError:
            return _Problem((), f"expected keys that are {describe(kind)}, got {shown(key)}.")
    return None


def _children(content: object, kind: Any) -> Iterator[tuple[str | int, object, Any]]:
    """Yield the label, content and type of everything directly inside a table or list."""
    arguments = get_args(kind)
    if isinstance(content, Mapping):
        if _is_record(kind):
            for field in msgspec.structs.fields(kind):
                if field.encode_name in content:
                    yield field.encode_name, content[field.encode_name], field.type
        elif _is_table(kind) and arguments:
            for key, value in content.items():
                yield _label(key), value, arguments[1]
    elif isinstance(content, list | tuple) and _is_list(kind) and arguments:
        fixed = get_origin(kind) is tuple and arguments[-1] is not Ellipsis
        kinds = arguments if fixed else [arguments[0]] * len(content)
        yield from ((i, *pair) for i, pair in enumerate(zip(content, kinds, strict=False), start=1))


def _label(key: object) -> str:
    return key if isinstance(key, str) and key.isprintable() and len(key) <= 100 else shown(key)


def _bare(kind: Any) -> tuple[Any, list[Meta]]:
    """Split `Annotated[kind, Meta(...)]`."""
    if get_origin(kind) is not Annotated:
        return kind, []
    bare, *metas = get_args(kind)
    return bare, [meta for meta in metas if isinstance(meta, Meta)]


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def _is_table(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    return _is_record(kind) or (isinstance(origin, type) and issubclass(origin, Mapping))


def _is_list(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Sequence | Set) and origin is not str
