"""`recal export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recal.cli.options import model_options, reading_options

if TYPE_CHECKING:
    from recal.checkpoint.checkpoint import Checkpoint
    from recal.export.export import ExportOptions
    from recal.variant.variant import Variant


@click.command("export")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--variant", default="main", show_default=True, help="Variant file, or a branch.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The ONNX file.")
@click.option("--data", type=click.Path(path_type=Path), help="Images to compare on.  [bundled]")
@click.option("--images", type=click.IntRange(1), help="How many of them.  [256; 2000 with --int8]")
@click.option("--opset", default=18, show_default=True, help="ONNX operator set, 13 to 20.")
@click.option("--uint8", is_flag=True, help="Take pixels, uint8 (N, H, W, 3).")
@click.option("--softmax", is_flag=True, help="Give probabilities instead of logits.")
@click.option("--fp16", is_flag=True, help="Weights and arithmetic in float16.")
@click.option("--int8", is_flag=True, help="Weights and activations in 8 bits.")
@click.option(
    "--max-drop", type=click.FloatRange(0, 1), help="Accuracy that int8 may lose.  [0.01]"
)
@click.option(
    "--int8-images", type=click.IntRange(1), help="Training images that int8 is fitted to.  [128]"
)
@click.option("--mode", help="Policy of those images.  [the variant's own; clean for a branch]")
@click.option(
    "--policy", type=click.Path(path_type=Path), help="A policy file of your own, for --mode."
)
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
    images: int | None,
    class_names: Path | None,
    run: Path | None,
    switchable: str | None,
    max_drop: float | None,
    int8_images: int | None,
    mode: str | None,
    policy: Path | None,
    reading: dict[str, Any],
    asked: dict[str, Any],
    **form: Any,
) -> None:
    """Write a variant of CHECKPOINT as an ONNX file.

    The file takes normalised images, `input` (batch, 3, size, size), and gives `logits`. It is run
    in ONNX Runtime first: only if its logits are those of the variant in PyTorch, and not those of
    another branch, is it written. With --int8 the file is judged by the predictions that it keeps.
    """
    from recal.checkpoint.checkpoint import load_checkpoint
    from recal.cli.console import console
    from recal.export.export import ExportOptions, export_onnx
    from recal.export.images import IMAGES, comparison_images
    from recal.export.recorded import read_class_names, run_accuracies
    from recal.resources import sample_checkpoint, sample_images

    options = ExportOptions(**form).checked()
    int8 = {"max_drop": max_drop, "count": int8_images, "mode": mode, "policy": policy}
    _check_combination(options, switchable, int8, run)
    if checkpoint is None:
        checkpoint, data = sample_checkpoint(), data or sample_images()
        console.print("No checkpoint given: using the bundled Fashion-MNIST sample.")
    loaded = load_checkpoint(checkpoint, **reading)
    chosen = chosen_variant(loaded, variant, asked)
    names = None if class_names is None else read_class_names(class_names)
    if switchable is not None:
        output = output or Path(f"{checkpoint.stem}-switchable.onnx")
        _export_switchable(
            loaded, switchable, output, options, data, images or IMAGES, names, asked
        )
        return
    output = output or Path(f"{checkpoint.stem}-{variant_stem(variant)}.onnx")
    recorded: dict[str, Any] = {
        "options": options,
        "class_names": names,
        "accuracies": None if run is None else run_accuracies(run, chosen.sha256),
    }
    if options.int8:
        _export_int8(loaded, chosen, output, data, images, int8, recorded)
        return
    pixels, what = comparison_images(chosen.spec, data, images or IMAGES)
    proof = export_onnx(loaded, chosen, output, pixels, **recorded)
    console.print(f"Wrote {output}: {chosen.label}, {output.stat().st_size / 1e6:.2f} MB.")
    console.print(
        f"Compared in ONNX Runtime on {what}: largest difference of a logit "
        f"{proof.difference:.1e} (at most {proof.tolerance:.1e}); on {proof.hostile_inputs} "
        f"hostile inputs {proof.hostile_difference:.1e} of the largest."
    )
    for name, rival in proof.rivals.items():
        console.print(f"Largest difference from branch '{name}': {rival.distance:.1e}.")
    for name in proof.indistinct:
        console.print(f"warning: no image tells the variant from branch '{name}'.")


def _check_combination(
    options: ExportOptions, switchable: str | None, int8: dict[str, Any], run: Path | None
) -> None:
    """Refuse options that would be without effect."""
    from recal.errors import UsageError

    names = {"count": "int8-images", "max_drop": "max-drop"}
    given = [names.get(key, key) for key, value in int8.items() if value is not None]
    if given and not options.int8:
        raise UsageError(f"--{given[0]}: expected --int8 too, which it belongs to.")
    if int8["mode"] is not None and int8["policy"] is not None:
        raise UsageError("--policy: expected it instead of --mode, got both.")
    source = click.get_current_context().get_parameter_source("variant")
    for name, is_given in (
        ("--patchable", options.patchable),
        ("--int8", options.int8),
        ("--fp16", options.fp16),
        ("--run", run is not None),
        ("--variant", source is click.core.ParameterSource.COMMANDLINE),
    ):
        if switchable is not None and is_given:
            raise UsageError(
                f"--switchable does not go with {name}: the file holds several variants, each in "
                "float32 and fixed. Export a file of each, or leave one of the two out."
            )


def _export_int8(
    checkpoint: Checkpoint,
    variant: Variant,
    output: Path,
    data: Path | None,
    images: int | None,
    asked: dict[str, Any],
    recorded: dict[str, Any],
) -> None:
    from recal.cli.console import console, progress_bar
    from recal.export import images as int8_images
    from recal.export.export_int8 import export_int8
    from recal.export.int8_proof import MAX_DROP
    from recal.policies.policy import resolve_policy

    spec = variant.spec
    given = asked["mode"] or asked["policy"]
    policy = None if given is None else resolve_policy(given, spec.family)
    calibration = int8_images.calibration_images(
        spec, variant.statistics, data, policy=policy,
        count=asked["count"] or int8_images.CALIBRATION_IMAGES,
    )  # fmt: skip
    held_out = int8_images.held_out_images(
        spec, data, calibration, images or int8_images.TEST_IMAGES
    )
    max_drop = MAX_DROP if asked["max_drop"] is None else asked["max_drop"]
    with progress_bar("images") as bar:
        parity, proof = export_int8(
            checkpoint, variant, output, calibration, held_out, max_drop=max_drop, progress=bar,
            **recorded,
        )  # fmt: skip
    made_of = calibration.record
    console.print(
        f"Wrote {output}: {variant.label}, int8, {output.stat().st_size / 1e6:.2f} MB. Ranges of "
        f"{made_of['images']} '{made_of['policy']}' images of {calibration.where}."
    )
    if proof.accuracies:
        shown = ", ".join(f"{name} {value:.2%}" for name, value in proof.accuracies.items())
        console.print(
            f"Accuracy on {held_out.what}: {shown}; lost {proof.drop:.2%} ± "
            f"{proof.drop_error:.2%} (at most {max_drop:.2%})."
        )
    console.print(
        f"Same prediction as in float32 on {proof.agreement:.2%} of {held_out.what}; outputs off "
        f"by {proof.error:.1%} of their spread. Folded, in float32: largest difference of a logit "
        f"{parity.difference:.1e}."
    )
    for name, way in proof.rivals.items():
        console.print(f"On the way to branch '{name}' (0 the variant, 1 the branch): {way:.2f}.")
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
    from recal.export.export import export_switchable
    from recal.export.images import comparison_images

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

    from recal.variant.variant import branch_variant, load_variant

    if variant in checkpoint.branches or not Path(variant).suffix:
        return branch_variant(checkpoint, variant, checkpoint.spec(**asked))
    read = load_variant(Path(variant))
    return replace(read, spec=read.spec.overridden(asked))


def variant_stem(variant: str) -> str:
    """Return a variant's name for the name of a file."""
    return Path(variant).stem
