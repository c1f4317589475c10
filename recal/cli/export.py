"""`recal export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from recal.cli.options import model_options
from recal.cli.reading_options import reading_options


@click.command("export")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--variant", default="main", show_default=True, help="Variant file, or a branch.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The ONNX file.")
@click.option("--data", type=click.Path(path_type=Path), help="Images to compare on.  [bundled]")
@click.option(
    "--images", default=256, show_default=True, type=click.IntRange(1), help="How many of them."
)
@reading_options
@model_options
def command(
    checkpoint: Path | None,
    variant: str,
    output: Path | None,
    data: Path | None,
    images: int,
    reading: dict[str, Any],
    asked: dict[str, Any],
) -> None:
    """Write a variant of CHECKPOINT as an ONNX file.

    The file takes normalised images, `input` (batch, 3, size, size), and gives `logits`. It is run
    in ONNX Runtime first: only if its logits are those of the variant in PyTorch, and not those of
    another branch, is it written.
    """
    from dataclasses import replace

    from recal.bn.variant import branch_variant, load_variant
    from recal.checkpoint.checkpoint import load_checkpoint
    from recal.cli.console import console
    from recal.deploy.export import export_onnx
    from recal.deploy.images import comparison_images
    from recal.sample_data import sample_checkpoint

    if checkpoint is None:
        checkpoint = sample_checkpoint()
        console.print("No checkpoint given: using the bundled Fashion-MNIST sample.")
    loaded = load_checkpoint(checkpoint, **reading)
    if variant in loaded.branches or not Path(variant).suffix:
        chosen = branch_variant(loaded, variant, loaded.spec(**asked))
    else:
        chosen = load_variant(Path(variant))
        chosen = replace(chosen, spec=chosen.spec.overridden(asked))
    output = output or Path(f"{checkpoint.stem}-{variant_stem(variant)}.onnx")
    pixels, what = comparison_images(chosen.spec, data, images)
    proof = export_onnx(loaded, chosen, output, pixels)
    console.print(f"Wrote {output}: {chosen.label}, {output.stat().st_size / 1e6:.2f} MB.")
    console.print(
        f"Compared in ONNX Runtime on {what}: largest difference of a logit "
        f"{proof.difference:.1e} (at most {proof.tolerance:.1e})."
    )
    for name, difference in proof.rivals.items():
        console.print(f"Largest difference from branch '{name}': {difference:.1e}.")


def variant_stem(variant: str) -> str:
    """Return a variant's name for the name of a file."""
    return Path(variant).stem
