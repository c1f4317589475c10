"""`recal predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from recal.cli.options import model_options


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
    asked: dict[str, Any],
) -> None:
    """Classify IMAGES, files or folders, by MODEL, an ONNX file.

    Images are prepared as the file's record says. Needs ONNX Runtime, not torch.
    """
    import csv
    import json
    import sys

    from recal.cli.console import console
    from recal.deploy.predict import image_files, network_spec, predict
    from recal.deploy.runtime import OnnxNetwork

    network = OnnxNetwork(model, threads, variant=variant)
    spec = network_spec(network, asked, str(model))
    found = predict(network, spec, image_files(images), top=top)
    if form == "json":
        rows = [
            {
                "image": str(p.image),
                "classes": [
                    {"index": i, "name": name, "probability": probability}
                    for i, name, probability in zip(
                        p.indices, p.names, p.probabilities, strict=True
                    )
                ],
            }
            for p in found
        ]
        click.echo(json.dumps({"model": str(model), "predictions": rows}, indent=1))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["image", "rank", "index", "name", "probability"])
        for p in found:
            triples = zip(p.indices, p.names, p.probabilities, strict=True)
            for rank, (i, name, probability) in enumerate(triples, start=1):
                writer.writerow([p.image, rank, i, name, f"{probability:.6f}"])
    else:
        for p in found:
            shown = zip(p.names, p.probabilities, strict=True)
            console.print(f"{p.image}: " + ", ".join(f"{n} {100 * q:.1f} %" for n, q in shown))
