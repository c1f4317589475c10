"""`recal demo`: a recipe of the public functions, on the bundled sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from recal.cli.options import examples, output_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recal.report.blocks import Block
    from recal.runs.summary import TargetRow

MODES = ("clean", "weak", "strong")
SEVERITY = 3  # the middle one: with all of them the demo would take more than two minutes
NEXT = """
Next, on a checkpoint of your own:
  recal inspect CHECKPOINT
  recal calibrate CHECKPOINT --mode weak --data IMAGES -o weak.safetensors
  recal eval CHECKPOINT:main CHECKPOINT:aux0 weak.safetensors --suite cifar10c
  recal export CHECKPOINT --variant weak.safetensors -o model.onnx"""


@click.command("demo", epilog=examples("recal demo", "recal demo -o FOLDER"))
@output_option("Folder for everything that the demo makes.", Path("recal-demo"))
def command(output: Path) -> None:
    """Run all steps on the bundled sample, offline, in less than two minutes.

    Inspects a checkpoint with split BatchNorm trained on Fashion-MNIST, re-estimates its statistics
    on clean, weakly and strongly augmented images, evaluates every variant on clean and corrupted
    test images, exports the best one and checks the file in ONNX Runtime.
    """
    import time

    from recal import calibrate, evaluate, export_onnx, load_checkpoint, save_variant
    from recal.cli.console import progress_bar, warn
    from recal.data.normalise import normalise_array
    from recal.export.subject import comparison_images
    from recal.files import sample_checkpoint, sample_images
    from recal.inspection.distances import inspect_checkpoint
    from recal.onnx_file.session import OnnxNetwork
    from recal.report.calibration import estimation_blocks
    from recal.report.evidence import export_blocks
    from recal.report.inspection import inspection_blocks
    from recal.report.page import write_report
    from recal.report.plots import save_figure, trade_off_figure
    from recal.report.summary import summary_blocks
    from recal.runs.store import read_target_cell

    began = time.monotonic()
    path, images = sample_checkpoint(), sample_images()

    _title("1. inspect: which branches does the checkpoint hold?")
    checkpoint = load_checkpoint(path)
    inspection = inspect_checkpoint(checkpoint)
    _show(inspection_blocks(inspection))
    warn(finding.sentence for finding in inspection.findings)

    _title("2. calibrate: statistics of clean, weak and strong images")
    variants = {}
    for mode in MODES:
        with progress_bar("images") as bar:
            variant = calibrate(checkpoint, mode=mode, data=images, progress=bar)
        file = output / "variants" / f"{variant.affine}-{mode}.safetensors"
        save_variant(variant, file)
        variants[str(file)] = variant
        _show([f"{file}: {variant.label}.", *estimation_blocks(variant)])

    _title("3. eval: what does each choice gain and cost?")
    with progress_bar("images") as bar:
        run = evaluate(
            [*checkpoint.branches, *variants],
            checkpoint=path,
            suite="sample",
            data=images,
            severities=[SEVERITY],
            output=output / "run",
            progress=bar,
        )
    _show(summary_blocks(run.summary))
    write_report(run.summary, output / "report.html")
    save_figure(trade_off_figure(run.summary), output / "trade-off.png")

    _title("4. export: the best average of clean and corrupted accuracy")
    best = max(run.summary.targets, key=_average)
    spec, model = checkpoint.spec, output / "model.onnx"
    pixels, what = comparison_images(spec, images, 10_000)
    evidence = export_onnx(checkpoint, variants.get(best.target, best.target), model, pixels)
    logits = OnnxNetwork(model).logits(normalise_array(pixels, spec.mean, spec.std))
    cell = read_target_cell(run.folder, best.target, "clean")
    equal = int((logits.argmax(axis=1) == cell["prediction"]).sum())
    _show(
        [
            f"{best.label} -> {model}.",
            *export_blocks(evidence, what),
            f"ONNX Runtime predicts as the variant on {equal:,} of {len(logits):,} test images.",
        ]
    )

    _title("done")
    click.echo(
        f"In {output}/ after {time.monotonic() - began:.0f} s: report.html (tables and plots), "
        "trade-off.png,\nmodel.onnx, variants/ (a few kB each), run/ (results of every image).\n"
        f"{NEXT}"
    )


def _title(text: str) -> None:
    from recal.cli.console import console

    console.rule(text, align="left")


def _show(blocks: Sequence[Block]) -> None:
    from recal.report.blocks import MARKUPS

    click.echo(MARKUPS["plain"].text(blocks))


def _average(row: TargetRow) -> float:
    return (row.clean_accuracy or 0.0) + (row.corrupted_accuracy or 0.0)
