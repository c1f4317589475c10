"""`recal suites`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from recal.cli.options import data_option, examples, format_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command("suites", epilog=examples("recal suites", "recal suites cifar10c --data DATASETS"))
@click.argument("names", nargs=-1)
@data_option("Folder in which to look for the images.", "$RECAL_DATA, ./data, the user's cache")
@format_option
def command(names: tuple[str, ...], data: Path | None, form: str) -> None:
    """List the benchmark suites, and which are available locally.

    With NAMES, shipped suites or .toml files of your own, show all about these.
    """
    from dataclasses import asdict

    from recal.cli.console import print_results
    from recal.report.listings import suite_blocks, suite_status, suites_blocks
    from recal.suites.suite import load_suite, suite_names

    suites = [load_suite(name) for name in names or suite_names()]
    found = [suite_status(suite, data) for suite in suites]
    blocks = suites_blocks(found)
    if names:
        blocks = [
            block for pair in zip(suites, found, strict=True) for block in suite_blocks(*pair)
        ]
    print_results(form, found, [asdict(status) for status in found], blocks)
