"""`recal eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from recal.cli.options import (
    Listed,
    adaptation_options,
    autocast_option,
    choose_device,
    format_option,
    precision_named,
    reading_options,
)

if TYPE_CHECKING:
    from recal.checkpoint.options import ReadingOptions
    from recal.distributed import World
    from recal.evaluation.adaptation import Adaptation
    from recal.evaluation.prepare import EvaluationRequest


@click.command("eval")
@click.argument("targets", nargs=-1)
@click.option(
    "--suite", help="Benchmark: cifar10c, ... (`recal suites`), or a .toml file.  "
    "[clean, of the network's family]",
)  # fmt: skip
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder or tar file of the benchmark's images."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="Weights of branches and variants."
)
@click.option("--corruptions", type=Listed(), default=(), help="Only these corruptions.")
@click.option("--severities", type=Listed(), default=(), help="Only these severities.")
@click.option(
    "--limit", type=click.IntRange(1), help="Only so many images: a seeded, stratified sample."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--batch-size", type=click.IntRange(1), help="Images a batch.  [256; fewer of large ones]"
)
@click.option(
    "--threads", type=click.IntRange(1), help="Of each process.  [its share of the cores]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps, ...")
@click.option("--backend", default="auto", show_default=True, help="auto, onnxruntime, torch.")
@autocast_option
@click.option("--plan", is_flag=True, help="Say what it would take, and do nothing.")
@adaptation_options
@format_option
@reading_options
def command(
    targets: tuple[str, ...],
    suite: str | None,
    data: Path | None,
    output: Path | None,
    checkpoint: Path | None,
    corruptions: tuple[str, ...],
    severities: tuple[str, ...],
    limit: int | None,
    seed: int,
    batch_size: int | None,
    threads: int | None,
    device: str,
    backend: str,
    autocast: str | None,
    plan: bool,
    adaptation: Adaptation | None,
    form: str,
    reading: ReadingOptions,
) -> None:
    """Evaluate TARGETS over a benchmark, clean and corrupted.

    A TARGET is a checkpoint (its main branch), CHECKPOINT:BRANCH, a variant file or an .onnx file;
    with --checkpoint or a recal.toml also a branch's name. Without any, every branch is evaluated;
    without a checkpoint, the bundled sample. Cells that the run's folder already holds are not
    computed again. Under torchrun, the processes share the work.
    """
    from recal.cli.console import console, messages
    from recal.distributed import joined, local_device
    from recal.errors import UsageError
    from recal.evaluation.execution import ExecutionOptions
    from recal.evaluation.prepare import EvaluationRequest
    from recal.suites.suite import load_suite

    note = ""
    if not targets and checkpoint is None:
        checkpoint, data, suite, note = _bundled(suite, data)
    if not all(text.isdigit() for text in severities):
        raise UsageError(f"--severities: expected whole numbers, got {','.join(severities)}.")
    request = EvaluationRequest(
        suite=load_suite(suite) if suite else None,
        data=data,
        output=output,
        checkpoint=checkpoint,
        corruptions=corruptions,
        severities=[int(text) for text in severities],
        limit=limit,
        seed=seed,
        execution=ExecutionOptions(
            backend=backend,
            device=local_device(choose_device(device)),
            batch_size=batch_size,
            threads=threads,
            autocast=precision_named(autocast),
            adaptation=adaptation,
        ),
        reading=reading,
    )
    with joined() as world:
        if note and world.leads:
            (console if form == "plain" else messages).print(note)
        if plan:
            if world.leads:
                _show_plan(targets, request, form == "json", world.size)
            return
        _evaluate(targets, request, form, world)


def _evaluate(
    targets: tuple[str, ...], request: EvaluationRequest, form: str, world: World
) -> None:
    from recal.cli.console import cell_progress, console, messages, print_document, warn
    from recal.errors import RecalError
    from recal.evaluation.evaluate import run_evaluation
    from recal.report.page import write_report
    from recal.report.summary import summary_blocks
    from recal.runs.summary import flat

    with cell_progress(_short, hidden=not world.leads) as shown:
        run = run_evaluation(
            targets, request, progress=shown.images, on_cell=shown.cell, world=world
        )
    if not world.leads:
        return
    write_report(run.summary, run.folder / "report.html")
    for warning in run.summary.warnings:
        warn(warning)
    rows = [flat(row) for row in run.summary.targets]
    print_document(run.summary, rows, summary_blocks(run.summary), form)
    (console if form == "plain" else messages).print(f"Report: {run.folder / 'report.html'}")
    for failure in run.failures:
        warn(failure, kind="failed")
    if run.failures:
        raise RecalError(
            f"{len(run.failures)} cells failed; the others are kept in {run.folder}, and the same "
            "command goes on from there."
        )


def _show_plan(
    targets: tuple[str, ...], request: EvaluationRequest, as_json: bool, processes: int
) -> None:
    import json
    from dataclasses import asdict

    from recal.cli.console import console, progress_bar, warn
    from recal.errors import RecalError
    from recal.evaluation.plan import make_plan
    from recal.evaluation.prepare import prepare_work

    work = prepare_work(targets, request)
    with progress_bar("corruptions timed") as bar:
        plan = make_plan(work, processes=processes, progress=bar)
    for warning in work.images.warnings:
        warn(warning)
    if as_json:
        click.echo(json.dumps({"suite": work.suite.name, **asdict(plan)}, indent=1))
        return
    console.print(f"{work.suite.title}: nothing has been evaluated yet.")
    console.print(f"  cells     {plan.cells} of each of {plan.targets} targets")
    if plan.kept:
        console.print(
            f"            {plan.kept} of {plan.cells * plan.targets} are in {work.folder}"
        )
    console.print(f"  images    {plan.images:,}, each read once; {plan.forwards:,} forward passes")
    console.print(f"  bytes     {_size(plan.bytes)}")
    console.print(f"  by        {work.execution.describe()}, {plan.processes} process(es)")
    if plan.rates:
        slowest = sorted(plan.rates.items(), key=lambda item: item[1])
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in slowest[:3])
        console.print(f"  images/s  {rates}; fastest: {slowest[-1][0]} {slowest[-1][1]:,.0f}")
        console.print(f"  time      about {_duration(plan.seconds)}, from a few batches timed now")
    console.print(f"  folder    {work.folder}")
    for name, fault in plan.faults.items():
        warn(f"{name}: {fault}", kind="would fail")
    if plan.faults:
        raise RecalError(f"{', '.join(plan.faults)} would fail; the others would go on.")


def _size(count: int) -> str:
    if not count:
        return "only the clean images; corrupted ones are made while they are evaluated"
    return f"about {count / 1e9:,.1f} GB" if count >= 1e8 else f"about {count / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _short(target: str) -> str:
    """Return a target's name as it fits a line."""
    path, colon, branch = target.rpartition(":")
    return branch if colon else Path(target).stem if not path else target


def _bundled(suite: str | None, data: Path | None) -> tuple[Path, Path | None, str, str]:
    """Choose the bundled network that fits a suite."""
    from recal.resources import sample_checkpoint, sample_images
    from recal.suites.suite import load_suite

    name = suite or "sample"
    if load_suite(name).family == "sample":
        note = "No checkpoint given: using the bundled Fashion-MNIST sample."
        return sample_checkpoint(), data or sample_images(), name, note
    return (
        sample_checkpoint("cifar"),
        data,
        name,
        "No checkpoint given: using the bundled CIFAR-10 network.",
    )
