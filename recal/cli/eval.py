"""`recal eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recal.cli.options import choose_device, format_option, model_options
from recal.cli.reading_options import reading_options

if TYPE_CHECKING:
    from recal.evaluation.adaptation import Adaptation


class Listed(click.ParamType[tuple[str, ...]]):
    """Names with commas between them, or the list of a recal.toml."""

    name = "a,b,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Split the text at its commas."""
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(str(part).strip() for part in parts)


@click.command("eval")
@click.argument("targets", nargs=-1)
@click.option(
    "--suite", help="Benchmark: sample, cifar10, cifar10c, ...  [clean, of the network's family]"
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the benchmark's images.")
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
@click.option("--batch-size", type=click.IntRange(1), help="Images a batch.  [fitting]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps, ...")
@click.option("--backend", default="auto", show_default=True, help="auto, onnxruntime, torch.")
@click.option(
    "--adapt", type=click.Choice(["batch", "ema"]),
    help="Take BatchNorm statistics from the test images: batch by batch, or a moving average.",
)  # fmt: skip
@click.option(
    "--adapt-batch", default=200, show_default=True, type=click.IntRange(1),
    help="Images a batch of --adapt.",
)  # fmt: skip
@click.option(
    "--prior", type=click.FloatRange(0),
    help="Images that the network's own statistics count for in --adapt batch.  [0]",
)  # fmt: skip
@click.option(
    "--momentum", type=click.FloatRange(0, 1, min_open=True),
    help="Weight of a new batch in --adapt ema.  [0.1]",
)  # fmt: skip
@format_option
@reading_options
@model_options
def command(
    targets: tuple[str, ...],
    suite: str | None,
    data: Path | None,
    output: Path | None,
    checkpoint: Path | None,
    severities: tuple[str, ...],
    device: str,
    seed: int,
    adapt: str | None,
    adapt_batch: int,
    prior: float | None,
    momentum: float | None,
    form: str,
    reading: dict[str, Any],
    asked: dict[str, Any],
    **options: Any,
) -> None:
    """Evaluate TARGETS over a benchmark, clean and corrupted.

    A TARGET is a checkpoint (its main branch), CHECKPOINT:BRANCH, a variant file or an .onnx file;
    with
    --checkpoint or a recal.toml also a branch's name. Without any, every branch is evaluated;
    without a checkpoint, the bundled sample. Cells that the run's folder already holds are not
    computed again.
    """
    from recal.cli.console import console, messages, print_document, progress_bar
    from recal.errors import RecalError, UsageError
    from recal.evaluation.evaluate import evaluate
    from recal.evaluation.suites import load_suite
    from recal.evaluation.summary import flat
    from recal.report.page import write_report
    from recal.report.text import run_text

    if not targets and checkpoint is None:
        checkpoint, data, suite, note = _bundled(suite, data)
        (console if form == "plain" else messages).print(note)
    chosen = load_suite(suite) if suite else None
    if not all(text.isdigit() for text in severities):
        raise UsageError(f"--severities: expected whole numbers, got {','.join(severities)}.")
    adaptation = _adaptation(adapt, adapt_batch, prior, momentum, seed)
    with progress_bar("images") as bar:
        run = evaluate(
            targets, suite=chosen, data=data, output=output, checkpoint=checkpoint,
            severities=[int(text) for text in severities], device=choose_device(device),
            seed=seed, adaptation=adaptation, progress=bar, reading=reading, **options, **asked,
        )  # fmt: skip
    document = run.document
    write_report(document, run.folder / "report.html")
    print_document(document, flat(document["summary"]), run_text, form)
    (console if form == "plain" else messages).print(f"Report: {run.folder / 'report.html'}")
    for failure in run.failures:
        messages.print(f"failed: {failure}")
    if run.failures:
        raise RecalError(
            f"{len(run.failures)} cells failed; the others are kept in {run.folder}, and the same "
            "command goes on from there."
        )


def _adaptation(
    kind: str | None, batch: int, prior: float | None, momentum: float | None, seed: int
) -> Adaptation | None:
    from recal.errors import UsageError
    from recal.evaluation.adaptation import Adaptation

    fitting = {"batch": "--prior", "ema": "--momentum"}.get(kind or "")
    for name, value in (("--prior", prior), ("--momentum", momentum)):
        if value is not None and name != fitting:
            kind_of = "batch" if name == "--prior" else "ema"
            raise UsageError(f"{name}: expected --adapt {kind_of} with it.")
    if kind is None:
        return None
    given = {"prior": prior, "momentum": momentum}
    return Adaptation(
        kind=kind, batch=batch, seed=seed, **{k: v for k, v in given.items() if v is not None}
    )


def _bundled(suite: str | None, data: Path | None) -> tuple[Path, Path | None, str, str]:
    """Choose the bundled network that fits a suite."""
    from recal.evaluation.suites import load_suite
    from recal.sample_data import sample_checkpoint, sample_images

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
