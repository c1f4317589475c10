"""The pages name commands, options, files and headings that exist."""

import re
from pathlib import Path

import click
import pytest

from recal.cli.main import COMMANDS
from recal.cli.main import recal as group

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
}
WIDTH = 110


def fenced(text):
    """Return the text of all code blocks and that of the rest."""
    parts = re.split(r"^```.*\n", text, flags=re.MULTILINE)
    return "\n".join(parts[1::2]), "\n".join(parts[::2])


def usages(text):
    """Return each use of the command in code: the words after `recal`."""
    code, prose = fenced(text)
    lines = code.replace("\\\n", " ").splitlines()
    lines += [line for line in prose.splitlines() if line.startswith("    ")]
    lines += re.findall(r"`([^`]+)`", prose)
    for line in lines:
        found = re.search(r"(?:^|\$ |-m |/)\s*recal ([a-z].*)", line.partition(" #")[0])
        if found:
            yield found[1].split()


def options_of(words):
    command, name = group.get_command(click.Context(group), words[0]), words[0]
    if isinstance(command, click.Group) and len(words) > 1 and words[1] in command.commands:
        command, name = command.commands[words[1]], f"{words[0]} {words[1]}"
    return name, {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_of_a_page_exist(page):
    for words in usages(PAGES[page]):
        assert words[0] in COMMANDS, words
        name, known = options_of(words)
        used = {
            word.strip("[],.").partition("=")[0] for word in words if word.startswith(("-", "[-"))
        }
        assert used - known <= {"--help"}, (name, used - known)


def test_usages_are_found():
    found = {words[0] for text in PAGES.values() for words in usages(text)}
    assert found >= {"inspect", "calibrate", "eval", "export", "verify", "data"}


def anchors(text):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name) if name else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", PAGES)
def test_prose_of_a_page_fits_the_width(page):
    lines = fenced(PAGES[page])[1].splitlines()
    assert [line for line in lines if len(line) > WIDTH and not line.startswith("|")] == []
