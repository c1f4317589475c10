"""Calibrating a module in memory on the batches of a loader."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import nn

from recal.calibration.consistent import consistent
from recal.calibration.estimators import CONSISTENT, one_pass
from recal.calibration.hooks import EXAMPLE, device_of, set_statistics
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
    module: nn.Module,
    batches: Iterable[Any],
    settings: Settings,
    run: Callable[[nn.Module, Any], Any] | None,
) -> nn.Module:
    """Return a copy of a module with new statistics, as `calibrate` does with `forward=run`."""
    # the module inside a `torch.compile`d one, which would compile hooks anew for each layer
    network = copy.deepcopy(module).eval()
    eager: nn.Module = getattr(network, COMPILED, network)
    given = track_statistics(eager)
    forward = settings.forward
    if run is not None:
        forward = replace(forward, call=run)
    else:
        batches = _images_alone(eager, batches)
    chosen: tuple[str, ...] = ()
    measured = eager
    if settings.layers:
        measured = copy.deepcopy(eager)
        first = next(iter(batches), None)
        if first is None:
            raise InputError("calibration: expected at least one image, got none.")
        chosen = estimate_only(measured, settings.layers, first, forward)
        if unknown := set(given) - set(chosen):
            raise InputError(
                "calibrate: layers: expected all layers without statistics among them, got some "
                f"without {listed(sorted(unknown))}. Add them."
            )
        if iter(batches) is batches:
            batches = chain([first], batches)
    name, world = settings.estimator, settings.world
    if name == CONSISTENT:
        layers = consistent(measured, batches, world=world, forward=forward).layers
    else:
        layers = one_pass(measured, batches, estimator=name, world=world, forward=forward)
    if run is not None and not layers:
        raise InputError(
            "calibrate: forward: expected a function that runs the module that it is given, a copy "
            "of yours, on every batch; got no batches, or one that reaches no BatchNorm layer of "
            f"it. Use its argument: {EXAMPLE.format('batch')}."
        )
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


def _images_alone(module: nn.Module, batches: Iterable[Any]) -> Iterable[torch.Tensor]:
    """Return the images of batches for a module that is called with them alone."""
    if needed := further_inputs(module):
        given = ", ".join(f"batch[{number}]" for number in range(1 + len(needed)))
        raise InputError(
            "calibrate: expected a module that is called with images alone, got "
            f"{type(module).__name__}.forward, which also needs {', '.join(needed)}. Say how a "
            f"batch is run, such as {EXAMPLE.format(given)}."
        )
    images = _ImagesOf(batches, device_of([module]))
    # an iterator can be read once only, so this one can, too
    return iter(images) if iter(batches) is batches else images


@dataclass(frozen=True)
class _ImagesOf:
    """The images of batches, moved to a device; labels and other parts of a batch are left out."""

    batches: Iterable[Any]
    device: torch.device

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in self.batches:
            images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            found = f"a {type(images).__name__}"
            part = "batch.x" if images is batch else "*batch[0]"
            if isinstance(images, Mapping):
                named = [images[key] for key in IMAGES if key in images]
                found = f"a dictionary of {listed(images, NAMED)}"
                part = f"batch[{next(iter(images), 'x')!r}]"
                images = named[0] if len(named) == 1 else None
            if not isinstance(images, torch.Tensor):
                raise InputError(
                    "calibrate: expected batches of images as tensors, alone, before their labels, "
                    f"or in a dictionary under one of {', '.join(IMAGES)}, got {found}. Say how a "
                    f"batch is run, such as {EXAMPLE.format(part)}."
                )
            yield images.to(self.device)
