"""`recal select`."""

from __future__ import annotations

from pathlib import Path

import click

from recal.cli.options import format_option


@click.command("select")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("targets", nargs=-1)
@click.option(
    "--maximize", multiple=True, metavar="SUM",
    help="Such as clean, corrupted, fog, -clean_nll or '0.5*clean + 0.5*corrupted'; with --pareto "
    "several times.  [clean; with --pareto clean and corrupted]",
)  # fmt: skip
@click.option(
    "--subject-to", multiple=True, metavar="LIMIT",
    help="Such as 'mean_corruption_error<=0.25' or 'fog>=0.7'; any number of times.",
)  # fmt: skip
@click.option("--pareto", is_flag=True, help="All targets that no other beats in every objective.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0),
    help="Of the halves and of resampling.",
)  # fmt: skip
@format_option
def command(
    run: Path,
    targets: tuple[str, ...],
    maximize: tuple[str, ...],
    subject_to: tuple[str, ...],
    pareto: bool,
    seed: int,
    form: str,
) -> None:
    """Choose among the TARGETS of a RUN, by default all of them.

    RUN is the folder that `recal eval` wrote. One half of the images, even over the classes, makes
    the choice; what is reported comes from the other half, because the best of several looks better
    than it is on the images by which it was chosen. Fractions are meant, not percent.
    """
    from recal.cli.console import print_document
    from recal.report.selection import selection_blocks, selection_rows
    from recal.runs.select import select

    objectives = maximize or (("clean", "corrupted") if pareto else ("clean",))
    selection = select(
        run, objectives, subject_to=subject_to, pareto=pareto, targets=targets, seed=seed
    )
    print_document(selection, selection_rows(selection), selection_blocks(selection), form)
