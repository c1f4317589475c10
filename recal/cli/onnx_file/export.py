"""`recal export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from recal.cli.options import reading_options

if TYPE_CHECKING:
    from recal.checkpoint.options import ReadingOptions
    from recal.export.forms import Evidence, Int8
    from recal.onnx_file.record import Accuracies, FormName
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
def command(
    checkpoint: Path | None,
    variant: str,
    output: Path | None,
    data: Path | None,
    images: int | None,
    opset: int,
    uint8: bool,
    softmax: bool,
    fp16: bool,
    int8: bool,
    max_drop: float | None,
    int8_images: int | None,
    mode: str | None,
    policy: Path | None,
    patchable: bool,
    switchable: str | None,
    batch: int | None,
    any_size: bool,
    class_names: Path | None,
    run: Path | None,
    reading: ReadingOptions,
) -> None:
    """Write a variant of CHECKPOINT as an ONNX file.

    The file takes normalised images, `input` (batch, 3, size, size), and gives `logits`. It is run
    in ONNX Runtime first: only if its logits are those of the variant in PyTorch, and not those of
    another branch, is it written. With --int8 the file is judged by the predictions that it keeps.
    """
    from recal.checkpoint.checkpoint import read_checkpoint
    from recal.cli.console import console, progress_bar
    from recal.export.export import export_onnx
    from recal.export.forms import FLOAT_FORMS, Int8
    from recal.export.subject import IMAGES, comparison_images
    from recal.resources import sample_checkpoint, sample_images
    from recal.variant.resolve import resolve_variant

    form_name = _form_name(
        fp16=fp16, int8=int8, patchable=patchable, switchable=switchable, run=run
    )
    _check_int8_options(int8, max_drop, int8_images, mode, policy)
    if checkpoint is None:
        checkpoint, data = sample_checkpoint(), data or sample_images()
        console.print("No checkpoint given: using the bundled Fashion-MNIST sample.")
    loaded = read_checkpoint(checkpoint, reading)
    given = [variant] if switchable is None else [name.strip() for name in switchable.split(",")]
    variants = {variant_stem(name): resolve_variant(name, loaded) for name in given}
    chosen = next(iter(variants.values()))
    stem = variant_stem(variant) if switchable is None else "switchable"
    output = output or Path(f"{checkpoint.stem}-{stem}.onnx")
    form = FLOAT_FORMS.get(form_name) or _int8_form(
        chosen, data, max_drop, (int8_images, images), mode, policy
    )
    if isinstance(form, Int8):
        pixels, what = form.held_out.pixels[:IMAGES], form.held_out.what
    else:
        pixels, what = comparison_images(chosen.spec, data, images or IMAGES)
    with progress_bar("images", hidden=not int8) as bar:
        evidence = export_onnx(
            loaded, chosen if switchable is None else variants, output, pixels, form=form,
            opset=opset, uint8=uint8, softmax=softmax, batch=batch, any_size=any_size,
            class_names=None if class_names is None else read_class_names(class_names),
            accuracies=None if run is None else run_accuracies(run, chosen.sha256),
            progress=bar,
        )  # fmt: skip
    size = f"{output.stat().st_size / 1e6:.2f} MB"
    if isinstance(form, Int8):
        console.print(
            f"Wrote {output}: {chosen.label}, int8, {size}. Ranges of {form.images.record.images} "
            f"'{form.images.record.policy}' images of {form.images.where}."
        )
        _show_int8(evidence, what)
    elif switchable is not None:
        console.print(f"Wrote {output}: {len(variants)} variants, {size}.")
        _show_switchable(evidence, what)
    else:
        console.print(f"Wrote {output}: {chosen.label}, {size}.")
        _show_float(evidence, what)


def _form_name(
    *, fp16: bool, int8: bool, patchable: bool, switchable: str | None, run: Path | None
) -> FormName:
    """Return the one form that the flags name.

    Raises:
        UsageError: They name two, or a switchable file gets an option of a single variant.
    """
    from recal.errors import UsageError

    source = click.get_current_context().get_parameter_source("variant")
    for name, is_given in (
        ("--patchable", patchable),
        ("--int8", int8),
        ("--fp16", fp16),
        ("--run", run is not None),
        ("--variant", source is click.core.ParameterSource.COMMANDLINE),
    ):
        if switchable is not None and is_given:
            raise UsageError(
                f"--switchable does not go with {name}: the file holds several variants, each in "
                "float32 and fixed. Export a file of each, or leave one of the two out."
            )
    flags: dict[str, tuple[bool, FormName]] = {
        "--int8": (int8, "int8"),
        "--fp16": (fp16, "float16"),
        "--patchable": (patchable, "patchable"),
    }
    given = [flag for flag, (is_given, _) in flags.items() if is_given]
    if len(given) > 1:
        raise UsageError(
            f"{given[0]} does not go with {given[1]}: a file has one form. Export a file of each."
        )
    if switchable is not None:
        return "switchable"
    return flags[given[0]][1] if given else "float32"


def _check_int8_options(
    int8: bool, max_drop: float | None, count: int | None, mode: str | None, policy: Path | None
) -> None:
    """Refuse options that would have no effect."""
    from recal.errors import UsageError

    options = {"max-drop": max_drop, "int8-images": count, "mode": mode, "policy": policy}
    given = [name for name, value in options.items() if value is not None]
    if given and not int8:
        raise UsageError(f"--{given[0]}: expected --int8 too, which it belongs to.")
    if mode is not None and policy is not None:
        raise UsageError("--policy: expected it instead of --mode, got both.")


def _int8_form(
    variant: Variant,
    data: Path | None,
    max_drop: float | None,
    counts: tuple[int | None, int | None],
    mode: str | None,
    policy: Path | None,
) -> Int8:
    """Read the images that an int8 file is made with and judged by."""
    from recal.export.forms import Int8
    from recal.export.int8_images import RANGE_IMAGES, TEST_IMAGES, held_out_images, range_images
    from recal.export.int8_proof import MAX_DROP
    from recal.policies.policy import resolve_policy

    spec, given = variant.spec, mode or policy
    chosen = None if given is None else resolve_policy(given, spec.family)
    images = range_images(
        spec, variant.statistics, data, policy=chosen, count=counts[0] or RANGE_IMAGES
    )
    held_out = held_out_images(spec, data, images, counts[1] or TEST_IMAGES)
    return Int8(
        images=images, held_out=held_out, max_drop=MAX_DROP if max_drop is None else max_drop
    )


def _show_float(evidence: Evidence, what: str) -> None:
    from recal.cli.console import console, warn

    proof = evidence.proof
    console.print(
        f"Compared in ONNX Runtime on {what}: largest difference of a logit "
        f"{proof.difference:.1e} (at most {proof.tolerance:.1e}); on {proof.hostile_inputs} "
        f"hostile inputs {proof.hostile_difference:.1e} of the largest."
    )
    for name, rival in proof.rivals.items():
        console.print(f"Largest difference from branch '{name}': {rival.distance:.1e}.")
    for name in proof.indistinct:
        warn(f"no image tells the variant from branch '{name}'.")


def _show_switchable(evidence: Evidence, what: str) -> None:
    from recal.cli.console import console

    for number, (name, proof) in enumerate(evidence.proofs.items()):
        nearest = min(rival.distance for rival in proof.rivals.values())
        console.print(
            f"variant {number}, {name}: on {what} within {proof.difference:.1e} (at most "
            f"{proof.tolerance:.1e}); at least {nearest:.1e} from the others."
        )


def _show_int8(evidence: Evidence, what: str) -> None:
    from recal.cli.console import console, warn

    assert evidence.int8 is not None
    proof, max_drop = evidence.int8.proof, evidence.int8.max_drop
    if proof.accuracies:
        shown = ", ".join(f"{name} {value:.2%}" for name, value in proof.accuracies.items())
        console.print(
            f"Accuracy on {what}: {shown}; lost {proof.drop:.2%} ± {proof.drop_error:.2%} (at most "
            f"{max_drop:.2%})."
        )
    console.print(
        f"Same prediction as in float32 on {proof.agreement:.2%} of {what}; outputs off by "
        f"{proof.error:.1%} of their spread. Folded, in float32: largest difference of a logit "
        f"{evidence.proof.difference:.1e}."
    )
    for name, way in proof.rivals.items():
        console.print(f"On the way to branch '{name}' (0 the variant, 1 the branch): {way:.2f}.")
    for name in proof.indistinct:
        warn(f"no image tells the variant from branch '{name}'.")


def read_class_names(path: Path) -> list[str]:
    """Return the names in a file, one a line, in the order of the outputs.

    Raises:
        InputError: It cannot be read as text, or has empty lines between names.
    """
    from recal.errors import InputError
    from recal.files import require_file

    require_file(path, "a file of class names")
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected names, one a line, got {error}.") from error
    if not all(name.strip() for name in names):
        raise InputError(f"{path}: expected a name on every line, got an empty line.")
    return [name.strip() for name in names]


def run_accuracies(folder: Path, sha256: str) -> Accuracies:
    """Return what a run found of the variant with this hash.

    Raises:
        InputError: The folder is no finished run, or the variant was not evaluated in it.
    """
    from recal.onnx_file.record import Accuracies
    from recal.runs.summary import find_network

    summary, row = find_network(folder, sha256)
    return Accuracies(
        suite=summary.suite,
        provenance=summary.provenance,
        images=summary.images,
        clean_accuracy=row.clean_accuracy,
        corrupted_accuracy=row.corrupted_accuracy,
        mean_corruption_error=row.mean_corruption_error,
    )


def variant_stem(variant: str) -> str:
    """Return a variant's name for the name of a file."""
    return Path(variant).stem
