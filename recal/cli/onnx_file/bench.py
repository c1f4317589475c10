"""`recal bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class Counts(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between them."""

    name = "n,n,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Split the text at its commas."""
        parts = value.split(",") if isinstance(value, str) else value
        if not all(str(part).strip().isdigit() for part in parts):
            self.fail(f"expected whole numbers such as 1,8,64, got {value!r}.", param)
        return tuple(int(part) for part in parts)


@click.command("bench")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--batch-sizes", type=Counts(), default="1,8,64", show_default=True)
@click.option("--threads", type=Counts(), default="1", show_default=True, help="0 is all cores.")
@click.option("--runs", default=50, show_default=True, type=click.IntRange(2), help="Each, timed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    models: tuple[Path, ...],
    batch_sizes: tuple[int, ...],
    threads: tuple[int, ...],
    runs: int,
    as_json: bool,
) -> None:
    """Time MODELS, ONNX files, in turn: latency, throughput, ratios to the first."""
    import json
    from dataclasses import asdict

    from rich.table import Table

    from recal.cli.console import console
    from recal.errors import UsageError
    from recal.onnx_file.bench import bench

    if 0 in batch_sizes:
        raise UsageError("--batch-sizes: expected numbers from 1, got 0.")
    timings = bench(models, batches=batch_sizes, threads=threads, runs=runs)
    if as_json:
        rows = [{**asdict(t), "model": str(t.model)} for t in timings]
        click.echo(json.dumps({"timings": rows}, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for title in ("threads", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "ratio"):
        table.add_column(title, justify="right")
    for t in timings:
        table.add_row(
            str(t.model), str(t.threads or "all"), str(t.batch), f"{t.p50:.2f}", f"{t.p90:.2f}",
            f"{t.p99:.2f}", f"{t.throughput:,.0f}", f"{t.ratio:.2f}",
        )  # fmt: skip
    console.print(table)
