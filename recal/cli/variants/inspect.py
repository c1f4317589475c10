"""`recal inspect`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recal.cli.options import reading_options, refuse_given

if TYPE_CHECKING:
    from rich.console import Console

    from recal.checkpoint.options import ReadingOptions
    from recal.inspection.distances import Inspection
    from recal.inspection.scores import BranchScore


BAR = 20


@click.command("inspect")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw the distances into a .png or .svg file."
)
# of another name than the other commands' option, so that recal.toml does not switch it on
@click.option(
    "--data", "score_on", type=click.Path(path_type=Path),
    help="Folder of clean images to score every branch on; needs the architecture.",
)  # fmt: skip
@click.option(
    "--samples", default=2000, show_default=True, type=click.IntRange(1),
    help="Images of --data at most.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@reading_options
def command(
    checkpoint: Path | None,
    as_json: bool,
    plot: Path | None,
    score_on: Path | None,
    samples: int,
    seed: int,
    reading: ReadingOptions,
) -> None:
    """Say which BatchNorm branches CHECKPOINT holds and whether they can be trusted.

    No code in the file is run, and no architecture is needed. Without a CHECKPOINT the bundled
    sample is used.
    """
    from recal.checkpoint.checkpoint import read_checkpoint
    from recal.cli.console import messages, progress_bar
    from recal.inspection.distances import inspect_checkpoint
    from recal.inspection.scores import score_branches
    from recal.report.plots import plot_inspection
    from recal.resources import sample_checkpoint

    if score_on is None:
        refuse_given(("samples", "seed"), "expected --data too, whose images it chooses.")
    if checkpoint is None:
        checkpoint = sample_checkpoint()
        messages.print("No checkpoint given: using the bundled Fashion-MNIST sample.")
    loaded = read_checkpoint(checkpoint, reading)
    inspection = inspect_checkpoint(loaded)
    if plot is not None:
        plot_inspection(inspection, plot)
    scores: tuple[BranchScore, ...] = ()
    if score_on is not None:
        with progress_bar("images") as bar:
            scores = score_branches(loaded, score_on, samples=samples, seed=seed, progress=bar)
    if as_json:
        click.echo(json.dumps(_finite(_document(inspection, scores)), indent=2))
    else:
        show_inspection(inspection, scores)
        if plot is not None:
            click.echo(f"Wrote {plot}.")


def _document(inspection: Inspection, scores: tuple[BranchScore, ...]) -> dict[str, Any]:
    warnings = [finding.sentence for finding in inspection.findings]
    document = {**asdict(inspection), "warnings": warnings}
    for branch in document["branches"]:
        for score in scores:
            if score.branch == branch["name"]:
                branch["score"] = {
                    "images": score.images,
                    "accuracy": score.accuracy,
                    "data_distance": score.data_distance,
                    "furthest_layer": score.furthest,
                    "furthest_distance": score.furthest_distance,
                }
    return document


def _finite(content: Any) -> Any:
    """Replace NaN and infinity, which JSON does not know, by null."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def show_inspection(inspection: Inspection, scores: tuple[BranchScore, ...] = ()) -> None:
    """Print what a checkpoint holds, for people."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    _show_facts(console, inspection)
    _show_distances(console, inspection)
    _show_scores(console, scores)
    console.print()
    if not inspection.findings:
        console.print("No warnings.")
    for finding in inspection.findings:
        console.print(f"warning: {finding.sentence}", style="yellow")


def _show_facts(console: Console, inspection: Inspection) -> None:
    from rich.table import Table

    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    main = inspection.branches[0]
    writer = f" ({inspection.writer})" if inspection.writer else ""
    rows = [
        ("file", inspection.path),
        ("layout", f"{inspection.layout}{writer}"),
        ("architecture", inspection.architecture or "not named; give --arch to build it"),
        ("branches", ", ".join(branch.name for branch in inspection.branches)),
        ("roles", inspection.roles),
        ("BatchNorm", f"{main.layers} layers, {main.channels:,} channels"),
        ("other weights", f"{inspection.parameters:,}, sha256 {inspection.weights_sha256[:12]}"),
        *(("note", note) for note in inspection.notes),
    ]
    for row in rows:
        facts.add_row(*row)
    console.print(facts)


def _show_distances(console: Console, inspection: Inspection) -> None:
    from rich.table import Table

    finite = [
        d.symmetric_kl for b in inspection.branches for d in b.distances
        if math.isfinite(d.symmetric_kl)
    ]  # fmt: skip
    largest = max(finite, default=0.0)
    for branch in inspection.branches:
        if not branch.distances:
            continue
        table = Table(
            "layer", "mean", "log var", "affine", "sym. KL", "",
            title=f"{branch.name} against main", title_justify="left", box=None,
            caption="mean: shift in standard deviations; log var: log-variance ratio; affine: "
            "relative distance; sym. KL: in nats", caption_justify="left",
        )  # fmt: skip
        for column in table.columns:
            column.no_wrap, column.overflow = True, "fold"
        for column in table.columns[1:5]:
            column.justify = "right"
        for d in branch.distances:
            share = d.symmetric_kl / largest if largest else 0.0
            filled = math.ceil(BAR * share) if math.isfinite(share) else 0
            affine = "-" if d.affine_distance is None else f"{d.affine_distance:.3f}"
            table.add_row(
                d.layer, f"{d.mean_shift:.3f}", f"{d.log_variance_ratio:.3f}", affine,
                f"{d.symmetric_kl:.3f}", "█" * filled,
            )  # fmt: skip
        console.print()
        console.print(table)


def _show_scores(console: Console, scores: tuple[BranchScore, ...]) -> None:
    if not scores:
        return
    console.print(f"\non {scores[0].images:,} clean images")
    for score in scores:
        accuracy = "" if score.accuracy is None else f"accuracy {score.accuracy:.2%}, "
        console.print(
            f"  {score.branch}: {accuracy}statistics {score.data_distance:.4f} nats from the "
            f"data's own (median over layers; {score.furthest_distance:.4f} at {score.furthest})"
        )
    nearest = min(scores, key=lambda score: (-(score.accuracy or 0.0), score.data_distance))
    if len(scores) > 1 and nearest.branch != "main":
        console.print(f"  {nearest.branch} fits clean images better than main: see --roles")
