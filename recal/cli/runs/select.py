"""`recal select`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from recal.cli.options import PATH, examples, flag, format_option, option, seed_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    "select",
    epilog=examples(
        "recal select runs/mine",
        "recal select runs/mine --maximize clean --subject-to 'mce<=0.75'",
        "recal select runs/mine --pareto",
    ),
)
@click.argument("run", type=PATH)
@click.argument("targets", nargs=-1)
@option(
    "--maximize",
    "Quantity to maximise, such as clean, corrupted, fog, -clean_nll or '0.5*clean + "
    "0.5*corrupted'. With --pareto, pass it once for each quantity.",
    shown="clean; clean and corrupted with --pareto",
    multiple=True,
    metavar="SUM",
)
@option(
    "--subject-to",
    "Limit that a target has to keep, such as 'mean_corruption_error<=0.25' or 'fog>=0.7'. "
    "May be passed several times.",
    multiple=True,
    metavar="LIMIT",
)
@flag("--pareto", "Choose all targets that no other target beats in every quantity.")
@seed_option("the split of the images into halves, and of the bootstrap")
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
    """Choose the best of the TARGETS of a RUN, by default of all targets of the run.

    RUN is the folder that `recal eval` wrote. One half of the images, stratified by class, makes
    the choice, and the other half gives the numbers that are reported: the best of several targets
    looks better than it is on the images that it was chosen on. Values are fractions, such as 0.75.
    """
    from recal.cli.console import print_results
    from recal.report.selection import selection_blocks, selection_rows
    from recal.runs.select import select

    objectives = maximize or (("clean", "corrupted") if pareto else ("clean",))
    selection = select(
        run, objectives, subject_to=subject_to, pareto=pareto, targets=targets, seed=seed
    )
    print_results(form, selection, selection_rows(selection), selection_blocks(selection))
