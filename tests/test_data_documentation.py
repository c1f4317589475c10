"""docs/data.md says what the ops and policies are."""

import re
import typing
from pathlib import Path

import msgspec
import pytest

from recal.policies.families import family_names
from recal.policies.ops import AnyOp
from recal.policies.policy import policy_names, read_policy
from recal.schema import describe

PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")


OPS_TABLE = PAGE.index("| op |")


def row(name, page):
    (found,) = re.findall(rf"^\| `{name}` \|.*$", page, re.MULTILINE)
    return found


@pytest.mark.parametrize("op", typing.get_args(AnyOp))
def test_every_op_and_its_arguments_are_documented(op):
    arguments = row(op.__struct_config__.tag, PAGE[OPS_TABLE:]).split("|")[3].strip().split("; ")
    expected = []
    for field in msgspec.structs.fields(op):
        shown = (
            f"{field.default:g}" if isinstance(field.default, float) else str(field.default).lower()
        )
        default = "" if field.required else f" [{shown}]"
        expected.append(f"`{field.name}` {describe(field.type)}{default}")
    assert arguments == expected


def test_every_policy_is_documented():
    for family in family_names():
        for name in policy_names(family):
            assert row(name, PAGE[:OPS_TABLE])


def test_every_policy_that_the_page_shows_can_be_read(tmp_path):
    shown = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert len(shown) == 3
    for name in ("weak", "strong"):
        (tmp_path / f"{name}.toml").write_text("summary = ''", encoding="utf-8")
    for number, text in enumerate(shown):
        (tmp_path / f"{number}.toml").write_text(text, encoding="utf-8")
        policy = read_policy(tmp_path / f"{number}.toml")
        assert policy.ops or policy.parts
