"""recal.schema: what is read from TOML and JSON is checked, and every slip is one error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from recal.errors import InputError, RecalError
from recal.schema import (
    Record,
    convert,
    describe,
    json_schema,
    read_json,
    read_json_file,
    read_toml,
    to_json,
)

if TYPE_CHECKING:
    from pathlib import Path

Share = Annotated[float, Meta(ge=0, le=1)]
Colour = Annotated[tuple[Annotated[int, Meta(ge=0, le=255)], ...], Meta(min_length=3, max_length=3)]


class Op(Record, frozen=True, kw_only=True):
    name: str
    magnitude: Annotated[int, Meta(ge=1)] = 1
    p: Share = 1.0


class OfBranch(Record, frozen=True, kw_only=True, tag_field="source", tag="branch"):
    branch: str


class OfMix(Record, frozen=True, kw_only=True, tag_field="source", tag="mix"):
    weights: tuple[Share, ...]

    def __post_init__(self) -> None:
        if abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights: expected sum 1, got {sum(self.weights):g}")


class File(Record, frozen=True, kw_only=True):
    title: str
    op: tuple[Op, ...] = ()
    statistics: OfBranch | OfMix | None = None
    errors: dict[str, Op] = msgspec.field(default_factory=dict)
    folders: dict[int, tuple[str, ...]] = msgspec.field(default_factory=dict)
    affine: Literal["own", "shared"] = "own"
    format: Literal[1] = 1
    size: tuple[int, int] = (1, 1)
    fill: Colour = (0, 0, 0)
    amount: float = 0.0
    limit: int | str | None = None
    exact: bool = False


OP = {"name": "crop"}
SLIPS = [
    ({}, "f: title missing. Add it."),
    ([], "f: expected a table, got []."),
    ({"title": 3}, "f: title: expected a string, got 3."),
    ({"title": ""} | {"titel": ""}, "got 'titel'. Did you mean 'title'?"),
    ({"op": [OP, {"magnitud": 2}]},
     "f: op 2: expected one of name, magnitude, p, got 'magnitud'. Did you mean 'magnitude'?"),
    ({"op": [{}]}, "f: op 1: name missing. Add it."),
    ({"op": OP}, "f: op: expected a list, got {'name': 'crop'}."),
    ({"op": [OP | {"p": 2}]}, "f: op 1: p: expected a number from 0 to 1, got 2."),
    ({"op": [OP | {"p": True}]}, "f: op 1: p: expected a number from 0 to 1, got True."),
    ({"op": [OP | {"magnitude": 0}]}, "magnitude: expected an integer >= 1, got 0."),
    ({"op": [OP | {"magnitude": 1.5}]}, "magnitude: expected an integer >= 1, got 1.5."),
    ({"statistics": {}}, "f: statistics: source is missing. Add one of branch, mix."),
    ({"statistics": {"source": "brunch"}},
     "f: statistics: source: expected one of branch, mix, got 'brunch'. Did you mean 'branch'?"),
    ({"statistics": {"source": 5}}, "source: expected one of branch, mix, got 5."),
    ({"statistics": {"source": "branch"}}, "f: statistics: branch missing. Add it."),
    ({"statistics": {"source": "branch", "branhc": "main"}},
     "f: statistics: expected one of branch, source, got 'branhc'. Did you mean 'branch'?"),
    ({"statistics": 5}, "f: statistics: expected a table or null, got 5."),
    ({"statistics": {"source": "mix", "weights": [0.5]}},
     "f: statistics: weights: expected sum 1, got 0.5."),
    ({"statistics": {"source": "mix", "weights": [0.5, "a"]}},
     "f: statistics: weights 2: expected a number from 0 to 1, got 'a'."),
    ({"errors": {"conv.1": {"name": 2}}}, "f: errors: conv.1: name: expected a string, got 2."),
    ({"errors": {"\x1b[31m": 2}}, r"f: errors: '\x1b[31m': expected a table, got 2."),
    ({"folders": {"ten": ["a"]}}, "f: folders: expected keys that are an integer, got 'ten'."),
    ({"folders": {"10": ["a", 1]}}, "f: folders: 10 2: expected a string, got 1."),
    ({"affine": "shred"}, "expected one of own, shared, got 'shred'. Did you mean 'shared'?"),
    ({"affine": 3}, "affine: expected one of own, shared, got 3."),
    ({"format": 2, "new": 3}, "f: format: expected 1, got 2. Use the version of recal that wrote"),
    ({"format": True}, "f: format: expected 1, got True."),
    ({"size": [1]}, "f: size: expected a list of 2 items, got [1]."),
    ({"size": [1, "b"]}, "f: size 2: expected an integer, got 'b'."),
    ({"fill": [1, 2]}, "f: fill: expected a list of 3 items, got [1, 2]."),
    ({"fill": [1, 2, 256]}, "f: fill 3: expected an integer from 0 to 255, got 256."),
    ({"amount": float("nan")}, "f: amount: expected a finite number, got nan."),
    ({"amount": 10**400}, "f: amount: expected an integer of 64 bits, got a larger one."),
    ({"limit": 1.5}, "f: limit: expected an integer or a string or null, got 1.5."),
    ({"limit": True}, "f: limit: expected an integer or a string or null, got True."),
    ({"exact": 1}, "f: exact: expected true or false, got 1."),
    ({"title": "\ud800"}, "f: title: expected Unicode text"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), SLIPS)
def test_convert_slip_is_one_error_with_the_place_inside(content: object, message: str) -> None:
    """Every slip is one InputError that names the place and says what is expected."""
    if isinstance(content, dict) and content:
        content = {"title": "", **content}
    with pytest.raises(InputError) as caught:
        convert(content, File, "f")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_convert_integer_passes_for_a_number() -> None:
    """TOML and JSON write 1 for 1.0."""
    assert convert({"name": "a", "p": 1}, Op, "f").p == 1.0


def test_convert_long_foreign_text_is_cut() -> None:
    """An error quotes at most a few hundred characters of what a file says."""
    for content in ({"title": ["x" * 9999] * 9999}, {"title": "", "x" * 9999: 1}):
        with pytest.raises(InputError) as caught:
            convert(content, File, "f")
        assert len(str(caught.value)) < 1000


def test_record_is_immutable() -> None:
    """A record that was read stays what it was."""
    op = Op(name="crop")
    with pytest.raises(AttributeError):
        op.name = "blur"  # type: ignore[misc]


MALFORMED = [
    b"", b"{", b"\xff", b'"\xff"', b"[" * 100_000, b'{"a":' * 100_000, b"NaN", b"[1e999]",
    b"9" * 5000, b'{"title": "\\ud800"}', b"[" * 70 + b"]" * 70,
]  # fmt: skip


@pytest.mark.parametrize("content", MALFORMED, ids=range(len(MALFORMED)))
def test_read_json_malformed_text_is_one_error(content: bytes) -> None:
    """Whatever the bytes are, the result is one short InputError."""
    with pytest.raises(InputError, match=r"^f: ") as caught:
        read_json(content, File, "f")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "content", [b"a = ", b"\xff", b"a = " + b"[" * 100_000, b"a = " + b"9" * 5000, b"title = nan"]
)
def test_read_toml_malformed_file_is_one_error(tmp_path: Path, content: bytes) -> None:
    """Whatever the file holds, the result is one short InputError that names it."""
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.toml: ") as caught:
        read_toml(path, File)
    assert len(str(caught.value)) < 1000 + len(str(path))


def test_read_toml_names_the_entry(tmp_path: Path) -> None:
    """Entries of a TOML array are counted from 1."""
    path = tmp_path / "a.toml"
    path.write_text(
        "title = 'a'\n[[op]]\nname = 'a'\n[[op]]\nname = 'b'\np = 3\n", encoding="utf-8"
    )
    with pytest.raises(InputError, match=r"a\.toml: op 2: p: expected a number from 0 to 1, got 3"):
        read_toml(path, File)


def test_read_missing_file_is_one_error(tmp_path: Path) -> None:
    """A file that is not there is an InputError."""
    with pytest.raises(InputError, match="cannot be read"):
        read_toml(tmp_path / "none.toml", File)
    with pytest.raises(InputError, match="cannot be read"):
        read_json_file(tmp_path / "none.json", File)


def test_to_json_is_sorted_and_read_back(tmp_path: Path) -> None:
    """Equal records give equal text with sorted keys, and the text gives the record back."""
    file = File(title="a", op=(Op(name="b"),), statistics=OfMix(weights=(0.25, 0.75)))
    text = to_json(file)
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    (tmp_path / "a.json").write_text(to_json(file, indent=2), encoding="utf-8")
    assert read_json(text, File, "f") == read_json_file(tmp_path / "a.json", File) == file


@given(amount=st.floats(allow_nan=False, allow_infinity=False), title=st.text(st.characters()))
def test_to_json_round_trip_is_exact(amount: float, title: str) -> None:
    """Numbers and text survive unchanged; text that is not Unicode is refused."""
    file = File(title=title, amount=amount)
    try:
        title.encode()
    except UnicodeEncodeError:
        with pytest.raises(InputError):
            to_json(file)
    else:
        assert read_json(to_json(file), File, "f") == file


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*File.__struct_fields__, "source", "name", "x"]), inner)
    ),
    max_leaves=8,
)


@given(content=json_values)
def test_convert_any_content_gives_a_record_or_one_error(content: object) -> None:
    """No content ends in anything but a record or an InputError."""
    try:
        assert isinstance(convert(content, File, "f"), File)
    except RecalError as error:
        assert str(error).startswith("f: ")  # noqa: PT017


def test_describe_says_what_an_annotation_accepts() -> None:
    """Documentation and errors use the same words."""
    assert describe(Share) == "a number from 0 to 1"
    assert describe(Literal["a", "b"]) == "one of a, b"
    assert describe(tuple[float, float] | None) == "a list of 2 items or null"
    assert describe(Annotated[str, Meta(description="a SHA-256")]) == "a SHA-256"


def test_json_schema_lists_the_keys() -> None:
    """Editors complete the keys of a file from its schema."""
    schema = json_schema(File)
    assert set(schema["$defs"]["File"]["properties"]) == set(File.__struct_fields__)
    assert schema["$defs"]["File"]["additionalProperties"] is False
    assert msgspec.json.encode(schema)
