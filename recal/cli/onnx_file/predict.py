"""`recal predict`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from recal.cli.options import (
    COUNT,
    PATH,
    examples,
    format_option,
    model_options,
    option,
    threads_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from recal.networks.spec import ModelOverrides
    from recal.onnx_file.predict import Prediction


@click.command(
    "predict",
    epilog=examples("recal predict model.onnx IMAGES", "recal predict model.onnx cat.png --json"),
)
@click.argument("model", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@option("--top", "Number of classes shown for each image, the most probable first.", COUNT, 5)
@option(
    "--variant",
    "Name of the variant to run, in a file that holds several (--switchable).",
    shown="the first",
)
@threads_option("all cores")
@format_option
@model_options
def command(
    model: Path,
    images: tuple[Path, ...],
    top: int,
    variant: str | None,
    threads: int | None,
    form: str,
    overrides: ModelOverrides,
) -> None:
    """Classify IMAGES, files or folders, with MODEL, an ONNX file.

    Images are prepared as the file's record describes. Needs ONNX Runtime, not torch.
    """
    from recal.cli.console import progress_bar, warn
    from recal.errors import BrokenImageError, InputError
    from recal.onnx_file.predict import image_files, network_spec, predict
    from recal.onnx_file.session import OnnxNetwork

    network = OnnxNetwork(model, threads or 0, variant=0 if variant is None else variant)
    spec = network_spec(network, overrides, str(model))
    files = image_files(images)
    broken: list[BrokenImageError] = []
    # the lines that are printed show the progress on a terminal
    with progress_bar("images", hidden=form == "plain" and sys.stdout.isatty()) as bar:
        found = predict(network, spec, files, top=top, on_broken=broken.append, progress=bar)
        _print(form, model, found)
    warn(broken, "failed")
    if broken:
        raise InputError(
            f"{len(broken):,} of {len(files):,} images cannot be decoded; the others are above. "
            "Mend or leave out the images named."
        )


def _print(form: str, model: Path, found: Iterable[Prediction]) -> None:
    """Print predictions, in plain text and Markdown each as soon as it is there."""
    from recal.cli.console import print_results
    from recal.report.blocks import MARKUPS
    from recal.report.onnx_files import prediction_document, prediction_rows, prediction_sentence

    if form in MARKUPS:
        for prediction in found:
            click.echo(f"{MARKUPS[form].bullet}{prediction_sentence(prediction)}")
        return
    predictions = list(found)
    document = {"model": model, "predictions": [prediction_document(p) for p in predictions]}
    print_results(form, document, [row for p in predictions for row in prediction_rows(p)], [])
