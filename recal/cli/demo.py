"""`recal demo`: a recipe of the public functions, on the bundled sample."""

import time
from collections.abc import Sequence
from pathlib import Path

import click

from recal.cli.console import console, print_results, progress_bar, warn
from recal.cli.options import examples, output_option
from recal.report.blocks import Block

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
def demo_command(output: Path) -> None:
    """Run all steps on the bundled sample, offline, in less than two minutes.

    Inspects a checkpoint with split BatchNorm trained on Fashion-MNIST, re-estimates its statistics
    on clean, weakly and strongly augmented images, evaluates every variant on clean and corrupted
    test images, exports the best one and checks the file in ONNX Runtime.
    """
    from recal import calibrate, evaluate, export_onnx, load_checkpoint, save_variant
    from recal.data.normalise import normalise_array
    from recal.export.subject import comparison_images
    from recal.files import sample_checkpoint, sample_images
    from recal.inspection.distances import inspect_checkpoint
    from recal.onnx_file.session import OnnxNetwork
    from recal.report.onnx_file import export_blocks
    from recal.report.page import write_report
    from recal.report.plots import save_figure, trade_off_figure
    from recal.report.runs import summary_blocks
    from recal.report.statistics import estimation_blocks, inspection_blocks
    from recal.runs.store import read_target_cell

    began = time.monotonic()
    path, images = sample_checkpoint(), sample_images()

    console.rule("1. inspect: which branches does the checkpoint hold?", align="left")
    checkpoint = load_checkpoint(path)
    inspection = inspect_checkpoint(checkpoint)
    _show(inspection_blocks(inspection))
    warn(finding.sentence for finding in inspection.findings)

    console.rule("2. calibrate: statistics of clean, weak and strong images", align="left")
    variants = {}
    for mode in MODES:
        with progress_bar("images") as bar:
            variant = calibrate(checkpoint, mode=mode, data=images, progress=bar)
        file = output / "variants" / f"{variant.affine}-{mode}.safetensors"
        save_variant(variant, file)
        variants[str(file)] = variant
        _show([f"{file}: {variant.label}.", *estimation_blocks(variant)])

    console.rule("3. eval: what does each choice gain and cost?", align="left")
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

    console.rule("4. export: the best average of clean and corrupted accuracy", align="left")
    best = max(
        run.summary.targets,
        key=lambda row: (row.clean_accuracy or 0.0) + (row.corrupted_accuracy or 0.0),
    )
    spec, model = checkpoint.spec, output / "model.onnx"
    pixels, what = comparison_images(spec, images, 10_000)
    evidence = export_onnx(checkpoint, variants.get(best.target, best.target), model, pixels)
    logits = OnnxNetwork(model).logits(normalise_array(pixels, spec.normalisation))
    cell = read_target_cell(run.folder, best.target, "clean")
    equal = int((logits.argmax(axis=1) == cell["prediction"]).sum())
    _show(
        [
            f"{best.label} -> {model}.",
            *export_blocks(evidence, what),
            f"ONNX Runtime predicts as the variant on {equal:,} of {len(logits):,} test images.",
        ]
    )

    console.rule("done", align="left")
    click.echo(
        f"In {output}/ after {time.monotonic() - began:.0f} s: report.html (tables and plots), "
        "trade-off.png,\nmodel.onnx, variants/ (a few kB each), run/ (results of every image).\n"
        f"{NEXT}"
    )


def _show(blocks: Sequence[Block]) -> None:
    print_results("plain", None, [], blocks)
