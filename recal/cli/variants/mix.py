"""`recal mix`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from recal.cli.options import reading_options, retyped

if TYPE_CHECKING:
    from recal.checkpoint.options import ReadingOptions


@click.command("mix")
@click.argument("parts", nargs=-1, required=True)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path),
    help="The variant's file; with --sweep a folder.",
)  # fmt: skip
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="Weights of branches and variants."
)
@click.option(
    "--sweep", type=click.IntRange(2), help="Write so many variants on the path between two."
)
@click.option(
    "--prior", type=float,
    help="Shrink the second's statistics towards the first's, which count as so many images.",
)  # fmt: skip
@reading_options
def command(
    parts: tuple[str, ...],
    output: Path,
    checkpoint: Path | None,
    sweep: int | None,
    prior: float | None,
    reading: ReadingOptions,
) -> None:
    """Mix variants of the same weights: V1=0.7 V2=0.3.

    A part is what `recal eval` takes: a variant file, CHECKPOINT:BRANCH, or a branch with
    --checkpoint. Weight and bias are mixed linearly, statistics as the moments of the mixture.
    Without weights, all count alike.
    """
    from recal.cli.console import console
    from recal.errors import UsageError
    from recal.variant.file import save_variant
    from recal.variant.mixing import blend_with_prior, mix
    from recal.variant.resolve import resolve_variants

    pairs = [split_weight(part) for part in parts]
    names, weights = [name for name, _ in pairs], [weight for _, weight in pairs]
    if (sweep or prior is not None) and (len(names) != 2 or any(w is not None for w in weights)):
        raise UsageError("--sweep and --prior: expected two variants without weights.")
    if sweep and prior is not None:
        raise UsageError("--sweep and --prior: expected one of them, got both.")
    variants = [found.variant for found in resolve_variants(names, checkpoint, reading)]
    if sweep:
        for i in range(sweep):
            share = i / (sweep - 1)
            file = output / f"mix-{share:.3f}.safetensors"
            save_variant(mix(variants, [1 - share, share]), file)
        console.print(
            f"Wrote {sweep} variants to {output}/, from {names[0]} (0.000) to {names[1]} (1.000). "
            f"Next: recal eval --checkpoint {checkpoint or 'CHECKPOINT'} {output}/*.safetensors"
            f"{retyped()}"
        )
        return
    if prior is not None:
        mixed = blend_with_prior(variants[0], variants[1], prior)
    elif all(weight is None for weight in weights):
        mixed = mix(variants, [1 / len(variants)] * len(variants))
    else:
        given = [weight for weight in weights if weight is not None]
        if len(given) < len(weights):
            raise UsageError("mix: expected a weight for each variant, or for none.")
        mixed = mix(variants, given)
    save_variant(mixed, output)
    console.print(f"Wrote {output}: {mixed.label}.")


def split_weight(part: str) -> tuple[str, float | None]:
    """Split `NAME=0.7` into its name and weight; a name alone has none."""
    name, sign, text = part.rpartition("=")
    try:
        return (name, float(text)) if sign else (part, None)
    except ValueError:
        return part, None
