"""Calibration: from a checkpoint, policies and images to variants."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import nn

from recal.calibration.consistent import consistent
from recal.calibration.error_bounds import layer_errors
from recal.calibration.estimators import CONSISTENT, ESTIMATORS, one_pass
from recal.calibration.hooks import device_of, set_statistics
from recal.calibration.rounds import Settings, check_finite, estimate
from recal.checkpoint.checkpoint import Checkpoint
from recal.data.folders import TRAIN
from recal.distributed import ALONE, World
from recal.errors import InputError
from recal.networks.build import build
from recal.networks.plain import batch_norms
from recal.policies.families import open_family_images
from recal.policies.policy import resolve_policy
from recal.policies.prepared import PreparedTogether
from recal.progress import Progress, silent
from recal.variant.file import estimated_statistics
from recal.variant.variant import Variant, branch_variant
from recal.wording import pick

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from recal.calibration.rounds import Estimation
    from recal.data.images import ImageSource
    from recal.policies.policy import Policy


def usual_affine(checkpoint: Checkpoint, mode: str) -> str:
    """Return the branch whose affine suits a mode: the first auxiliary for strong, else main."""
    auxiliary = [name for name in checkpoint.branches if name != "main"]
    return auxiliary[0] if mode.startswith("strong") and auxiliary else "main"


@overload
def calibrate(
    source: nn.Module,
    batches: Iterable[torch.Tensor | Sequence[Any]],
    *,
    estimator: str = ...,
    world: World = ...,
    autocast: torch.dtype | None = ...,
) -> nn.Module: ...


@overload
def calibrate(
    source: Checkpoint,
    *,
    mode: str | Policy = ...,
    affine: str | None = ...,
    data: str | Path | ImageSource | None = ...,
    settings: Settings = ...,
    progress: Progress = ...,
    **options: Any,
) -> Variant: ...


def calibrate(source: Any, batches: Any = None, **options: Any) -> Any:
    """Re-estimate the statistics of every BatchNorm layer.

    With a module and batches of normalised images, (N, 3, H, W), returns a copy of the module in
    eval mode with new statistics. The module itself stays as it is. Batches may be pairs of images
    and labels, as loaders give them; for `consistent` they can be read again. In a distributed job
    give `world`, of `recal.distributed.joined`, and to each process its own batches: all get the
    same statistics.

    With a checkpoint, returns a `Variant`. Its options:

    Args:
        source: A module or a `Checkpoint`.
        batches: With a module, the images.
        **options: With a checkpoint: `mode` (a policy or the name of one in the network's family;
            default `weak`), `affine` (the branch that lends weight and bias), `data` (a folder or
            an `ImageSource`; by default looked for in the usual places), `progress` (called with
            image passes done and expected), any field of `Settings` such as `estimator`, `samples`,
            `batch_size`, `seed`, `tolerance`, `device`, `workers` (or all of them as `settings`),
            and the fields of `ModelSpec` that the file does not give.

    Raises:
        InputError: No images, too few, or of the wrong size; weights and architecture do not fit.
        UsageError: An unknown mode, branch or estimator.
    """
    if isinstance(source, Checkpoint):
        return _calibrate_checkpoint(source, **options)
    if not isinstance(source, nn.Module) or batches is None:
        raise TypeError(
            "calibrate: expected a checkpoint, as load_checkpoint gives it, or a module and "
            f"batches, got {type(source).__name__} and {type(batches).__name__}"
        )
    return _calibrate_module(source, batches, **options)


def _calibrate_module(
    module: nn.Module,
    batches: Iterable[torch.Tensor | Sequence[Any]],
    *,
    estimator: str = "pooled",
    world: World = ALONE,
    autocast: torch.dtype | None = None,
) -> nn.Module:
    eager = _uncompiled(module)
    images: Iterable[torch.Tensor] = _ImagesOf(batches, device_of([eager]))
    if iter(batches) is batches:  # it can be read once only, which shows from this one too
        images = iter(images)
    if pick(estimator, ESTIMATORS, "--estimator") == CONSISTENT:
        layers = consistent(eager, images, world=world, autocast=autocast).layers
    else:
        layers = one_pass(eager, images, estimator=estimator, world=world, autocast=autocast)
    check_finite(layers)
    network = copy.deepcopy(module).eval()
    for name, layer in batch_norms(_uncompiled(network)).items():
        if name in layers:
            with torch.no_grad():
                set_statistics(layer, layers[name].mean, layers[name].variance)
    return network


class _ImagesOf:
    """The images of batches, on a device; labels and what else is beside them are left out."""

    def __init__(
        self, batches: Iterable[torch.Tensor | Sequence[Any]], device: torch.device
    ) -> None:
        self._batches, self._device = batches, device

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in self._batches:
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(images, torch.Tensor):
                raise InputError(
                    "calibrate: expected batches of images as tensors, alone or before their "
                    f"labels, got {type(images).__name__}."
                )
            yield images.to(self._device)


def _uncompiled(module: nn.Module) -> nn.Module:
    """Return the module inside a `torch.compile`d one: hooks would be compiled anew for each layer.

    The two share parameters and buffers.
    """
    inside = getattr(module, "_orig_mod", module)
    return inside if isinstance(inside, nn.Module) else module


def _calibrate_checkpoint(
    checkpoint: Checkpoint,
    *,
    mode: str | Policy = "weak",
    affine: str | None = None,
    **options: Any,
) -> Variant:
    name = mode if isinstance(mode, str) else mode.name
    affine = affine or usual_affine(checkpoint, name)
    (variant,) = calibrate_matrix(checkpoint, [affine], [mode], **options).values()
    return variant


def calibrate_matrix(
    checkpoint: Checkpoint,
    affines: Sequence[str],
    modes: Sequence[str | Policy],
    *,
    data: str | Path | ImageSource | None = None,
    settings: Settings | None = None,
    progress: Progress = silent,
    **options: Any,
) -> dict[tuple[str, str], Variant]:
    """Estimate the statistics of every affine under every policy in one reading of the images.

    Each image is decoded once. The variants are those that `calibrate` gives one by one; with a
    tolerance, all take the images of the one that needs most.

    Args:
        checkpoint: Lends the weights.
        affines: Branches that lend weight and bias.
        modes: Policies, or names of those of the network's family.
        data: As for `calibrate`.
        settings: How to estimate; by default made of `options`.
        progress: Called with image passes done and expected.
        **options: Fields of `Settings`, and of `ModelSpec` that the file does not give.

    Returns:
        Variants by affine and policy, in the order given.

    Raises:
        InputError: As of `calibrate`.
        UsageError: As of `calibrate`.
    """
    if settings is None:
        given = {name: options.pop(name) for name in Settings.__annotations__ if name in options}
        settings = Settings(**given)
    spec = checkpoint.spec(**options)
    policies = [resolve_policy(mode, spec.family) for mode in modes]
    stored = {affine: branch_variant(checkpoint, affine, spec) for affine in affines}
    built = {a: build(checkpoint, variant).to(settings.device) for a, variant in stored.items()}
    keys = [(affine, number) for affine in affines for number in range(len(policies))]
    if data is None or isinstance(data, (str, Path)):
        source = open_family_images(spec, data, TRAIN)
    else:
        source = data
    images = PreparedTogether(source, policies, settings.seed, spec.size)
    found = estimate(
        {key: built[key[0]] for key in keys}, {key: key[1] for key in keys}, images, settings,
        mean=spec.mean, std=spec.std, progress=progress,
    )  # fmt: skip
    # hashing reads every image's file: one process is enough
    data_sha256 = settings.world.ask_leader(lambda: source.fingerprint(found.used))
    return {
        (affine, policies[number].name): _calibrated(
            stored[affine],
            policies[number],
            settings,
            found,
            (affine, number),
            data_sha256,
        )
        for affine, number in keys
    }


def _calibrated(
    stored: Variant,
    policy: Policy,
    settings: Settings,
    found: Estimation[tuple[str, int]],
    key: tuple[str, int],
    data_sha256: str,
) -> Variant:
    layers = found.layers[key]
    tensors = dict(stored.tensors)
    for name, layer in layers.items():
        tensors[f"{name}.running_mean"] = layer.mean.float()
        tensors[f"{name}.running_var"] = layer.variance.float()
    known = {name.rpartition(".")[0] for name in tensors}
    return replace(
        stored,
        tensors=tensors,
        statistics=estimated_statistics(
            policy,
            layer_errors(layers),
            data_sha256=data_sha256,
            images=len(found.used),
            skipped=list(found.skipped),
            batch_size=settings.batch_size,
            estimator=settings.estimator,
            passes=found.passes[key],
            seed=settings.seed,
            tolerance=settings.tolerance,
            autocast=None if settings.autocast is None else str(settings.autocast),
            layers_without_data=sorted(known - set(layers)),
        ),
    )
