"""`recal suites`, `recal report`, `recal compare` and `recal select`."""

from itertools import chain
from pathlib import Path

import click

from recal.cli.console import console, note, print_results, warn
from recal.cli.options import (
    PATH,
    data_option,
    examples,
    flag,
    format_option,
    option,
    output_option,
    seed_option,
)
from recal.errors import listed


@click.command("suites", epilog=examples("recal suites", "recal suites cifar10c --data DATASETS"))
@click.argument("names", nargs=-1)
@data_option("Folder in which to look for the images.", "$RECAL_DATA, ./data, the user's cache")
@format_option
def suites_command(names: tuple[str, ...], data: Path | None, form: str) -> None:
    """List the benchmark suites, and which are available locally.

    With NAMES, shipped suites or .toml files of your own, show all about these.
    """
    from recal.report.listings import SuiteStatus, suite_blocks, suites_blocks
    from recal.suites.locate import locate_suite
    from recal.suites.suite import load_suite, suite_names

    suites = [load_suite(name) for name in names or suite_names()]
    found = [SuiteStatus(suite=suite, location=locate_suite(suite, data)) for suite in suites]
    blocks = list(chain.from_iterable(map(suite_blocks, found))) if names else suites_blocks(found)
    rows = [status.row for status in found]
    print_results(form, rows, rows, blocks)


@click.command("report", epilog=examples("recal report runs/mine -o mine.html"))
@click.argument("run", type=PATH)
@output_option("HTML file to write.", "RUN/report.html")
def report_command(run: Path, output: Path | None) -> None:
    """Write the HTML report of a RUN: tables and plots in one file that needs no network.

    RUN is the folder that `recal eval` wrote. If it was evaluated in parts, the report is of all
    that they have done so far.
    """
    from recal.report.page import write_report
    from recal.runs.parts import cells_left, held_by
    from recal.runs.store import open_run
    from recal.runs.summary import finish_parts, read_summary

    output, saved = output or run / "report.html", open_run(run)
    write_report(finish_parts(saved) if saved.parts else read_summary(run), output)
    console.print(f"Wrote {output}.")
    cells, targets = saved.record.cells, [target.name for target in saved.record.targets]
    left = cells_left(cells, saved.parts) if saved.parts else []
    if left:
        held = held_by(saved.parts, left)  # also by parts that go on, or have died
        left = [cell for cell in left if any(cell not in held.get(name, ()) for name in targets)]
        unfinished = [part.part for part in saved.parts if not part.finished]
        also = f"; unfinished parts: {listed(unfinished)}" if unfinished else ""
        warn([f"{len(left)} of {len(cells)} cells are left: {listed(left) or 'none'}{also}."])
    warn((text for part in saved.parts for text in part.failures), "failed")


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
def compare_command(
    run: Path, targets: tuple[str, ...], all_pairs: bool, seed: int, output: Path | None, form: str
) -> None:
    """Test whether TARGETS of a RUN differ beyond noise; by default all targets of the run.

    RUN is the folder that `recal eval` wrote. Each target is compared with the first, on the same
    images: a paired bootstrap over images gives the intervals, and McNemar's exact test with Holm's
    correction shows in which cells the targets differ.
    """
    from recal.report.plots import difference_figure, save_figure
    from recal.report.runs import comparison_blocks, comparison_rows
    from recal.runs.compare import compare

    comparison = compare(run, targets, every_pair=all_pairs, seed=seed)
    picture = output or run / "comparison.png"
    save_figure(difference_figure(comparison), picture)
    print_results(form, comparison, comparison_rows(comparison), comparison_blocks(comparison))
    note(f"Wrote {picture}.", form)


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
def select_command(
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
    from recal.report.runs import selection_blocks, selection_rows
    from recal.runs.select import select

    objectives = maximize or (("clean", "corrupted") if pareto else ("clean",))
    selection = select(
        run, objectives, subject_to=subject_to, pareto=pareto, targets=targets, seed=seed
    )
    print_results(form, selection, selection_rows(selection), selection_blocks(selection))
