"""`recal eval`."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recal.cli.console import cell_bar, note, print_results, progress_bar, quiet_unless, warn
from recal.cli.options import (
    COUNT,
    PATH,
    autocast_option,
    checkpoint_or_sample,
    choose_device,
    data_option,
    device_option,
    examples,
    flag,
    format_option,
    option,
    output_option,
    packed,
    part_option,
    policy_option,
    prepared_by,
    reading_options,
    refuse_typed,
    seed_option,
    typed_words,
)
from recal.cli.submit import NOT_OF_PARTS, Submission, submission_options, submit_parts
from recal.cli.values import NAMES, counts
from recal.distributed import Part, World, joined, local_device
from recal.errors import RecalError, UsageError, listed

if TYPE_CHECKING:
    from recal.checkpoint.layouts import ReadingOptions
    from recal.evaluation.evaluate import Run
    from recal.evaluation.execution import ExecutionOptions
    from recal.evaluation.prepare import EvaluationRequest


def _execution(
    *,
    device: str,
    autocast: str | None,
    backend: str,
    batch_size: int | None,
    threads: int | None,
    adapt: str | None,
    **of_adaptation: Any,
) -> ExecutionOptions:
    """Return how networks are run; with --adapt, the batch size is that of the adaptation."""
    import torch

    from recal.evaluation.adaptation import Adaptation
    from recal.evaluation.execution import ExecutionOptions

    given = {name: value for name, value in of_adaptation.items() if value not in (None, ())}
    adaptation = None
    if adapt is not None:
        if batch_size is not None:
            given["batch"] = batch_size
        seed = click.get_current_context().params["seed"]
        adaptation, batch_size = Adaptation(kind=adapt, seed=seed, **given), None
    elif given:
        name = next(iter(given))
        raise click.UsageError(
            f"--{name}: expected --adapt with it. Add it, or leave --{name} out."
        )
    return ExecutionOptions(
        backend=backend,
        # parts find their own devices
        device="cpu" if _submits() else local_device(choose_device(device)),
        batch_size=batch_size,
        threads=threads,
        autocast=getattr(torch, autocast) if autocast else None,
        adaptation=adaptation,
    )


def _submits() -> bool:
    """Whether this command starts others that evaluate; those have their part typed."""
    parameters = click.get_current_context().params
    return parameters["submit"] is not None and parameters["part"] is None


@click.command(
    "eval",
    epilog=examples(
        "recal eval checkpoint.pth --suite cifar10c",
        "recal eval c.pth:main c.pth:aux0 weak.safetensors --suite cifar10c --data DATASETS",
        "recal eval model.onnx --suite cifar10 --limit 1000 --json",
    ),
)
@click.argument("targets", nargs=-1)
@option(
    "--suite",
    "Benchmark: the name of a suite, such as cifar10c (see `recal suites`), or a .toml file.",
    shown="the clean suite of the network's family",
)
@data_option("Folder or tar file of the benchmark's images.", "$RECAL_DATA, ./data, ...")
@policy_option
@output_option("Folder of the run.", "runs/SUITE-HASH")
@option("--checkpoint", "Checkpoint that holds the weights of branches and variants.", PATH)
@option(
    "--corruptions",
    "Corruptions to evaluate, separated by commas.",
    NAMES,
    (),
    shown="all of the suite",
)
@option(
    "--severities",
    "Severities to evaluate, separated by commas.",
    counts(),
    (),
    shown="all of the suite",
)
@option(
    "--attacked",
    "Targets that a suite of attacks attacks, separated by commas; all targets predict.",
    NAMES,
    (),
    shown="all targets",
)
@option(
    "--limit",
    "Number of images of each cell: the same stratified random sample in every cell.",
    COUNT,
    shown="all",
)
@seed_option("the sample, of corruptions and of adaptation")
@packed(
    "execution",
    _execution,
    option(
        "--batch-size",
        "Number of images in each batch.",
        COUNT,
        shown="256, less for large images; 200 with --adapt",
    ),
    option(
        "--threads",
        "Number of threads of each process.",
        COUNT,
        shown="the process's share of the cores",
    ),
    device_option,
    option(
        "--backend", "Library that runs the networks: auto, onnxruntime or torch.", default="auto"
    ),
    autocast_option,
    option(
        "--adapt",
        "Test-time adaptation: normalise by statistics of the test images, either of each batch, "
        "as the average or exponential moving average of the batches so far, or of the whole cell.",
        click.Choice(("batch", "cumulative", "ema", "cell")),
    ),
    option(
        "--prior",
        "Number of images that the network's own statistics count for in --adapt batch.",
        click.FloatRange(0),
        shown="0",
    ),
    option(
        "--alpha",
        "Weight of the batch's statistics in --adapt batch, against the network's own.",
        click.FloatRange(0, 1),
        shown="1",
    ),
    option(
        "--only",
        "Statistics that --adapt batch takes from the batch; the others stay the network's own.",
        click.Choice(("means", "variances")),
        shown="both",
    ),
    option(
        "--momentum",
        "Weight of each new batch in --adapt ema.",
        click.FloatRange(0, 1, min_open=True),
        shown="0.1",
    ),
    option(
        "--samples",
        "Number of images of each cell that --adapt cell estimates statistics on.",
        COUNT,
        shown="all",
    ),
    option(
        "--order",
        "Order of the images of a cell with --adapt.",
        click.Choice(("shuffled", "as-is", "by-class")),
        shown="shuffled",
    ),
    option(
        "--continual",
        "Cells that follow each other without a reset in --adapt cumulative or ema, in this order, "
        "such as fog-5,snow-5; or all of the suite.",
        NAMES,
        (),
        shown="every cell starts anew",
    ),
)
@part_option("the cells", "cell")
@submission_options
@flag("--plan", "Print what the evaluation would take, and evaluate nothing.")
@format_option
@reading_options
def eval_command(
    targets: tuple[str, ...],
    suite: str | None,
    data: Path | None,
    policy: Path | None,
    output: Path | None,
    checkpoint: Path | None,
    corruptions: tuple[str, ...],
    severities: tuple[int, ...],
    attacked: tuple[str, ...],
    limit: int | None,
    seed: int,
    execution: ExecutionOptions,
    part: Part | None,
    submission: Submission,
    plan: bool,
    form: str,
    reading: ReadingOptions,
) -> None:
    """Evaluate TARGETS on a benchmark, clean and corrupted.

    A TARGET is a checkpoint (its main branch), CHECKPOINT:BRANCH, a variant file or an .onnx file;
    with --checkpoint or a recal.toml also the name of a branch. Without TARGETS, every branch is
    evaluated; without a checkpoint, the bundled sample. Cells that the run's folder already holds
    are kept. Under torchrun, the processes share the work. With --part, jobs on any machines that
    share the folder do a part of the cells each; the last one prints and writes the summary.
    """
    from recal.evaluation.prepare import EvaluationRequest
    from recal.suites.suite import load_suite

    if part is not None:
        refuse_typed(["submit"], "expected it without --part, got both. Leave one out.")
    if not _submits():
        refuse_typed(["array", "gpus", "cpus", "time"], "expected --submit with it. Add it.")
    with joined() as world, quiet_unless(world.leads):
        if not targets and checkpoint is None:
            suite = suite or "sample"
            family = "sample" if load_suite(suite).family == "sample" else "cifar"
            checkpoint, data = checkpoint_or_sample(None, data, family)
        request = EvaluationRequest(
            suite=suite,
            data=data,
            output=output,
            checkpoint=checkpoint,
            corruptions=corruptions,
            severities=severities,
            attacked=attacked,
            limit=limit,
            seed=seed,
            part=part,
            execution=execution,
            reading=replace(reading, model=prepared_by(reading.model, policy)),
        )
        if _submits() and not plan:
            _submit(targets, request, submission, form)
        elif not plan:
            _evaluate(targets, request, form, world)
        elif world.leads:
            _print_plan(targets, request, form, world.size)


def _evaluate(
    targets: tuple[str, ...], request: EvaluationRequest, form: str, world: World
) -> None:
    from recal.evaluation.evaluate import run_evaluation
    from recal.report.page import write_report
    from recal.report.runs import summary_blocks
    from recal.runs.summary import flat

    def short(target: str) -> str:
        path, colon, branch = target.rpartition(":")
        return branch if colon else target if path else Path(target).stem

    started, computed = time.perf_counter(), 0
    with cell_bar(short, hidden=not world.leads) as (on_images, on_cell):

        def progress(done: int, total: int) -> None:
            nonlocal computed
            computed = done
            on_images(done, total)

        run = run_evaluation(targets, request, progress=progress, on_cell=on_cell, world=world)
    seconds = time.perf_counter() - started
    if not world.leads:
        return
    if run.left:
        _print_part(run, request, form)
        return
    summary = run.summary
    write_report(summary, run.folder / "report.html")
    warn(summary.warnings)
    print_results(form, summary, [flat(row) for row in summary.targets], summary_blocks(summary))
    if summary.attacks and computed:
        note(f"{computed:,} images in {seconds:.0f} s: {computed / seconds:.1f} images/s", form)
    note(f"Report: {run.folder / 'report.html'}", form)
    warn(run.failures, "failed")
    if run.failures:
        raise RecalError(
            f"{len(run.failures)} cells failed; the others are kept in {run.folder}. Run the same "
            "command again to compute the missing ones."
        )


def _submit(
    targets: tuple[str, ...], request: EvaluationRequest, submission: Submission, form: str
) -> None:
    """Check the request, start the parts that evaluate it, and print where to look for them."""
    from recal.evaluation.prepare import prepare_work

    adaptation = request.execution.adaptation
    if adaptation is not None and adaptation.continual:
        raise UsageError(
            "--submit: expected no --continual, whose cells follow each other: they are one job."
        )
    work = prepare_work(targets, request)
    warn(work.images.warnings)
    parameters = {str(p.name) for p in click.get_current_context().command.params}
    typed = typed_words(parameters - NOT_OF_PARTS)
    jobs = submit_parts(work.folder, ["-o", str(work.folder), *typed], submission)
    names = [job.job_id for job in jobs]
    document = {"run": str(work.folder), "cells": len(work.cells), "jobs": names}
    text = (
        f"Started {len(jobs)} parts on {submission.submit} for {len(work.cells)} cells, jobs "
        f"{listed(names)}. Their output is in {work.folder / 'jobs'}. The last part writes the "
        f"summary; until then, `recal report {work.folder}` shows what is there."
    )
    print_results(form, document, [{**document, "jobs": len(jobs)}], [text])


def _print_part(run: Run, request: EvaluationRequest, form: str) -> None:
    """Print how far a run is after a part of it, other than the last one."""
    document = {"run": str(run.folder), "part": str(request.part), "left": run.left}
    row = {**document, "left": len(run.left)}
    text = (
        f"Part {request.part} is done; other parts have {len(run.left)} cells left: "
        f"{listed(run.left)}. `recal report {run.folder}` shows what is there."
    )
    print_results(form, document, [row], [text])
    warn(run.failures, "failed")
    if run.failures:
        raise RecalError(
            f"{len(run.failures)} cells failed. Run the same part again to compute them."
        )


def _print_plan(
    targets: tuple[str, ...], request: EvaluationRequest, form: str, processes: int
) -> None:
    from recal.evaluation.prepare import make_plan, prepare_work
    from recal.report.runs import plan_blocks

    work = prepare_work(targets, request)
    with progress_bar("corruptions timed") as bar:
        parts = request.part.count if request.part else 1
        plan = make_plan(work, processes=processes * parts, progress=bar)
    warn(work.images.warnings)
    document = {"suite": work.suite.name, **asdict(plan)}
    row = {key: value for key, value in document.items() if not isinstance(value, dict)}
    print_results(form, document, [row], plan_blocks(work, plan))
    warn([f"{name}: {fault}" for name, fault in plan.faults.items()], "would fail")
    if plan.faults:
        raise RecalError(f"{', '.join(plan.faults)} would fail; the others would be evaluated.")
