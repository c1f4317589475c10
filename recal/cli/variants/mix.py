"""`recal mix`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from recal.cli.options import (
    checkpoint_option,
    examples,
    option,
    output_option,
    reading_options,
    retyped,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from recal.checkpoint.layouts import ReadingOptions


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
@checkpoint_option("Checkpoint that holds the branches, and the weights of variant files.")
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
def command(
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
    from recal.cli.console import console
    from recal.errors import UsageError
    from recal.variant.file import save_variant
    from recal.variant.mixing import blend_with_prior, mix
    from recal.variant.resolve import resolve_variants

    names, weights = zip(*map(split_weight, parts), strict=True)
    if sweep and prior is not None:
        raise UsageError("--sweep and --prior: expected one of them, got both. Leave one out.")
    if (sweep or prior is not None) and (len(names) != 2 or any(w is not None for w in weights)):
        raise UsageError("--sweep and --prior: expected two variants without weights.")
    variants = [found.variant for found in resolve_variants(names, checkpoint, reading)]
    if sweep:
        for i in range(sweep):
            share = i / (sweep - 1)
            mixed = mix(variants, [1 - share, share])
            save_variant(mixed, output / f"mix-{share:.3f}.safetensors")
        console.print(
            f"Wrote {sweep} variants to {output}/, from {names[0]} (0.000) to {names[1]} (1.000). "
            f"Next: recal eval --checkpoint {checkpoint or 'CHECKPOINT'} {output}/*.safetensors"
            f"{retyped()}"
        )
        return
    if prior is not None:
        mixed = blend_with_prior(variants[0], variants[1], prior)
    else:
        mixed = mix(variants, _shares(weights))
    save_variant(mixed, output)
    console.print(f"Wrote {output}: {mixed.label}.")


def split_weight(part: str) -> tuple[str, float | None]:
    """Split `NAME=0.7` into name and number; the number is None where there is none."""
    name, sign, text = part.rpartition("=")
    try:
        return (name, float(text)) if sign else (part, None)
    except ValueError:
        return part, None


def _shares(weights: Sequence[float | None]) -> list[float]:
    from recal.errors import UsageError

    given = [weight for weight in weights if weight is not None]
    if given and len(given) < len(weights):
        raise UsageError("mix: expected a weight for each variant, or for none.")
    return given or [1 / len(weights)] * len(weights)
