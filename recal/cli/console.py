"""The terminal: results on standard output, messages and progress bars on standard error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from recal.errors import listed, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from recal.report.blocks import Block


console = Console(highlight=False, soft_wrap=True, markup=False)
messages = Console(highlight=False, soft_wrap=True, markup=False, stderr=True)


def print_results(
    form: str, document: object, rows: Sequence[Mapping[str, Any]], blocks: Sequence[Block]
) -> None:
    """Print results in the format that `--format` names.

    Args:
        form: `plain`, `markdown`, `csv` or `json`.
        document: The content of JSON: records, dataclasses, tables, lists and plain values.
        rows: The rows of CSV.
        blocks: The tables, facts and sentences of plain text and Markdown.
    """
    from recal.files import csv_text
    from recal.report.blocks import MARKUPS

    if form == "json":
        click.echo(json_text(document))
    elif form == "csv":
        click.echo(csv_text(rows), nl=False)
    else:
        click.echo(MARKUPS[form].text(blocks))


def json_text(document: object) -> str:
    """Return a document as indented JSON; paths become strings, NaN and infinity null."""
    import msgspec

    def plain(value: Any) -> Any:
        return value.item() if hasattr(value, "item") else str(value)

    return msgspec.json.format(msgspec.json.encode(document, enc_hook=plain), indent=1).decode()


def note(text: str, form: str) -> None:
    """Print a sentence about files that were written, out of the way of results for programs.

    Args:
        text: The sentence.
        form: The value of `--format`; all but `plain` send the sentence to standard error.
    """
    (console if form == "plain" else messages).print(text)


def warn(texts: Iterable[object], kind: str = "warning") -> None:
    """Print lines on standard error.

    Args:
        texts: Texts that may quote names from files; each is shortened and made printable.
        kind: The word in front of each line.
    """
    for text in texts:
        messages.print(f"{kind}: {printable(str(text))}")


@contextmanager
def quiet_unless(leads: bool) -> Iterator[None]:
    """Print nothing while the block runs, unless this process leads the others."""
    console.quiet = messages.quiet = not leads
    try:
        yield
    finally:
        console.quiet = messages.quiet = False


@contextmanager
def progress_bar(unit: str, *, hidden: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error while the block runs.

    Args:
        unit: What is counted, such as `images`.
        hidden: Show nothing. Nothing is shown either where standard error is not a terminal.

    Yields:
        Function that takes the number done and the number in total.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with _progress(*columns, hidden=hidden) as progress:
        task = progress.add_task("", total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update


@contextmanager
def byte_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar in bytes on standard error while the block runs.

    Yields:
        Function that takes the step at work, the bytes done and the bytes in total.
    """
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with _progress(*columns) as progress:
        task = progress.add_task("", total=None)

        def update(step: str, done: int, total: int) -> None:
            if progress.tasks[0].description != step:
                progress.reset(task, description=step)
            progress.update(task, completed=done, total=total or None)

        yield update


@contextmanager
def cell_bar(label: Callable[[str], str], *, hidden: bool = False) -> Iterator[CellProgress]:
    """Show the progress of an evaluation on standard error while the block runs.

    Args:
        label: Function that returns the short name of a target.
        hidden: Show nothing. Nothing is shown either where standard error is not a terminal.
    """
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
    )
    with _progress(*columns, hidden=hidden) as progress:
        yield CellProgress(progress, label)


def _progress(*columns: ProgressColumn, hidden: bool = False) -> Progress:
    # without a terminal, only escape codes and blank lines would be written
    hidden = hidden or not messages.is_terminal
    first = (SpinnerColumn(), TextColumn("{task.description}"))
    return Progress(*first, *columns, console=messages, transient=True, disable=hidden)


class CellProgress:
    """Shows the images done, the cell at work, and the mean accuracies so far.

    Args:
        progress: The bar.
        label: Function that returns the short name of a target.
    """

    def __init__(self, progress: Progress, label: Callable[[str], str]) -> None:
        self._progress, self._label = progress, label
        self._task = progress.add_task("", total=None)
        self._means: dict[str, list[float]] = {}

    def images(self, done: int, total: int) -> None:
        """Show how many images of cells are done, and how many there are."""
        self._progress.update(self._task, completed=done, total=total)

    def cell(self, cell: Any, columns: dict[str, Any]) -> None:
        """Show a cell that is done, given its columns by target name."""
        for name, found in columns.items():
            self._means.setdefault(name, []).append(float((found["rank"] == 0).mean()))
        shown = listed(
            f"{self._label(name)} {sum(values) / len(values):.1%}"
            for name, values in self._means.items()
        )
        count = max((len(values) for values in self._means.values()), default=0)
        self._progress.update(
            self._task, description=f"{cell.name}; mean over {count} cells: {shown}"
        )
