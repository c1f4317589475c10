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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from recal.report.grid import Layout

console = Console(highlight=False, soft_wrap=True, markup=False)
messages = Console(highlight=False, soft_wrap=True, markup=False, stderr=True)


def print_document(
    document: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    text: Callable[[Mapping[str, Any], Layout], str],
    form: str,
) -> None:
    """Print results as `--format` asks for.

    Args:
        document: For JSON.
        rows: For CSV.
        text: Makes a text of the document, given a layout of tables.
        form: plain, markdown, csv or json.
    """
    import json

    from recal.evaluation.runs import csv_text
    from recal.report.grid import LAYOUTS

    if form == "json":
        click.echo(json.dumps(document, indent=1))
    elif form == "csv":
        click.echo(csv_text(rows), nl=False)
    else:
        console.print(text(document, LAYOUTS[form]))


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error while the block runs.

    Yields:
        A function that takes how many are done, and how many there are.
    """
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn(unit), TimeRemainingColumn(),
    )  # fmt: skip
    # nothing but escape codes and blank lines would come of it where nobody looks
    hidden = not messages.is_terminal
    with Progress(*columns, console=messages, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update
