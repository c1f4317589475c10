"""Calibrating a module in memory on the batches of a loader."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from recal.calibration.consistent import consistent
from recal.calibration.estimators import CONSISTENT, one_pass
from recal.calibration.hooks import device_of, set_statistics
from recal.calibration.rounds import Settings, check_finite
from recal.calibration.selection import estimate_only
from recal.errors import InputError, RecalWarning, listed
from recal.networks.calling import further_inputs
from recal.networks.tracking import track_statistics
from recal.variant.plain import statistics_owners

NAMED = 10
COMPILED = "_orig_mod"
# names of the images in batches that are dictionaries
IMAGES = ("image", "images", "img", "pixel_values", "inputs", "x")


def calibrate_module(
    module: nn.Module, batches: Iterable[torch.Tensor | Sequence[Any]], settings: Settings
) -> nn.Module:
    """Return a copy of a module with new statistics, as `calibrate` does."""
    # the module inside a `torch.compile`d one, which would compile hooks anew for each layer
    network = copy.deepcopy(module).eval()
    eager: nn.Module = getattr(network, COMPILED, network)
    given = track_statistics(eager)
    if needed := further_inputs(eager):
        raise InputError(
            "calibrate: expected a module that is called with images alone, got "
            f"{type(eager).__name__}.forward, which also needs {', '.join(needed)}. Pass a module "
            "whose forward gives them."
        )
    images: Iterable[torch.Tensor] = _ImagesOf(batches, device_of([eager]))
    if iter(batches) is batches:  # an iterator can be read once only, so this one can, too
        images = iter(images)
    chosen: tuple[str, ...] = ()
    measured = eager
    if settings.layers:
        measured = copy.deepcopy(eager)
        first = next(iter(images), None)
        if first is None:
            raise InputError("calibration: expected at least one image, got none.")
        chosen = estimate_only(measured, settings.layers, first)
        if unknown := set(given) - set(chosen):
            raise InputError(
                "calibrate: layers: expected all layers without statistics among them, got some "
                f"without {listed(sorted(unknown))}. Add them."
            )
        if iter(images) is images:
            images = chain([first], images)
    name, autocast, world = settings.estimator, settings.autocast, settings.world
    if name == CONSISTENT:
        layers = consistent(measured, images, world=world, autocast=autocast).layers
    else:
        layers = one_pass(measured, images, estimator=name, world=world, autocast=autocast)
    check_finite(layers)
    owners = statistics_owners(eager)
    for path, layer in layers.items():
        with torch.no_grad():
            set_statistics(owners[path], layer.mean, layer.variance)
    kept = [f"{path} ({type(m).__name__})" for path, m in owners.items() if path not in layers]
    if chosen:
        kept = [text for text in kept if text.partition(" ")[0] in chosen]
    if kept and world.leads:
        warnings.warn(
            "calibrate: expected an estimate for every layer with running statistics, but these "
            f"keep theirs: {listed(kept, NAMED)}. They saw no data, or do not normalise by running "
            "statistics.",
            RecalWarning,
            stacklevel=4,
        )
    return network


@dataclass(frozen=True)
class _ImagesOf:
    """The images of batches, moved to a device; labels and other parts of a batch are left out."""

    batches: Iterable[torch.Tensor | Sequence[Any]]
    device: torch.device

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in self.batches:
            images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            found = "a " + type(images).__name__
            if isinstance(images, Mapping):
                named = [images[key] for key in IMAGES if key in images]
                found = f"a dictionary of {listed(images, NAMED)}"
                images = named[0] if len(named) == 1 else None
            if not isinstance(images, torch.Tensor):
                raise InputError(
                    "calibrate: expected batches of images as tensors, alone, before their labels, "
                    f"or in a dictionary under one of {', '.join(IMAGES)}, got {found}. Give a "
                    "loader of images."
                )
            yield images.to(self.device)
