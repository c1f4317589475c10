"""`recal export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recal.cli.options import model_options
from recal.cli.reading_options import reading_options

if TYPE_CHECKING:
    from recal.bn.variant import Variant
    from recal.checkpoint.checkpoint import Checkpoint
    from recal.deploy.export import ExportOptions


@click.command("export")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--variant", default="main", show_default=True, help="Variant file, or a branch.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The ONNX file.")
@click.option("--data", type=click.Path(path_type=Path), help="Images to compare on.  [bundled]")
@click.option(
    "--images", default=256, show_default=True, type=click.IntRange(1), help="How many of them."
)
@click.option("--opset", default=18, show_default=True, help="ONNX operator set, 13 to 20.")
@click.option("--uint8", is_flag=True, help="Take pixels, uint8 (N, H, W, 3).")
@click.option("--softmax", is_flag=True, help="Give probabilities instead of logits.")
@click.option("--fp16", is_flag=True, help="Weights and arithmetic in float16.")
@click.option("--patchable", is_flag=True, help="Keep BatchNorm by name, for `recal patch`.")
@click.option(
    "--switchable", help="Several variants in one file: files or branches, with commas between."
)
@click.option("--batch", type=click.IntRange(1), help="Fix the number of images.  [any]")
@click.option("--any-size", is_flag=True, help="Take images of any height and width.")
@click.option("--class-names", type=click.Path(path_type=Path), help="File of names, one a line.")
@click.option("--run", type=click.Path(path_type=Path), help="Run whose accuracies are recorded.")
@reading_options
@model_options
def command(
    checkpoint: Path | None,
    variant: str,
    output: Path | None,
    data: Path | None,
    images: int,
    class_names: Path | None,
    run: Path | None,
    switchable: str | None,
    reading: dict[str, Any],
    asked: dict[str, Any],
    **form: Any,
) -> None:
    """Write a variant of CHECKPOINT as an ONNX file.

    The file takes normalised images, `input` (batch, 3, size, size), and gives `logits`. It is run
    in ONNX Runtime first: only if its logits are those of the variant in PyTorch, and not those of
    another branch, is it written.
    """
    from recal.checkpoint.checkpoint import load_checkpoint
    from recal.cli.console import console
    from recal.deploy.export import ExportOptions, export_onnx
    from recal.deploy.images import comparison_images
    from recal.deploy.recorded import read_class_names, run_accuracies
    from recal.sample_data import sample_checkpoint

    options = ExportOptions(**form).checked()
    if checkpoint is None:
        checkpoint = sample_checkpoint()
        console.print("No checkpoint given: using the bundled Fashion-MNIST sample.")
    loaded = load_checkpoint(checkpoint, **reading)
    chosen = chosen_variant(loaded, variant, asked)
    names = None if class_names is None else read_class_names(class_names)
    if switchable is not None:
        output = output or Path(f"{checkpoint.stem}-switchable.onnx")
        _export_switchable(loaded, switchable, output, options, data, images, names, asked)
        return
    output = output or Path(f"{checkpoint.stem}-{variant_stem(variant)}.onnx")
    pixels, what = comparison_images(chosen.spec, data, images)
    proof = export_onnx(
        loaded, chosen, output, pixels, options=options,
        class_names=names,
        accuracies=None if run is None else run_accuracies(run, chosen.sha256),
    )  # fmt: skip
    console.print(f"Wrote {output}: {chosen.label}, {output.stat().st_size / 1e6:.2f} MB.")
    console.print(
        f"Compared in ONNX Runtime on {what}: largest difference of a logit "
        f"{proof.difference:.1e} (at most {proof.tolerance:.1e}); on {proof.scaled_inputs} scaled "
        f"inputs {proof.scaled_difference:.1e} of the largest."
    )
    for name, rival in proof.rivals.items():
        console.print(f"Largest difference from branch '{name}': {rival.distance:.1e}.")
    for name in proof.indistinct:
        console.print(f"warning: no image tells the variant from branch '{name}'.")


def _export_switchable(
    checkpoint: Checkpoint,
    listed: str,
    output: Path,
    options: ExportOptions,
    data: Path | None,
    images: int,
    classes: list[str] | None,
    asked: dict[str, Any],
) -> None:
    from recal.cli.console import console
    from recal.deploy.export import export_switchable
    from recal.deploy.images import comparison_images

    given = [name.strip() for name in listed.split(",")]
    variants = {variant_stem(name): chosen_variant(checkpoint, name, asked) for name in given}
    pixels, what = comparison_images(next(iter(variants.values())).spec, data, images)
    proofs = export_switchable(
        checkpoint, variants, output, pixels, options=options, class_names=classes
    )
    console.print(
        f"Wrote {output}: {len(variants)} variants, {output.stat().st_size / 1e6:.2f} MB."
    )
    for number, (name, proof) in enumerate(proofs.items()):
        nearest = min(rival.distance for rival in proof.rivals.values())
        console.print(
            f"variant {number}, {name}: on {what} within {proof.difference:.1e} (at most "
            f"{proof.tolerance:.1e}); at least {nearest:.1e} from the others."
        )


def chosen_variant(checkpoint: Checkpoint, variant: str, asked: dict[str, Any]) -> Variant:
    """Return a branch of the checkpoint by name, or read a variant's file."""
    from dataclasses import replace

    from recal.bn.variant import branch_variant, load_variant

    if variant in checkpoint.branches or not Path(variant).suffix:
        return branch_variant(checkpoint, variant, checkpoint.spec(**asked))
    read = load_variant(Path(variant))
    return replace(read, spec=read.spec.overridden(asked))


def variant_stem(variant: str) -> str:
    """Return a variant's name for the name of a file."""
    return Path(variant).stem
