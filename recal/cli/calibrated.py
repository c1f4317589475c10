"""What `recal calibrate` does and prints for one variant and for a table of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from recal.bn.estimators import CONSISTENT
from recal.bn.variant import Variant, branch_variant, save_variant
from recal.calibration import calibrate, calibrate_matrix, calibration_images, usual_affine
from recal.cli.console import console, messages, progress_bar
from recal.cli.options import retyped
from recal.cli.precision import BOUNDS, doubts, largest, precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recal.checkpoint.checkpoint import Checkpoint
    from recal.data.policies import Policy
    from recal.estimation import Settings


def calibrate_one(
    checkpoint: Checkpoint,
    affine: str | None,
    mode: str | Policy,
    data: Path | None,
    output: Path | None,
    settings: Settings,
    asked: dict[str, Any],
) -> None:
    """Estimate one variant, write it, and say how precise it is."""
    name = _name(mode)
    affine = affine or usual_affine(checkpoint, name)
    images = calibration_images(checkpoint.spec(**asked), data)
    console.print(
        f"{checkpoint.path.name}: weight and bias of branch '{affine}', statistics of '{name}' "
        f"images out of {len(images):,} in {images.where}."
    )
    with progress_bar("images", hidden=not settings.world.leads) as bar:
        variant = calibrate(
            checkpoint, mode=mode, affine=affine, data=images, settings=settings, progress=bar,
            **asked,
        )  # fmt: skip
    if not settings.world.leads:
        return
    output = output or Path(f"{checkpoint.path.stem}-{affine}-{name}.safetensors")
    save_variant(variant, output)
    statistics = variant.statistics
    _warn(variant)
    console.print(
        f"Statistics of {len(checkpoint.layers)} layers from {statistics['images']:,} images "
        f"({statistics['estimator']}, batches of {statistics['batch_size']}, "
        f"seed {statistics['seed']}{_passes(variant)})."
    )
    console.print(precision(statistics))
    _say_whether_reached([variant], settings)
    console.print(f"Wrote {output}. Next: recal eval {checkpoint.path} {output}{retyped(asked)}")


def calibrate_table(
    checkpoint: Checkpoint,
    affines: Sequence[str],
    modes: Sequence[str | Policy],
    data: Path | None,
    output: Path | None,
    settings: Settings,
    asked: dict[str, Any],
) -> None:
    """Write every affine with every policy's statistics, and with every other branch's stored."""
    spec = checkpoint.spec(**asked)
    images = calibration_images(spec, data)
    console.print(
        f"{checkpoint.path.name}: weight and bias of {', '.join(affines)}; statistics of "
        f"{', '.join(map(_name, modes))} images out of {len(images):,} in {images.where}."
    )
    with progress_bar("images", hidden=not settings.world.leads) as bar:
        found = calibrate_matrix(
            checkpoint, affines, modes, data=images, settings=settings, progress=bar, **asked
        )
    if not settings.world.leads:
        return
    found |= {
        (affine, branch): branch_variant(checkpoint, affine, spec, statistics=branch)
        for affine in affines
        for branch in checkpoint.branches
        if branch != affine
    }
    folder = output or Path(f"{checkpoint.path.stem}-variants")
    table = Table("variant", "affine", "statistics", box=None, pad_edge=False)
    for column in ("images", "95 % bound, mean", "variance"):
        table.add_column(column, justify="right")
    for (affine, source), variant in found.items():
        path = folder / f"{affine}-{source}.safetensors"
        save_variant(variant, path)
        table.add_row(path.name, affine, *_cells(variant, source))
    console.print(table)
    estimated = [variant for variant in found.values() if _errors(variant)]
    _warn(estimated[0])
    console.print(
        f"{settings.estimator}, batches of {settings.batch_size}, seed {settings.seed}"
        f"{_passes(estimated[0])}. Bounds are those of the least precise layer: of the mean in "
        "standard deviations, of the variance relative."
    )
    _say_whether_reached(estimated, settings)
    console.print(
        f"Wrote {len(found)} variants to {folder}. Next: recal eval --checkpoint "
        f"{checkpoint.path} {' '.join(checkpoint.branches)} {folder}/*.safetensors{retyped(asked)}"
    )


def take_stored(
    checkpoint: Checkpoint, affine: str, branch: str, output: Path | None, asked: dict[str, Any]
) -> None:
    """Write the variant of one branch's affine and another's stored statistics."""
    variant = branch_variant(checkpoint, affine, checkpoint.spec(**asked), statistics=branch)
    output = output or Path(f"{checkpoint.path.stem}-{affine}-{branch}.safetensors")
    save_variant(variant, output)
    console.print(f"Wrote {output}: {variant.label}.")


def _name(mode: str | Policy) -> str:
    return mode if isinstance(mode, str) else mode.name


def _errors(variant: Variant) -> dict[str, dict[str, float]]:
    errors: dict[str, dict[str, float]] = variant.statistics.get("errors", {})
    return errors


def _cells(variant: Variant, source: str) -> tuple[str, ...]:
    if not _errors(variant):
        return f"stored in {source}", "", "", ""
    bounds = (f"{largest(variant.statistics, kind)[0]:.4f}" for kind in BOUNDS)
    return f"{source} images", f"{variant.statistics['images']:,}", *bounds


def _passes(variant: Variant) -> str:
    """Say how often the images went through the network, where that is not plain."""
    passes, estimator = variant.statistics["passes"], variant.statistics["estimator"]
    if estimator != CONSISTENT:
        return ""
    return ", 1 pass, activations kept" if passes == 1 else f", {passes} passes"


def _say_whether_reached(variants: Sequence[Variant], settings: Settings) -> None:
    if settings.tolerance is None:
        return
    images = variants[0].statistics["images"]
    reached = max(largest(variant.statistics, kind)[0] for variant in variants for kind in BOUNDS)
    if reached <= settings.tolerance:
        console.print(
            f"Stopped after {images:,} images: bound {reached:.4f}, tolerance "
            f"{settings.tolerance:g}."
        )
    else:
        messages.print(
            f"warning: tolerance {settings.tolerance:g} is not reached: all {images:,} images give "
            f"a bound of {reached:.4f}. Raise --samples, or give more images."
        )


def _warn(variant: Variant) -> None:
    for doubt in doubts(variant.statistics):
        messages.print(f"warning: {doubt}")
