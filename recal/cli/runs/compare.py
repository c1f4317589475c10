"""`recal compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from recal.cli.options import PATH, examples, flag, format_option, output_option, seed_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    "compare",
    epilog=examples("recal compare runs/mine", "recal compare runs/mine main weak.safetensors"),
)
@click.argument("run", type=PATH)
@click.argument("targets", nargs=-1)
@flag("--all-pairs", "Compare each target with each other, not with the first.")
@seed_option("the bootstrap")
@output_option("Picture of the differences, .png or .svg.", "RUN/comparison.png")
@format_option
def command(
    run: Path, targets: tuple[str, ...], all_pairs: bool, seed: int, output: Path | None, form: str
) -> None:
    """Test whether TARGETS of a RUN differ beyond noise; by default all targets of the run.

    RUN is the folder that `recal eval` wrote. Each target is compared with the first, on the same
    images: a paired bootstrap over images gives the intervals, and McNemar's exact test with Holm's
    correction shows in which cells the targets differ.
    """
    from recal.cli.console import note, print_results
    from recal.report.comparison import comparison_blocks, comparison_rows
    from recal.report.plots import difference_figure, save_figure
    from recal.runs.compare import compare

    comparison = compare(run, targets, every_pair=all_pairs, seed=seed)
    picture = output or run / "comparison.png"
    save_figure(difference_figure(comparison), picture)
    print_results(form, comparison, comparison_rows(comparison), comparison_blocks(comparison))
    note(f"Wrote {picture}.", form)
