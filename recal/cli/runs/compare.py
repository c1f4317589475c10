"""`recal compare`."""

from __future__ import annotations

from pathlib import Path

import click

from recal.cli.options import format_option


@click.command("compare")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("targets", nargs=-1)
@click.option("--all-pairs", is_flag=True, help="Compare each target with each.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of resampling.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="PNG file of the differences.  [RUN/comparison.png]",
)  # fmt: skip
@format_option
def command(
    run: Path, targets: tuple[str, ...], all_pairs: bool, seed: int, output: Path | None, form: str
) -> None:
    """Say whether TARGETS of a RUN differ beyond noise.

    RUN is the folder that `recal eval` wrote. Each target is compared with the first, on the same
    images: a paired bootstrap over images gives the intervals, and McNemar's exact test with Holm's
    correction tells in which cells the targets differ. Without TARGETS, all of the run's.
    """
    from recal.cli.console import console, messages, print_document
    from recal.report.comparison import comparison_blocks, comparison_rows
    from recal.report.plots import difference_figure, save_figure
    from recal.runs.compare import compare

    comparison = compare(run, targets, every_pair=all_pairs, seed=seed)
    picture = output or run / "comparison.png"
    save_figure(difference_figure(comparison), picture)
    print_document(comparison, comparison_rows(comparison), comparison_blocks(comparison), form)
    (console if form == "plain" else messages).print(f"Drawn: {picture}")
