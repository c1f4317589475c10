"""`recal bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from recal.cli.options import PATH, Counts, examples, format_option, option

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    "bench",
    epilog=examples(
        "recal bench folded.onnx patchable.onnx", "recal bench a.onnx --batch-size 1,8"
    ),
)
@click.argument("models", nargs=-1, required=True, type=PATH)
@option("--batch-size", "Numbers of images in each batch, separated by commas.", Counts(), "1,8,64")
@option("--threads", "Numbers of threads, separated by commas; 0 uses all cores.", Counts(0), "1")
@option(
    "--runs",
    "Timed runs of each model at each batch size and number of threads.",
    click.IntRange(2),
    50,
)
@format_option
def command(
    models: tuple[Path, ...],
    batch_size: tuple[int, ...],
    threads: tuple[int, ...],
    runs: int,
    form: str,
) -> None:
    """Measure latency and throughput of MODELS, ONNX files, and their ratios to the first.

    The files take turns, so that changes in the machine's load affect all of them equally.
    """
    from dataclasses import asdict

    from recal.cli.console import print_results
    from recal.onnx_file.bench import bench
    from recal.report.onnx_files import timing_blocks

    timings = bench(models, batches=batch_size, threads=threads, runs=runs)
    rows = [{**asdict(timing), "model": str(timing.model)} for timing in timings]
    print_results(form, {"timings": rows}, rows, timing_blocks(timings))
