"""What all commands have in common: help, formats, defaults, `--debug`, and where text goes."""

import json
import re

import click
import pytest

from recal.cli.main import COMMANDS, split_debug
from recal.cli.main import recal as group

# commands that only write files
WRITERS = {
    "demo", "report", "mix", "convert", "patch", "policies show", "data fetch", "data verify",
    "data generate", "data show",
}  # fmt: skip


def every_command():
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", part) for sub, part in command.commands.items())


# options that take one value in some commands and several in others
LISTS = ("batch_size", "mode", "threads")
ALL = dict(every_command())


@pytest.mark.parametrize("name", ALL)
def test_help_is_made_of_whole_phrases_and_shows_examples(name):
    command = ALL[name]
    assert re.match(r"[A-Z].*\.", command.help)
    assert f"  recal {name}" in command.epilog
    for option in command.params:
        if isinstance(option, click.Option):
            assert re.fullmatch(r"(--)?[A-Z0-9].*\.", option.help), (option.name, option.help)
            assert "[" not in option.help.replace("[0, 1]", ""), "click prints the defaults"


@pytest.mark.parametrize("name", sorted(set(ALL) - WRITERS - {"data"}))
def test_commands_that_print_data_have_every_format(name):
    options = {spelling: option for option in ALL[name].params for spelling in option.opts}
    assert options["--format"].type.choices == ("plain", "markdown", "csv", "json")
    assert options["--json"].is_flag


def test_an_option_has_one_meaning_in_all_commands():
    known = {}
    for name, command in ALL.items():
        for option in command.params:
            if isinstance(option, click.Option) and option.name not in LISTS:
                kind = (option.is_flag, option.type.name)
                for spelling in option.opts:
                    assert known.setdefault(spelling, kind) == kind, (name, spelling)


@pytest.mark.parametrize("place", range(3))
def test_debug_shows_the_traceback_wherever_it_stands(recal, place):
    arguments = ["verify", "none.onnx"]
    status, _, err = recal(*arguments[:place], "--debug", *arguments[place:])
    assert status == 3
    assert "Traceback" in err
    assert "none.onnx: expected" in err.splitlines()[-1]
    assert "Traceback" not in recal(*arguments)[2]


def test_debug_after_two_dashes_is_an_argument():
    assert split_debug(["predict", "--", "--debug"]) == (["predict", "--", "--debug"], False)
    assert split_debug(["predict", "--debug", "--", "a"]) == (["predict", "--", "a"], True)


@pytest.mark.parametrize("command", [["suites"], ["policies"], ["data", "list"], ["inspect"]])
def test_formats_are_of_the_same_rows(recal, command):
    _, out, _ = recal(*command, "--json")
    document = json.loads(out)
    assert recal(*command, "--format", "json")[1] == out
    _, table, _ = recal(*command, "--format", "csv")
    _, markdown, _ = recal(*command, "--format", "markdown")
    assert "| --- |" in markdown
    if isinstance(document, list):
        assert len(table.splitlines()) == len(document) + 1
        assert table.splitlines()[0].split(",") == list(document[0])


def test_report_is_written_again(recal, split_checkpoint, class_folders, tmp_path):
    status, _, err = recal(
        "eval", split_checkpoint, "--suite", "cifar10", "--data", class_folders, "-o", "run"
    )
    assert status == 0, err
    first = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    (tmp_path / "run" / "report.html").unlink()
    status, out, _ = recal("report", "run")
    assert (status, out) == (0, "Wrote run/report.html.\n")
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == first
    assert recal("report", "run", "-o", "mine.html")[0] == 0
    assert (tmp_path / "mine.html").is_file()
    status, _, err = recal("report", ".")
    assert status == 3
    assert "expected the folder of a run" in err
