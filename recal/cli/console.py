"""The terminal: results on standard output, messages and progress bars on standard error."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from recal.errors import listed, printable
from recal.files import csv_text
from recal.report.blocks import MARKUPS, Block

Counted: TypeAlias = Callable[[int, int], None]

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
    if form == "json":
        import msgspec

        def plain(value: Any) -> Any:
            return value.item() if hasattr(value, "item") else str(value)

        text = msgspec.json.encode(document, enc_hook=plain)  # NaN and infinity become null
        click.echo(msgspec.json.format(text, indent=1))
    elif form == "csv":
        click.echo(csv_text(rows), nl=False)
    else:
        click.echo(MARKUPS[form].text(blocks))


def note(text: str, form: str) -> None:
    """Print a sentence beside results, on standard error unless their format is `plain`."""
    (console if form == "plain" else messages).print(text)


def warn(texts: Iterable[object], kind: str = "warning") -> None:
    """Print lines on standard error, each shortened and made printable, with a word in front."""
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
def _bar(*columns: ProgressColumn, hidden: bool = False) -> Iterator[tuple[Progress, TaskID]]:
    # without a terminal, only escape codes and blank lines would be written
    hidden = hidden or not messages.is_terminal
    columns = (SpinnerColumn(), TextColumn("{task.description}"), *columns, TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True, disable=hidden) as progress:
        yield progress, progress.add_task("", total=None)


@contextmanager
def progress_bar(unit: str, *, hidden: bool = False) -> Iterator[Counted]:
    """Show a progress bar on standard error, if that is a terminal, while the block runs.

    Args:
        unit: What is counted, such as `images`.
        hidden: Whether to show nothing.

    Yields:
        Function that takes the number done and the number in total.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with _bar(*columns, hidden=hidden) as (progress, task):
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def byte_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar in bytes on standard error while the block runs.

    Yields:
        Function that takes the step at work, the bytes done and the bytes in total.
    """
    with _bar(BarColumn(), DownloadColumn(), TransferSpeedColumn()) as (progress, task):

        def update(step: str, done: int, total: int) -> None:
            if progress.tasks[0].description != step:
                progress.reset(task, description=step)
            progress.update(task, completed=done, total=total or None)

        yield update


class _Rate(ProgressColumn):
    """The number of images per second."""

    def render(self, task: Task) -> Text:
        """Return the speed of a task, or nothing as long as it is unknown."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def cell_bar(
    label: Callable[[str], str], *, hidden: bool = False
) -> Iterator[tuple[Counted, Callable[[Any, dict[str, Any]], None]]]:
    """Show the images done, the cell at work, and the mean accuracies so far on standard error.

    Args:
        label: Function that returns the short name of a target.
        hidden: Whether to show nothing.

    Yields:
        Function that takes the numbers of images done and in total, and one that takes a cell that
        is done and its columns by target name.
    """
    means: dict[str, list[float]] = {}
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("images"), _Rate())
    with _bar(*columns, hidden=hidden) as (progress, task):

        def on_cell(cell: Any, columns: dict[str, Any]) -> None:
            for name, found in columns.items():
                means.setdefault(name, []).append(float((found["rank"] == 0).mean()))
            shown = listed(
                f"{label(name)} {sum(values) / len(values):.1%}" for name, values in means.items()
            )
            count = max(map(len, means.values()), default=0)
            text = f"{cell.name}; mean over {count} cells: {shown}"
            progress.update(task, description=text)

        yield lambda done, total: progress.update(task, completed=done, total=total), on_cell
