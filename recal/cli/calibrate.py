"""`recal calibrate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recal.cli.console import note, print_results, progress_bar, quiet_unless, warn
from recal.cli.options import (
    COUNT,
    PATH,
    autocast_option,
    checkpoint_or_sample,
    choose_device,
    data_option,
    device_option,
    examples,
    flag,
    format_option,
    is_given,
    next_command,
    option,
    output_option,
    packed,
    part_option,
    reading_options,
    refuse_typed,
    seed_option,
)
from recal.cli.values import NAMES
from recal.distributed import Part, World, joined, local_device
from recal.errors import InputError, UsageError
from recal.machine import cores_of_this_process
from recal.report.blocks import Block

if TYPE_CHECKING:
    from recal.calibration.rounds import Settings
    from recal.checkpoint.checkpoint import Checkpoint
    from recal.checkpoint.layouts import ReadingOptions
    from recal.data.images import ImageSource
    from recal.networks.spec import ModelOverrides
    from recal.variant.variant import Variant

MATRIX_MODES = ("clean", "weak", "strong")
NOT_IN_ONNX = ("matrix", "statistics", "part", "tolerance", "device", "workers", "autocast")


@dataclass(frozen=True, kw_only=True)
class Estimation:
    """The options that say how statistics are estimated."""

    estimator: str
    samples: int | None
    tolerance: float | None
    min_samples: int
    skip_broken: bool
    batch_size: int
    seed: int
    device: str
    autocast: str | None
    workers: int
    layers: tuple[str, ...]

    def settings(self, world: World) -> Settings:
        """Return the settings for the processes that share the images."""
        import torch

        from recal.calibration.rounds import Settings
        from recal.data.sampling import DEFAULT_SAMPLES

        return Settings(
            estimator=self.estimator,
            samples=self.samples or (DEFAULT_SAMPLES if self.tolerance is None else None),
            tolerance=self.tolerance,
            min_images=self.min_samples,
            skip_broken=self.skip_broken,
            batch_size=self.batch_size,
            seed=self.seed,
            device=torch.device(local_device(choose_device(self.device))),
            autocast=getattr(torch, self.autocast) if self.autocast else None,
            workers=self.workers,
            world=world,
            layers=self.layers,
        )


NOT_WITH_STATISTICS = ("mode", "policy", "data", "matrix", "part", *Estimation.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options that say which variants to make, from which images, and where to write them."""

    mode: tuple[str, ...]
    policy: Path | None
    data: Path | None
    output: Path | None
    affine: tuple[str, ...]
    matrix: bool
    statistics: str | None
    part: Part | None

    @property
    def modes(self) -> tuple[str | Path, ...]:
        """The policies, by name or by file; without --matrix, one."""
        if self.policy is not None:
            return (self.policy,)
        if self.matrix:
            return self.mode if is_given("mode") else MATRIX_MODES
        if len(self.mode) != 1:
            raise _several("--mode", self.mode)
        return self.mode

    @property
    def affines(self) -> tuple[str, ...]:
        """The branches of weight and bias; without --matrix, at most one."""
        if len(self.affine) > 1 and not self.matrix:
            raise _several("--affine", self.affine)
        return self.affine


def _several(option: str, given: tuple[str, ...]) -> click.UsageError:
    return click.UsageError(
        f"{option}: expected one without --matrix, got {len(given)}. Name one, or add --matrix."
    )


@click.command(
    "calibrate",
    epilog=examples(
        "recal calibrate checkpoint.pth --mode weak --data IMAGES",
        "recal calibrate checkpoint.pth --matrix -o variants",
        "recal calibrate base.onnx --mode clean --data IMAGES -o here.safetensors",
    ),
)
@click.argument("checkpoint", required=False, type=PATH)
@packed(
    "request",
    Request,
    option(
        "--mode",
        "Policy that augments the images: clean, weak, strong, ... (see `recal policies`). With "
        "--matrix, several separated by commas.",
        NAMES,
        "weak",
        shown="weak; clean,weak,strong with --matrix",
    ),
    option("--policy", "Policy file of your own, instead of --mode.", PATH),
    data_option("Folder of images; labels are not needed.", "$RECAL_DATA, ./data, ..."),
    output_option(
        "Variant file to write; with --matrix, a folder of them; with --part, a folder of parts.",
        "CHECKPOINT-AFFINE-MODE.safetensors",
    ),
    option(
        "--affine",
        "Branch that weight and bias come from. With --matrix, several separated by commas.",
        NAMES,
        (),
        shown="main; aux0 for strong; all with --matrix",
    ),
    flag(
        "--matrix",
        "Write a variant for every combination of affine and mode, reading the images once.",
    ),
    option(
        "--statistics",
        "Branch whose stored statistics are combined with --affine; nothing is estimated.",
    ),
    part_option("the batches", "part"),
)
@packed(
    "estimation",
    Estimation,
    option(
        "--estimator",
        "Estimator of the statistics: pooled, consistent, ema or mean-of-batches.",
        default="pooled",
    ),
    option(
        "--samples", "Maximum number of images to use.", COUNT, shown="10,000; all with --tolerance"
    ),
    option(
        "--tolerance",
        "Stop when the 95 % error bound of every layer is this small, such as 0.02.",
        click.FLOAT,
    ),
    option("--min-samples", "Minimum number of images; fewer are an error.", COUNT, 8),
    flag("--skip-broken", "Leave out images that cannot be decoded; without it they are an error."),
    option("--batch-size", "Number of images in each batch.", COUNT, 128),
    seed_option("the choice of images and of the policy's draws"),
    device_option,
    autocast_option,
    option(
        "--workers",
        "Number of processes that prepare images; 0 uses none.",
        click.IntRange(0),
        lambda: min(8, cores_of_this_process() - 1),
        shown="number of cores less 1, at most 8",
    ),
    option(
        "--layers",
        "Layers to estimate, separated by commas: names, patterns such as 'block3.*', first or "
        "last. The others keep their statistics.",
        NAMES,
        (),
        shown="all",
    ),
)
@format_option
@reading_options
def calibrate_command(
    checkpoint: Path | None,
    request: Request,
    estimation: Estimation,
    form: str,
    reading: ReadingOptions,
) -> None:
    """Estimate the BatchNorm statistics of CHECKPOINT on augmented images.

    Writes a variant: the BatchNorm tensors alone, bound to the checkpoint by a hash. Without a
    CHECKPOINT, the bundled sample is used. CHECKPOINT may be a patchable ONNX file: then ONNX
    Runtime computes, without torch if --mode is clean, and `recal patch` puts the variant into the
    file. Under torchrun, the processes share the images. With --part, jobs of their own write the
    moments of a part of the batches each into a folder, from which `recal merge` makes the variant.
    """
    if request.policy is not None:
        refuse_typed(("mode",), "expected it instead of --policy, got both. Leave one out.")
    if checkpoint is not None and checkpoint.suffix == ".onnx":
        refuse_typed(NOT_IN_ONNX, "an ONNX file does not allow this option. Leave it out.")
        request = replace(request, matrix=False)
        _recalibrate(checkpoint, request, estimation, reading.model, form)
        return
    from recal.checkpoint.checkpoint import read_checkpoint

    with joined() as world, quiet_unless(world.leads):
        path, data = checkpoint_or_sample(checkpoint, request.data)
        request = replace(request, data=data)
        loaded = read_checkpoint(path, reading)
        warn(doubt.sentence for doubt in loaded.doubts)
        if request.statistics is None:
            _estimate(loaded, request, estimation.settings(world), form)
            return
        refuse_typed(NOT_WITH_STATISTICS, "with --statistics nothing is estimated. Leave it out.")
        _combine(loaded, replace(request, matrix=False), request.statistics, form)


def _combine(checkpoint: Checkpoint, request: Request, statistics: str, form: str) -> None:
    """Write the variant of one branch's affine and another's stored statistics."""
    from recal.variant.variant import branch_variant

    (affine,) = request.affines or ("main",)
    variant = branch_variant(checkpoint, affine, statistics=statistics)
    output = request.output or Path(f"{checkpoint.path.stem}-{affine}-{statistics}.safetensors")
    finish_variants({output: variant}, [], form, f"Wrote {output}: {variant.label}.")


def _estimate(checkpoint: Checkpoint, request: Request, settings: Settings, form: str) -> None:
    """Write one variant; with --matrix, one for each pair of affine and statistics."""
    from recal.calibration.calibrate import calibrate_matrix, usual_affine
    from recal.calibration.parts import calibrate_part
    from recal.data.splits import TRAIN
    from recal.policies.families import open_family_images
    from recal.policies.policy import resolve_policy
    from recal.report.statistics import estimation_blocks, matrix_blocks
    from recal.variant.variant import branch_variant

    spec, path, tolerance = checkpoint.spec, checkpoint.path, settings.tolerance
    policies = [resolve_policy(mode, spec.family) for mode in request.modes]
    affines = request.affines or (
        tuple(checkpoint.branches)
        if request.matrix
        else (usual_affine(checkpoint, policies[0].name),)
    )
    images = open_family_images(spec, request.data, TRAIN)
    branches, modes = (
        ", ".join(f"'{name}'" for name in names)
        for names in (affines, [policy.name for policy in policies])
    )
    note(
        f"{path.name}: weight and bias of branch {branches}, statistics of {modes} images out of "
        f"{len(images):,} in {images.where}. Input: {spec.feeding}, {spec.how_prepared}.",
        form,
    )
    with progress_bar("images", hidden=not settings.world.leads) as bar:
        if request.part is not None:
            parts = request.output or Path(f"{path.stem}-parts")
            written = calibrate_part(
                checkpoint, affines, policies, request.part, parts,
                data=images, settings=settings, progress=bar,
            )  # fmt: skip
            note(f"Wrote {written}. When all parts are there: recal merge {parts}", form)
            return
        found = calibrate_matrix(
            checkpoint, affines, policies, data=images, settings=settings, progress=bar
        )
    if not settings.world.leads:
        return
    data = _test_images_of(request.data, images)
    if request.matrix:
        found |= {
            (affine, branch): branch_variant(checkpoint, affine, statistics=branch)
            for affine in affines
            for branch in checkpoint.branches
            if branch != affine and not checkpoint.missing
        }
        stored = () if checkpoint.missing else tuple(checkpoint.branches)
        folder = request.output or Path(f"{path.stem}-variants")
        files = {folder / f"{a}-{s}.safetensors": variant for (a, s), variant in found.items()}
        blocks = matrix_blocks(files, tolerance)
        named: tuple[str | Path, ...] = ("--checkpoint", path, *stored, folder / "*.safetensors")
        last = f"Wrote {len(files)} variants to {folder}. {next_command('eval', *named, *data)}"
    else:
        (((affine, name), variant),) = found.items()
        output = request.output or Path(f"{path.stem}-{affine}-{name}.safetensors")
        files, blocks = {output: variant}, estimation_blocks(variant, tolerance)
        way = ("--checkpoint",) if checkpoint.missing else ()
        last = f"Wrote {output}. {next_command('eval', *way, path, output, *data)}"
    finish_variants(files, blocks, form, last, tolerance)


def _test_images_of(folder: Path | None, used: ImageSource) -> tuple[str | Path, ...]:
    """Return `--data` for the next command, if the folder has other, labelled images for tests."""
    from recal.data.folders import open_images
    from recal.data.splits import TEST

    try:
        test = None if folder is None else open_images(folder, TEST)
    except InputError:
        return ()
    if folder is None or test is None or test.labels is None:
        return ()
    return () if test.fingerprint([0]) == used.fingerprint([0]) else ("--data", folder)


def _recalibrate(
    path: Path, request: Request, estimation: Estimation, overrides: ModelOverrides, form: str
) -> None:
    """Write a variant with the statistics that the network in an ONNX file sees itself."""
    from recal.data.sampling import DEFAULT_SAMPLES
    from recal.data.splits import TRAIN
    from recal.onnx_file.predict import network_spec
    from recal.onnx_file.reading import read_model
    from recal.onnx_file.recalibrate import recalibrate
    from recal.onnx_file.session import OnnxNetwork
    from recal.policies.families import open_family_images
    from recal.policies.policy import resolve_policy
    from recal.policies.prepared import PreparedImages
    from recal.report.statistics import estimation_blocks
    from recal.variant.selection import chosen_layers

    if request.affine:
        raise UsageError("--affine: an ONNX file has one branch only. Leave it out.")
    if is_given("estimator") and estimation.estimator != "consistent":
        raise UsageError("--estimator: an ONNX file allows 'consistent' only. Leave it out.")
    spec = network_spec(OnnxNetwork(path), overrides, str(path))
    (mode,) = request.modes
    policy = resolve_policy(mode, spec.family)
    source = open_family_images(spec, request.data, TRAIN)
    with progress_bar("images") as bar:
        variant = recalibrate(
            read_model(path),
            PreparedImages(source, policy, estimation.seed, spec.preparation),
            spec,
            samples=estimation.samples or DEFAULT_SAMPLES,
            batch_size=estimation.batch_size,
            where=str(path),
            min_images=estimation.min_samples,
            skip_broken=estimation.skip_broken,
            choose=partial(chosen_layers, estimation.layers) if estimation.layers else None,
            progress=bar,
        )
    output = request.output or Path(f"{path.stem}-{policy.name}.safetensors")
    blocks = [*estimation_blocks(variant), "Computed by ONNX Runtime."]
    last = f"Wrote {output}. {next_command('patch', path, output, how_it_is_read=False)}"
    finish_variants({output: variant}, blocks, form, last)


def finish_variants(
    variants: Mapping[Path, Variant],
    blocks: Sequence[Block],
    form: str,
    last: str,
    tolerance: float | None = None,
) -> None:
    """Write variants, print what was estimated, and last a sentence about the files."""
    from recal.report.statistics import calibration_warnings, variant_row
    from recal.variant.variant import save_variant

    for path, variant in variants.items():
        save_variant(variant, path)
    warn(calibration_warnings(list(variants.values()), tolerance))
    rows = [variant_row(path, variant) for path, variant in variants.items()]
    if blocks or form != "plain":
        print_results(form, {"variants": rows}, rows, blocks)
    note(last, form)
