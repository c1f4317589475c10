"""Texts built of tables, facts and sentences, marked up for a terminal or as Markdown."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Grid:
    """A table of texts.

    Attributes:
        title: One line above the table; may be empty.
        rows: The rows, with one text for each column.
        left: Indices of the columns that are aligned left; the others are aligned right.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Facts:
    """Names and values, one pair a line, under a title; an empty name continues the line above."""

    rows: tuple[tuple[str, str], ...]
    title: str = ""


Block = Grid | Facts | str
"""A table, facts, or one sentence."""


@dataclass(frozen=True)
class Markup:
    """How blocks become text: tables by a function, sentences and facts after a bullet."""

    table: Callable[[Grid], str]
    bullet: str

    def text(self, blocks: Iterable[Block]) -> str:
        """Return blocks as one text, with empty lines but between consecutive sentences."""
        groups = groupby(blocks, key=type)
        return "\n\n".join(
            ("\n" if kind is str else "\n\n").join(map(self._block, group))
            for kind, group in groups
        )

    def _block(self, block: Block) -> str:
        if isinstance(block, Grid):
            return self.table(block)
        if isinstance(block, str):
            return f"{self.bullet}{block}"
        width = 0 if self.bullet else max(len(name) for name, _ in block.rows) + 2
        start = self.bullet or ("  " if block.title else "")
        colon = ": " if self.bullet else ""
        lines = [block.title] if block.title else []
        for name, value in block.rows:
            lines.append(f"{start}{f'{name}{colon}' if name else '':<{width}}{value}".rstrip())
        return "\n".join(lines)


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
    header, *rows = (
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        for cells in (grid.header, *grid.rows)
    )
    title = [f"**{grid.title}**", ""] if grid.title else []
    return "\n".join([*title, header, f"|{'|'.join(rules)}|", *rows])


MARKUPS = {"plain": Markup(plain, ""), "markdown": Markup(markdown, "- ")}
