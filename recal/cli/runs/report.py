"""`recal report`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from recal.cli.options import PATH, examples, output_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command("report", epilog=examples("recal report runs/mine -o mine.html"))
@click.argument("run", type=PATH)
@output_option("HTML file to write.", "RUN/report.html")
def command(run: Path, output: Path | None) -> None:
    """Write the HTML report of a RUN: tables and plots in one file that needs no network.

    RUN is the folder that `recal eval` wrote.
    """
    from recal.cli.console import console
    from recal.report.page import write_report
    from recal.runs.summary import read_summary

    output = output or run / "report.html"
    write_report(read_summary(run), output)
    console.print(f"Wrote {output}.")
