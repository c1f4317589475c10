"""`recal inspect`, `recal mix`, `recal convert` and `recal merge`."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recal.cli.calibrate import finish_variants
from recal.cli.console import console, note, print_results, progress_bar, warn
from recal.cli.options import (
    COUNT,
    PATH,
    checkpoint_or_sample,
    data_option,
    examples,
    format_option,
    next_command,
    option,
    output_option,
    policy_option,
    prepared_by,
    reading_options,
    refuse_typed,
    seed_option,
)
from recal.errors import UsageError, listed

if TYPE_CHECKING:
    from recal.checkpoint.layouts import ReadingOptions
    from recal.inspection.scores import BranchScore


@click.command(
    "inspect",
    epilog=examples(
        "recal inspect checkpoint.pth",
        "recal inspect checkpoint.pth --data IMAGES --arch timm:resnet50 --json",
    ),
)
@click.argument("checkpoint", required=False, type=PATH)
@option("--plot", "Draw the distances between branches into this .png or .svg file.", PATH)
@data_option("Folder of clean images on which to score each branch; needs the architecture.")
@policy_option
@option("--samples", "Maximum number of images of --data to use.", COUNT, 2000)
@seed_option("the choice of images of --data")
@format_option
@reading_options
def inspect_command(
    checkpoint: Path | None,
    plot: Path | None,
    data: Path | None,
    policy: Path | None,
    samples: int,
    seed: int,
    form: str,
    reading: ReadingOptions,
) -> None:
    """Show which BatchNorm branches CHECKPOINT holds, and whether they can be trusted.

    No code in the file is run, and no architecture is needed. Without a CHECKPOINT, the bundled
    sample is used.
    """
    from recal.calibration.feeding import look, misfit, sample_pixels
    from recal.checkpoint.checkpoint import read_checkpoint
    from recal.data.folders import find_images
    from recal.data.splits import TEST
    from recal.inspection.distances import inspect_checkpoint
    from recal.inspection.scores import score_activations, score_branches
    from recal.report.plots import plot_inspection
    from recal.report.statistics import distance_rows, inspection_blocks, inspection_document

    if data is None:
        refuse_typed(
            ("samples", "seed", "policy"),
            "expected --data too, to whose images it belongs. Add it.",
        )
    checkpoint, _ = checkpoint_or_sample(checkpoint, data)
    reading = replace(reading, model=prepared_by(reading.model, policy))
    loaded = read_checkpoint(checkpoint, reading)
    inspection = inspect_checkpoint(loaded)
    if plot is not None:
        plot_inspection(inspection, plot)
        note(f"Wrote {plot}.", form)
    feeding, fault = None, None
    scores: tuple[BranchScore, ...] = ()
    if data is not None:
        source = find_images(data, (), TEST, what="images to score the branches on")
        pixels = sample_pixels(source, loaded.spec)
        feeding = None if pixels is None else look(loaded, loaded.spec, pixels)
        fault = None if feeding is None else misfit(loaded, loaded.spec, feeding)
    if data is not None and fault is None:
        with progress_bar("images") as bar:
            scores = score_branches(loaded, data, samples=samples, seed=seed, progress=bar)
        scored = score_activations(loaded, data, samples=samples, seed=seed)
        if scored is not None:
            others = (f for f in inspection.findings if f.kind != scored.kind)
            inspection = replace(inspection, findings=(*others, scored))
    print_results(
        form,
        inspection_document(inspection, scores, feeding),
        distance_rows(inspection),
        inspection_blocks(inspection, scores, feeding),
    )
    warn(finding.sentence for finding in inspection.findings)
    if fault is not None:
        raise fault


@click.command(
    "mix",
    epilog=examples(
        "recal mix main=0.7 aux0=0.3 --checkpoint c.pth -o mixed.safetensors",
        "recal mix main aux0 --checkpoint c.pth --sweep 11 -o path",
        "recal mix main here.safetensors --checkpoint c.pth --prior 16 -o blended.safetensors",
    ),
)
@click.argument("parts", nargs=-1, required=True)
@output_option("Variant file to write; with --sweep, a folder of them.")
@option(
    "--checkpoint", "Checkpoint that holds the branches, and the weights of variant files.", PATH
)
@option(
    "--sweep",
    "Write this many variants, evenly spaced on the path from the first to the second.",
    click.IntRange(2),
)
@option(
    "--prior",
    "Number of images that the first variant's statistics count for; the second's are blended "
    "towards them.",
    click.FloatRange(0),
)
@reading_options
def mix_command(
    parts: tuple[str, ...],
    output: Path,
    checkpoint: Path | None,
    sweep: int | None,
    prior: float | None,
    reading: ReadingOptions,
) -> None:
    """Mix variants of the same weights, given as PARTS such as V1=0.7 V2=0.3.

    A part is a variant file, CHECKPOINT:BRANCH, or with --checkpoint the name of a branch. Weight
    and bias are mixed linearly, statistics as the moments of the mixture. Without numbers, all
    parts have the same share.
    """
    from recal.variant.mixing import blend_with_prior, mix
    from recal.variant.resolve import doubts_about, resolve_variants
    from recal.variant.variant import save_variant

    names, weights = zip(*map(_split_weight, parts), strict=True)
    given = [weight for weight in weights if weight is not None]
    if sweep and prior is not None:
        raise UsageError("--sweep and --prior: expected one of them, got both. Leave one out.")
    if (sweep or prior is not None) and (len(names) != 2 or given):
        raise UsageError("--sweep and --prior: expected two variants without weights.")
    resolved = resolve_variants(names, checkpoint, reading)
    variants = [found.variant for found in resolved]
    source = resolved[0].checkpoint
    warn(doubt.sentence for doubt in doubts_about(source, variants))
    if sweep:
        for i in range(sweep):
            share = i / (sweep - 1)
            mixed = mix(variants, [1 - share, share])
            save_variant(mixed, output / f"mix-{share:.3f}.safetensors")
        console.print(
            f"Wrote {sweep} variants to {output}/, from {names[0]} (0.000) to {names[1]} (1.000). "
            f"{next_command('eval', '--checkpoint', source.path, output / '*.safetensors')}"
        )
        return
    if given and len(given) < len(names):
        raise UsageError("mix: expected a weight for each variant, or for none.")
    if prior is not None:
        mixed = blend_with_prior(variants[0], variants[1], prior)
    else:
        mixed = mix(variants, given or [1 / len(names)] * len(names))
    save_variant(mixed, output)
    console.print(f"Wrote {output}: {mixed.label}.")


def _split_weight(part: str) -> tuple[str, float | None]:
    """Split `NAME=0.7` into name and number; the number is None where there is none."""
    name, sign, text = part.rpartition("=")
    try:
        return (name, float(text)) if sign else (part, None)
    except ValueError:
        return part, None


@click.command(
    "convert", epilog=examples("recal convert checkpoint.pth --variant aux0 -o plain.safetensors")
)
@click.argument("checkpoint", type=PATH)
@option("--variant", "Branch of the checkpoint, or variant file, to write.", default="main")
@output_option("Checkpoint to write, .safetensors or .pth.")
@reading_options
def convert_command(checkpoint: Path, variant: str, output: Path, reading: ReadingOptions) -> None:
    """Write one variant of CHECKPOINT as an ordinary checkpoint.

    The file has one plain BatchNorm for each layer, under plain names, so that timm, torchvision or
    your own code loads it with strict=True. No architecture is needed; where it is known, the file
    is loaded and compared.
    """
    from recal.checkpoint.checkpoint import read_checkpoint
    from recal.variant.build import convert
    from recal.variant.resolve import doubts_about, resolve_variant

    loaded = read_checkpoint(checkpoint, reading)
    # a branch needs no architecture
    chosen = variant if variant in loaded.branches else resolve_variant(variant, loaded)
    known = [] if isinstance(chosen, str) else [chosen]
    warn(doubt.sentence for doubt in (doubts_about(loaded, known) if known else loaded.doubts))
    notes = convert(loaded, chosen, output)
    console.print(f"Wrote {output}: {variant} of {checkpoint}.")
    for line in notes:
        console.print(f"  {line}")


@click.command(
    "merge",
    epilog=examples("recal merge model-parts", "recal merge model-parts -o weak.safetensors"),
)
@click.argument("parts", nargs=-1, required=True, type=PATH)
@output_option(
    "Variant file to write; for several variants, a folder of them.",
    "PARTS/AFFINE-MODE.safetensors",
)
@format_option
def merge_command(parts: tuple[Path, ...], output: Path | None, form: str) -> None:
    """Make the variant of a calibration from the PARTS that `recal calibrate --part` wrote.

    PARTS are their folder or their files; all of them are needed. The variant is that of one
    process.
    """
    from recal.calibration.parts import SUFFIX, merge_parts
    from recal.report.statistics import estimation_blocks, matrix_blocks

    found = [sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path] for path in parts]
    variants = merge_parts([*chain.from_iterable(found)])
    folder = output or (parts[0] if parts[0].is_dir() else parts[0].parent)
    files = {folder / f"{a}-{mode}.safetensors": v for (a, mode), v in variants.items()}
    blocks = matrix_blocks(files, None)
    if len(variants) == 1:
        ((path, variant),) = files.items()
        files = {path if output is None or output.is_dir() else output: variant}
        blocks = estimation_blocks(variant)
    finish_variants(files, blocks, form, f"Wrote {listed(files)}.")
