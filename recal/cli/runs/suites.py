"""`recal suites`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from recal.suites.suite import Suite


@click.command("suites")
@click.argument("names", nargs=-1)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder to look in.  [the usual places]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(names: tuple[str, ...], data: Path | None, as_json: bool) -> None:
    """List the benchmarks and what of them is on this machine.

    With NAMES, shipped suites or .toml files of your own, say all about these.
    """
    import json

    from recal.suites.suite import load_suite, suite_names

    suites = [load_suite(name) for name in names or suite_names()]
    rows = [_describe(suite, data) for suite in suites]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif names:
        for suite, row in zip(suites, rows, strict=True):
            _show(suite, row)
    else:
        _show_table(rows)


def _describe(suite: Suite, data: Path | None) -> dict[str, Any]:
    from recal.suites.locate import locate_suite

    places = locate_suite(suite, data)
    return {
        "name": suite.name,
        "title": suite.title,
        "source": suite.source,
        "family": suite.family,
        "classes": suite.classes,
        "cells": len(suite.cells()) + 1,
        "reference": suite.reference.source if suite.reference else None,
        "clean": str(places.clean) if places.clean else None,
        "corrupted": str(places.corrupted) if places.corrupted else None,
        "ready": places.ready,
        "missing": places.missing,
    }


def _show_table(rows: list[dict[str, Any]]) -> None:
    from recal.cli.console import console

    console.print(f"{'suite':22}{'here':12}{'cells':>5}  benchmark")
    for row in rows:
        console.print(f"{row['name']:22}{_here(row):12}{row['cells']:>5}  {row['title']}")
    console.print(
        "\n`recal suites NAME` says where its images are, or how to get them. `recal eval ... "
        "--suite`\ntakes these names, and .toml files of your own."
    )


def _here(row: dict[str, Any]) -> str:
    if not row["ready"]:
        return "-"
    if row["cells"] == 1:
        return "yes"
    return "yes" if row["corrupted"] else "to be made"


def _show(suite: Suite, row: dict[str, Any]) -> None:
    from recal.cli.console import console

    console.print(f"{suite.name}: {suite.title}")
    console.print(f"  source       {suite.source}")
    subset = f", of which {suite.subset.replace('_', '-')}'s 200 count" if suite.subset else ""
    console.print(f"  classes      {suite.classes}{subset}; order: {suite.order}")
    console.print(
        f"  clean images {row['clean'] or 'not here'}, prepared by policy {suite.family}/clean"
    )
    corrupted = suite.corrupted
    if corrupted.corruptions:
        used = (
            f"{corrupted.size}x{corrupted.size} pixels, used as they are"
            if corrupted.size
            else "none"
        )
        console.print(f"  published    {row['corrupted'] or 'not here'} ({used})")
        console.print(f"  corruptions  {', '.join(corrupted.corruptions)}")
        console.print(f"  severities   {', '.join(map(str, corrupted.severities))}")
        made = corrupted.parameters or "cannot be made"
        console.print(f"  on the fly   parameters of family: {made}")
    console.print(f"  reference    {row['reference'] or 'none: errors are not normalised'}")
    if row["missing"]:
        console.print(f"  to get       {row['missing']}")
