"""`recal inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from recal.checkpoint.inspection import Inspection

BAR = 20


@click.command("inspect")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(checkpoint: Path, as_json: bool) -> None:
    """Say which BatchNorm branches CHECKPOINT holds and whether they can be trusted.

    No code in the file is run, and no architecture is needed.
    """
    from recal.checkpoint.checkpoint import load_checkpoint
    from recal.checkpoint.inspection import inspect_checkpoint

    inspection = inspect_checkpoint(load_checkpoint(checkpoint))
    if as_json:
        click.echo(json.dumps(_finite(inspection.to_json()), indent=2))
    else:
        _show(inspection)


def _finite(content: Any) -> Any:
    """Replace NaN and infinity, which JSON does not know, by null."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not abs(content) < float("inf"):
        return None
    return content


def _show(inspection: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    names = ", ".join(branch.name for branch in inspection.branches)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("file", inspection.path)
    facts.add_row("layout", f"{inspection.layout} ({inspection.source})")
    facts.add_row("architecture", inspection.architecture or "not named; give --arch to build it")
    facts.add_row("branches", f"{names} ({inspection.roles})")
    facts.add_row("BatchNorm", f"{inspection.branches[0].layers} layers, "
                  f"{inspection.branches[0].channels:,} channels")  # fmt: skip
    facts.add_row("other weights", f"{inspection.parameters:,}, "
                  f"sha256 {inspection.weights_sha256[:12]}")  # fmt: skip
    for note in inspection.notes:
        facts.add_row("note", note)
    console.print(facts)
    for branch in inspection.branches:
        if not branch.distances:
            continue
        largest = max((d.symmetric_kl for d in branch.distances), default=0.0)
        table = Table(
            "layer", "mean", "log var", "affine", "sym. KL", "",
            title=f"{branch.name} against main", title_justify="left", box=None,
            caption="mean: shift in standard deviations; log var: log-variance ratio; affine: "
            "relative distance", caption_justify="left",
        )  # fmt: skip
        for column in table.columns:
            column.no_wrap, column.overflow = True, "fold"
        for column in table.columns[1:5]:
            column.justify = "right"
        for d in branch.distances:
            filled = round(BAR * d.symmetric_kl / largest) if 0 < largest < float("inf") else 0
            affine = "-" if d.affine_distance is None else f"{d.affine_distance:.3f}"
            table.add_row(
                d.layer, f"{d.mean_shift:.3f}", f"{d.log_variance_ratio:.3f}", affine,
                f"{d.symmetric_kl:.3f}", "█" * filled,
            )  # fmt: skip
        console.print()
        console.print(table)
    console.print()
    if not inspection.findings:
        console.print("No warnings.")
    for finding in inspection.findings:
        console.print(f"warning: {finding.sentence}")
