"""`recal predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recal.cli.options import model_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from recal.networks.spec import ModelOverrides
    from recal.onnx_file.predict import Prediction


@click.command("predict")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes shown.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV: one row an image and class.")
@click.option("--json", "form", flag_value="json", help="Print one JSON document.")
@click.option("--threads", default=0, type=click.IntRange(0), help="Of ONNX Runtime.  [all cores]")
@click.option("--variant", help="Which variant of a switchable file.  [its first]")
@model_options
def command(
    model: Path,
    images: tuple[Path, ...],
    top: int,
    form: str | None,
    threads: int,
    variant: str | None,
    overrides: ModelOverrides,
) -> None:
    """Classify IMAGES, files or folders, by MODEL, an ONNX file.

    Images are prepared as the file's record says. Needs ONNX Runtime, not torch.
    """
    from recal.cli.console import progress_bar, warn
    from recal.errors import BrokenImageError, InputError
    from recal.onnx_file.predict import image_files, network_spec, predict
    from recal.onnx_file.session import OnnxNetwork

    network = OnnxNetwork(model, threads, variant=0 if variant is None else variant)
    spec = network_spec(network, overrides, str(model))
    files = image_files(images)
    broken: list[BrokenImageError] = []
    # lines on the terminal are progress enough
    with progress_bar("images", hidden=form is None and sys.stdout.isatty()) as bar:
        found = predict(network, spec, files, top=top, on_broken=broken.append, progress=bar)
        FORMS[form](model, found)
    for error in broken:
        warn(str(error), kind="failed")
    if broken:
        raise InputError(
            f"{len(broken):,} of {len(files):,} images cannot be decoded; the others are above."
        )


def _print_json(model: Path, found: Iterable[Prediction]) -> None:
    import json

    rows = [
        {
            "image": str(p.image),
            "classes": [
                {"index": i, "name": name, "probability": probability}
                for i, name, probability in zip(p.indices, p.names, p.probabilities, strict=True)
            ],
        }
        for p in found
    ]
    click.echo(json.dumps({"model": str(model), "predictions": rows}, indent=1))


def _print_csv(_model: Path, found: Iterable[Prediction]) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "index", "name", "probability"])
    for p in found:
        triples = zip(p.indices, p.names, p.probabilities, strict=True)
        for rank, (i, name, probability) in enumerate(triples, start=1):
            writer.writerow([p.image, rank, i, name, f"{probability:.6f}"])


def _print_lines(_model: Path, found: Iterable[Prediction]) -> None:
    from recal.cli.console import console

    for p in found:
        shown = zip(p.names, p.probabilities, strict=True)
        console.print(f"{p.image}: " + ", ".join(f"{n} {100 * q:.1f} %" for n, q in shown))


FORMS = {None: _print_lines, "csv": _print_csv, "json": _print_json}
