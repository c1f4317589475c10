"""`recal inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from recal.cli.options import (
    PATH,
    checkpoint_or_sample,
    data_option,
    examples,
    format_option,
    option,
    reading_options,
    refuse_typed,
    samples_option,
    seed_option,
)

if TYPE_CHECKING:
    from pathlib import Path

    from recal.checkpoint.layouts import ReadingOptions
    from recal.inspection.scores import BranchScore


@click.command(
    "inspect",
    epilog=examples(
        "recal inspect checkpoint.pth",
        "recal inspect checkpoint.pth --data IMAGES --arch timm:resnet50 --json",
    ),
)
@click.argument("checkpoint", required=False, type=PATH)
@option("--plot", "Draw the distances between branches into this .png or .svg file.", PATH)
@data_option("Folder of clean images on which to score each branch; needs the architecture.")
@samples_option("Maximum number of images of --data to use.", 2000)
@seed_option("the choice of images of --data")
@format_option
@reading_options
def command(
    checkpoint: Path | None,
    plot: Path | None,
    data: Path | None,
    samples: int,
    seed: int,
    form: str,
    reading: ReadingOptions,
) -> None:
    """Show which BatchNorm branches CHECKPOINT holds, and whether they can be trusted.

    No code in the file is run, and no architecture is needed. Without a CHECKPOINT, the bundled
    sample is used.
    """
    from recal.checkpoint.checkpoint import read_checkpoint
    from recal.cli.console import note, print_results, progress_bar, warn
    from recal.inspection.distances import inspect_checkpoint
    from recal.inspection.scores import score_branches
    from recal.report.inspection import distance_rows, inspection_blocks, inspection_document
    from recal.report.plots import plot_inspection

    if data is None:
        refuse_typed(("samples", "seed"), "expected --data too, whose images it chooses. Add it.")
    checkpoint, _ = checkpoint_or_sample(checkpoint, data)
    loaded = read_checkpoint(checkpoint, reading)
    inspection = inspect_checkpoint(loaded)
    if plot is not None:
        plot_inspection(inspection, plot)
        note(f"Wrote {plot}.", form)
    scores: tuple[BranchScore, ...] = ()
    if data is not None:
        with progress_bar("images") as bar:
            scores = score_branches(loaded, data, samples=samples, seed=seed, progress=bar)
    print_results(
        form,
        inspection_document(inspection, scores),
        distance_rows(inspection),
        inspection_blocks(inspection, scores),
    )
    warn(finding.sentence for finding in inspection.findings)
