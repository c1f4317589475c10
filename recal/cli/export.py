"""`recal export`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recal.cli.console import note, print_results, progress_bar, warn
from recal.cli.options import (
    COUNT,
    PATH,
    checkpoint_or_sample,
    data_option,
    examples,
    flag,
    format_option,
    is_typed,
    option,
    output_option,
    packed,
    prepared_by,
    reading_options,
)
from recal.cli.values import NAMES
from recal.errors import InputError, UsageError
from recal.files import require_file

if TYPE_CHECKING:
    from recal.checkpoint.layouts import ReadingOptions
    from recal.export.forms import Form, Int8
    from recal.onnx_file.record import Accuracies, FormName, GraphOptions
    from recal.variant.variant import Variant


TAKES_ONE_SIZE = (
    "--preprocess: test images of this network are taken as they are, so that the file takes {0} x "
    "{0} pixels and refuses others. To resize and crop them, add --crop-mode center."
)


@dataclass(frozen=True, kw_only=True)
class FormOptions:
    """The options that choose the form of the file, of which at most one may be given."""

    fp16: bool
    int8: bool
    patchable: bool
    switchable: tuple[str, ...]

    def name(self, run: Path | None) -> FormName:
        """Return the name of the form, and refuse options that do not go together."""
        flags: dict[str, tuple[bool, FormName]] = {
            "--int8": (self.int8, "int8"),
            "--fp16": (self.fp16, "float16"),
            "--patchable": (self.patchable, "patchable"),
        }
        given = [flag for flag, (chosen, _) in flags.items() if chosen]
        if self.switchable:
            given += ["--run"] * (run is not None) + ["--variant"] * is_typed("variant")
            if given:
                raise UsageError(
                    f"--switchable does not go with {given[0]}: the file holds several variants, "
                    "each in float32 and fixed. Export a file of each, or leave one of the two out."
                )
            return "switchable"
        if len(given) > 1:
            raise UsageError(
                f"{given[0]} does not go with {given[1]}: a file has one form. Export a file of "
                "each."
            )
        return flags[given[0]][1] if given else "float32"


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """The options of --int8."""

    int8_symmetric: bool
    max_drop: float | None
    int8_samples: int | None
    mode: str | None
    policy: Path | None

    def check(self, *, used: bool) -> None:
        """Refuse options that would have no effect, or contradict each other."""
        # a policy prepares the images that any file is compared on
        given = [n for n, v in vars(self).items() if n != "policy" and v not in (None, False)]
        if given and not used:
            raise UsageError(
                f"--{given[0].replace('_', '-')}: expected --int8 too, which it belongs to. Add it."
            )
        if self.mode is not None and self.policy is not None:
            raise UsageError("--policy: expected it instead of --mode, got both. Leave one out.")

    def form(self, variant: Variant, data: Path | None, samples: int | None) -> Int8:
        """Read the images that the file is made with and judged by."""
        from recal.export.forms import Int8
        from recal.export.int8 import MAX_DROP
        from recal.export.int8_images import (
            RANGE_IMAGES,
            TEST_IMAGES,
            held_out_images,
            range_images,
        )
        from recal.policies.policy import resolve_policy

        spec, given = variant.spec, self.policy or self.mode
        policy = None if given is None else resolve_policy(given, spec.family)
        images = range_images(
            spec, variant.statistics, data, policy=policy, count=self.int8_samples or RANGE_IMAGES
        )
        held_out = held_out_images(spec, data, images, samples or TEST_IMAGES)
        max_drop = MAX_DROP if self.max_drop is None else self.max_drop
        return Int8(
            images=images, held_out=held_out, max_drop=max_drop, symmetric=self.int8_symmetric
        )


def _graph_options(*, fixed_batch: int | None, **given: Any) -> GraphOptions:
    from recal.onnx_file.record import GraphOptions

    return GraphOptions(batch=fixed_batch, **given)


@click.command(
    "export",
    epilog=examples(
        "recal export checkpoint.pth --variant weak.safetensors -o model.onnx",
        "recal export checkpoint.pth --patchable -o base.onnx",
        "recal export checkpoint.pth --int8 --data IMAGES -o int8.onnx",
    ),
)
@click.argument("checkpoint", required=False, type=PATH)
@option("--variant", "Branch of the checkpoint, or variant file, to export.", default="main")
@output_option("ONNX file to write.", "CHECKPOINT-VARIANT.onnx")
@data_option("Folder of images to compare on; with --int8, labelled.", "the bundled images")
@option("--samples", "Number of images to compare on.", COUNT, shown="256; 2000 with --int8")
@packed(
    "graph",
    _graph_options,
    option("--opset", "ONNX operator set of the graph.", click.IntRange(13, 20), 18),
    flag("--uint8", "Input is pixels, uint8 (N, H, W, C), which the graph normalises."),
    flag(
        "--preprocess",
        "Input is pixels of any height and width, uint8 (N, H, W, C), which the graph resizes, "
        "crops and normalises.",
    ),
    flag("--softmax", "Output is probabilities instead of logits."),
    option(
        "--fixed-batch", "Number of images of each batch, fixed in the graph.", COUNT, shown="any"
    ),
    flag("--any-size", "Input has any height and width."),
)
@packed(
    "form_options",
    FormOptions,
    flag("--fp16", "Store and compute in float16, at half the size."),
    flag("--int8", "Store weights and activations in 8 bits, at a third of the size or less."),
    flag("--patchable", "Keep BatchNorm under its names, for `recal patch` and `recal calibrate`."),
    option(
        "--switchable",
        "Store several variants, and select one by a second input: branches or variant files, "
        "separated by commas.",
        NAMES,
        (),
    ),
)
@packed(
    "int8_options",
    Int8Options,
    flag(
        "--int8-symmetric", "Activations of --int8 are symmetric around zero, as TensorRT demands."
    ),
    option(
        "--max-drop",
        "Accuracy that --int8 may lose, as a fraction.",
        click.FloatRange(0, 1),
        shown="0.01",
    ),
    option(
        "--int8-samples",
        "Number of training images on which --int8 takes the ranges of activations.",
        COUNT,
        shown="128",
    ),
    option(
        "--mode",
        "Policy of the training images of --int8.",
        shown="the variant's own; clean for a branch",
    ),
    option(
        "--policy",
        "Policy file that prepares the images, and is recorded; with --int8, instead of --mode.",
        PATH,
        shown="the variant's own preparation",
    ),
)
@option("--class-names", "File of class names to record, one in each line.", PATH)
@option("--run", "Run of `recal eval` whose accuracies are recorded.", PATH)
@format_option
@reading_options
def export_command(
    checkpoint: Path | None,
    variant: str,
    output: Path | None,
    data: Path | None,
    samples: int | None,
    graph: GraphOptions,
    form_options: FormOptions,
    int8_options: Int8Options,
    class_names: Path | None,
    run: Path | None,
    form: str,
    reading: ReadingOptions,
) -> None:
    """Write a variant of CHECKPOINT as an ONNX file; without a CHECKPOINT, of the bundled sample.

    The file takes normalised images, `input` (batch, C, size, size), and returns `logits`. It is
    written only if ONNX Runtime returns the variant's logits, and not those of another branch. With
    --int8 it is judged by the predictions that stay the same.
    """
    from recal.calibration.feeding import check_feeding
    from recal.checkpoint.checkpoint import read_checkpoint
    from recal.export.export import export_onnx
    from recal.export.forms import FLOAT_FORMS, Int8
    from recal.export.subject import IMAGES, comparison_images, pictures
    from recal.onnx_file.preparing import check_preprocess, resizes
    from recal.report.onnx_file import doubts, evidence_rows, export_blocks
    from recal.variant.resolve import doubts_about, resolve_variant

    form_name = form_options.name(run)
    int8_options.check(used=form_options.int8)
    checkpoint, data = checkpoint_or_sample(checkpoint, data)
    model = prepared_by(reading.model, int8_options.policy, may_draw=form_options.int8)
    reading = replace(reading, model=model)
    loaded = read_checkpoint(checkpoint, reading)
    names = form_options.switchable or (variant,)
    variants = {Path(name).stem: resolve_variant(name, loaded) for name in names}
    warn(doubt.sentence for doubt in doubts_about(loaded, variants.values()))
    first = next(iter(variants.values()))
    check_preprocess(graph, first.spec)
    chosen: Form = FLOAT_FORMS.get(form_name) or int8_options.form(first, data, samples)
    if isinstance(chosen, Int8):
        pixels, images = chosen.held_out.pixels[:IMAGES], chosen.held_out.what
    else:
        pixels, images = comparison_images(first.spec, data, samples or IMAGES)
    if data is not None:
        check_feeding(loaded, first.spec, pixels)
    decoded = None
    if resizes(graph, first.spec):
        decoded = pictures(first.spec, data, len(pixels))
    elif graph.preprocess:
        warn([TAKES_ONE_SIZE.format(first.spec.size)])
    stem = "switchable" if form_options.switchable else Path(variant).stem
    output = output or Path(f"{checkpoint.stem}-{stem}.onnx")
    with progress_bar("images", hidden=not form_options.int8) as bar:
        evidence = export_onnx(
            loaded,
            variants if form_options.switchable else first,
            output,
            pixels,
            form=chosen,
            opset=graph.opset,
            uint8=graph.uint8,
            preprocess=graph.preprocess,
            softmax=graph.softmax,
            batch=graph.batch,
            any_size=graph.any_size,
            pictures=decoded,
            class_names=None if class_names is None else _class_names(class_names),
            accuracies=None if run is None else _accuracies(run, first.sha256),
            progress=bar,
        )
    held = f"{len(variants)} variants" if form_options.switchable else first.label
    note(f"Wrote {output}: {held}, {form_name}, {output.stat().st_size / 1e6:.2f} MB.", form)
    note(f"Input: {first.spec.feeding}.", form)
    rows = [{"file": str(output), "form": form_name, **row} for row in evidence_rows(evidence)]
    document = {"file": output, "form": form_name, "evidence": evidence}
    print_results(form, document, rows, export_blocks(evidence, images))
    warn(doubts(evidence))


def _class_names(path: Path) -> list[str]:
    """Return the names in a file, one in each line, in the order of the outputs."""
    require_file(path, "a file of class names")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected names, one in each line, got {error}.") from error
    if not all(names):
        raise InputError(f"{path}: expected a name on every line, got an empty line. Remove it.")
    return names


def _accuracies(folder: Path, sha256: str) -> Accuracies:
    """Return what a run found about the variant with this hash."""
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
