"""What docs/statistics.md shows is what the code does."""

import re
from pathlib import Path

import pytest

from recal import select
from tests.command_options import options_of
from tests.saved_runs import simulated, write_run

TEXT = (Path(__file__).parents[1] / "docs" / "statistics.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with the names that the documentation uses."""
    columns = simulated({"main": 0.9, "aux0": 0.95}, 400, corruptions=("fog", "snow"))
    return write_run(tmp_path_factory.mktemp("docs") / "run", columns)


def test_snippet_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(compile(snippet, "docs/statistics.md", "exec"), {})
    assert "aux0" in capsys.readouterr().out


def test_objectives_are_read(folder):
    line = TEXT[TEXT.index("An objective is a weighted sum") :].split(". Names")[0]
    objectives = re.findall(r"`([^`]+)`", line)
    assert len(objectives) == 4
    for objective in objectives:
        assert len(select(folder, objective).chosen) == 1


def test_options_are_there():
    commands = re.findall(r"`recal (\w+)([^`]*?--[^`]*)`", TEXT)
    assert len(commands) == 2
    for command, arguments in commands:
        listed = set(re.findall(r"--[a-z0-9-]+", arguments))
        assert listed <= options_of(command)
