"""Tables of text, as one pastes them: plain or Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Attributes:
        title: One line above it; may be empty.
        header: Names of the columns; the first column stands left, the others right.
        rows: As many texts each.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def plain(grid: Grid) -> str:
    """Lay out a table with spaces, for a terminal or an e-mail."""
    lines = (grid.header, *grid.rows)
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    laid = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join(([grid.title] if grid.title else []) + laid)


def markdown(grid: Grid) -> str:
    """Lay out a table for GitHub and its like; the title is bold."""
    rule = "|" + "|".join([" --- ", *[" ---: "] * (len(grid.header) - 1)]) + "|"
    lines = [_markdown_row(grid.header), rule, *(_markdown_row(row) for row in grid.rows)]
    title = [f"**{grid.title}**", ""] if grid.title else []
    return "\n".join(title + lines)


def _markdown_row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


@dataclass(frozen=True)
class Layout:
    """How a text with tables is laid out.

    Attributes:
        table: Lays out a table.
        bullet: What stands before each of several sentences.
    """

    table: Callable[[Grid], str]
    bullet: str


LAYOUTS = {"plain": Layout(plain, ""), "markdown": Layout(markdown, "- ")}
