"""The terminal: one console, one kind of progress bar."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from recal.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from recal.report.blocks import Block


console = Console(highlight=False, soft_wrap=True, markup=False)
messages = Console(highlight=False, soft_wrap=True, markup=False, stderr=True)


def warn(text: str, *, kind: str = "warning") -> None:
    """Print one line on standard error.

    Args:
        text: Text that may quote names from files; it is shortened and made printable.
        kind: The word in front of the line.
    """
    messages.print(f"{kind}: {printable(text)}")


def print_document(
    document: object, rows: Sequence[Mapping[str, object]], blocks: Sequence[Block], form: str
) -> None:
    """Print results in the format that `--format` names.

    Args:
        document: The content of JSON.
        rows: The rows of CSV.
        blocks: The tables, facts and sentences of plain text and Markdown.
        form: plain, markdown, csv or json.
    """
    import msgspec

    from recal.files import csv_text
    from recal.report.blocks import MARKUPS

    if form == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=1))
    elif form == "csv":
        click.echo(csv_text(rows), nl=False)
    else:
        console.print(MARKUPS[form].text(blocks))


@contextmanager
def progress_bar(unit: str, *, hidden: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error while the block runs.

    Yields:
        A function that takes how many are done, and how many there are.
    """
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn(unit), TimeRemainingColumn(),
    )  # fmt: skip
    # nothing but escape codes and blank lines would come of it where nobody looks
    hidden = hidden or not messages.is_terminal
    with Progress(*columns, console=messages, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update


class CellProgress:
    """Shows on standard error how far an evaluation is, with the accuracies so far and time left.

    Args:
        progress: The bar.
        labels: What each target is called, by its name.
    """

    def __init__(self, progress: Progress, labels: Callable[[str], str]) -> None:
        self._progress, self._labels = progress, labels
        self._task = progress.add_task("", total=None)
        self._means: dict[str, list[float]] = {}

    def images(self, done: int, total: int) -> None:
        """Take how many images of cells are done, and how many there are."""
        self._progress.update(self._task, completed=done, total=total)

    def cell(self, cell: Any, columns: dict[str, Any]) -> None:
        """Take a cell that is done, and its columns by target name."""
        for name, found in columns.items():
            self._means.setdefault(name, []).append(float((found["rank"] == 0).mean()))
        shown = [
            f"{self._labels(name)} {sum(values) / len(values):.1%}"
            for name, values in list(self._means.items())[:SHOWN]
        ]
        more = f" and {len(self._means) - SHOWN} more" if len(self._means) > SHOWN else ""
        count = max((len(values) for values in self._means.values()), default=0)
        self._progress.update(
            self._task, description=f"{cell.name}; over {count} cells {', '.join(shown)}{more}"
        )


SHOWN = 3


@contextmanager
def cell_progress(labels: Callable[[str], str], *, hidden: bool = False) -> Iterator[CellProgress]:
    """Show the progress of an evaluation while the block runs.

    Args:
        labels: What each target is called, by its name.
        hidden: Show nothing; where nobody looks at the terminal, nothing is shown either.
    """
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20),
        MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn(),
    )  # fmt: skip
    hidden = hidden or not messages.is_terminal
    with Progress(*columns, console=messages, transient=True, disable=hidden) as progress:
        yield CellProgress(progress, labels)
