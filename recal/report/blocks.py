"""Texts built of tables, facts and sentences, marked up for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Grid:
    """A table of texts.

    Attributes:
        title: One line above the table; may be empty.
        header: Names of the columns.
        rows: The rows, with one text for each column.
        left: Indices of the columns that are aligned left; the others are aligned right.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Facts:
    """Names and values, one pair a line.

    Attributes:
        rows: The pairs; an empty name continues the line above.
        title: One line above them; may be empty.
    """

    rows: tuple[tuple[str, str], ...]
    title: str = ""


Block = Grid | Facts | str
"""A table, facts, or one sentence."""


@dataclass(frozen=True)
class Markup:
    """How blocks become text.

    Attributes:
        table: Function that returns a table as text.
        bullet: Prefix of each sentence and fact.
    """

    table: Callable[[Grid], str]
    bullet: str

    def text(self, blocks: Iterable[Block]) -> str:
        """Return blocks as one text.

        Empty lines separate tables, facts and groups of consecutive sentences.
        """
        texts = []
        for kind, group in groupby(blocks, key=type):
            if kind is str:
                texts.append("\n".join(f"{self.bullet}{sentence}" for sentence in group))
            else:
                texts += [self._block(block) for block in group]
        return "\n\n".join(texts)

    def _block(self, block: Block) -> str:
        if isinstance(block, Grid):
            return self.table(block)
        if isinstance(block, str):
            return block
        width = 0 if self.bullet else max(len(name) for name, _ in block.rows) + 2
        start = self.bullet or ("  " if block.title else "")
        colon = ": " if self.bullet else ""
        names = (f"{name}{colon}" if name else "" for name, _ in block.rows)
        pairs = zip(names, (value for _, value in block.rows), strict=True)
        lines = [f"{start}{name:<{width}}{value}".rstrip() for name, value in pairs]
        return "\n".join(([block.title] if block.title else []) + lines)


def plain(grid: Grid) -> str:
    """Return a table with columns of spaces, for a terminal or an e-mail."""
    lines = (grid.header, *grid.rows)
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    laid = [
        "  ".join(
            cell.ljust(width) if column in grid.left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join(([grid.title] if grid.title else []) + laid)


def markdown(grid: Grid) -> str:
    """Return a table in GitHub's Markdown; the title is bold."""
    rules = (" --- " if column in grid.left else " ---: " for column in range(len(grid.header)))
    rows = (_markdown_row(row) for row in grid.rows)
    lines = [_markdown_row(grid.header), f"|{'|'.join(rules)}|", *rows]
    title = [f"**{grid.title}**", ""] if grid.title else []
    return "\n".join(title + lines)


def _markdown_row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


MARKUPS = {"plain": Markup(plain, ""), "markdown": Markup(markdown, "- ")}
