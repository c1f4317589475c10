"""docs/data.md says what the ops and policies are."""

import re
import typing
from pathlib import Path

import pytest

from recal.policies.ops import OPS, allowed
from recal.policies.policy import family_names, policy_names, read_policy

PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")


OPS_TABLE = PAGE.index("| op |")


def row(name, page):
    (found,) = re.findall(rf"^\| `{name}` \|.*$", page, re.MULTILINE)
    return found


@pytest.mark.parametrize("name", OPS)
def test_every_op_and_its_arguments_are_documented(name):
    hints = typing.get_type_hints(OPS[name], include_extras=True)
    hints.pop("return")
    defaults = OPS[name].__kwdefaults__ or {}
    arguments = row(name, PAGE[OPS_TABLE:]).split("|")[3].strip().split("; ")
    expected = []
    for key, hint in hints.items():
        default = defaults.get(key)
        shown = f"{default:g}" if isinstance(default, float) else str(default).lower()
        expected.append(f"`{key}` {allowed(hint)}" + (f" [{shown}]" if key in defaults else ""))
    assert arguments == expected


def test_every_policy_is_documented():
    for family in family_names():
        for name in policy_names(family):
            assert row(name, PAGE[:OPS_TABLE])


def test_every_policy_that_the_page_shows_can_be_read(tmp_path):
    shown = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert len(shown) == 3
    for name in ("weak", "strong"):
        (tmp_path / f"{name}.toml").write_text("summary = ''")
    for number, text in enumerate(shown):
        (tmp_path / f"{number}.toml").write_text(text)
        policy = read_policy(tmp_path / f"{number}.toml")
        assert policy.ops or policy.parts
