"""`recal demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from recal.checkpoint.checkpoint import Checkpoint
    from recal.runs.summary import TargetRow
    from recal.variant.variant import Variant


MODES = ("clean", "weak", "strong")
SEVERITY = 3  # the middle one: all of them would take the demo over its two minutes


@click.command("demo")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("recal-demo"),
    show_default=True, help="Folder for all that the demo makes.",
)  # fmt: skip
def command(output: Path) -> None:
    """Run the whole flow on the bundled sample: no network, no data of yours, under two minutes.

    Inspects a checkpoint with split BatchNorm trained on Fashion-MNIST, re-estimates its statistics
    on clean, weakly and strongly augmented images, evaluates every variant on clean and corrupted
    test images, exports the best one and checks the file in ONNX Runtime.
    """
    from recal.checkpoint.checkpoint import load_checkpoint
    from recal.cli.console import console, progress_bar
    from recal.cli.variants.inspect import show_inspection
    from recal.evaluation.evaluate import evaluate
    from recal.inspection.distances import inspect_checkpoint
    from recal.report.blocks import MARKUPS
    from recal.report.page import write_report
    from recal.report.plots import save_figure, trade_off_figure
    from recal.report.summary import summary_blocks
    from recal.resources import sample_checkpoint, sample_images

    began = time.monotonic()
    path = sample_checkpoint()
    console.rule("1. inspect: which branches does the checkpoint hold?", align="left")
    checkpoint = load_checkpoint(path)
    show_inspection(inspect_checkpoint(checkpoint))

    console.rule("2. calibrate: statistics of clean, weak and strong images", align="left")
    variants = _calibrate_all(checkpoint, output / "variants")

    console.rule("3. eval: what does each choice buy, and cost?", align="left")
    names = [*checkpoint.branches, *(str(file) for file in variants)]
    with progress_bar("images") as bar:
        run = evaluate(
            names, checkpoint=path, suite="sample", data=sample_images(),
            severities=[SEVERITY], output=output / "run", progress=bar,
        )  # fmt: skip
    console.print(MARKUPS["plain"].text(summary_blocks(run.summary)))

    best = max(run.summary.targets, key=_average)
    console.rule("4. export: the best average of clean and corrupted accuracy", align="left")
    model = output / "model.onnx"
    chosen = variants.get(Path(best.target), best.target)
    _export(checkpoint, chosen, best, model, run.folder)
    write_report(run.summary, output / "report.html")
    save_figure(trade_off_figure(run.summary), output / "trade-off.png")

    console.rule("done", align="left")
    console.print(
        f"In {output}/ after {time.monotonic() - began:.0f} s: report.html (table and plot), "
        "trade-off.png,\nmodel.onnx, variants/ (a few kB each), run/ (results of every image).\n\n"
        "Next, on a checkpoint of your own:\n"
        "  recal inspect CHECKPOINT\n"
        "  recal calibrate CHECKPOINT --mode weak --data IMAGES -o weak.safetensors\n"
        "  recal eval CHECKPOINT:main CHECKPOINT:aux0 weak.safetensors --suite cifar10c\n"
        "  recal export CHECKPOINT --variant weak.safetensors -o model.onnx"
    )


def _calibrate_all(checkpoint: Checkpoint, folder: Path) -> dict[Path, Variant]:
    from recal.calibration.calibrate import calibrate, usual_affine
    from recal.cli.console import console, progress_bar
    from recal.resources import sample_images
    from recal.variant.file import save_variant

    variants = {}
    for mode in MODES:
        affine = usual_affine(checkpoint, mode)
        with progress_bar("images") as bar:
            variant = calibrate(checkpoint, mode=mode, data=sample_images(), progress=bar)
        file = folder / f"{affine}-{mode}.safetensors"
        save_variant(variant, file)
        variants[file] = variant
        console.print(
            f"{file}: weight and bias of {affine}, statistics of "
            f"{variant.estimated.images:,} {mode} images"
        )
    return variants


def _export(checkpoint: Checkpoint, chosen: Any, best: TargetRow, model: Path, run: Path) -> None:
    from recal.cli.console import console
    from recal.data.normalise import normalise_array
    from recal.export.export import export_onnx
    from recal.export.subject import comparison_images
    from recal.onnx_file.session import OnnxNetwork
    from recal.resources import sample_images
    from recal.runs.store import read_target_cell

    spec = checkpoint.spec
    pixels, what = comparison_images(spec, sample_images(), 10_000)
    proof = export_onnx(checkpoint, chosen, model, pixels).proof
    console.print(
        f"{best.label} -> {model}: on {what.split(' of ')[0]} the largest difference of a logit "
        f"from PyTorch's\nis {proof.difference:.1e} (at most {proof.tolerance:.1e})."
    )
    logits = OnnxNetwork(model).logits(normalise_array(pixels, spec.mean, spec.std))
    cell = read_target_cell(run, best.target, "clean")
    equal = int((logits.argmax(axis=1) == cell["prediction"]).sum())
    console.print(
        f"ONNX Runtime predicts as the variant on {equal:,} of {len(logits):,} test images."
    )


def _average(row: TargetRow) -> float:
    return (row.clean_accuracy or 0.0) + (row.corrupted_accuracy or 0.0)
