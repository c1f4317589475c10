"""Estimating statistics over a set of images: which images each process reads, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch

from recal.calibration.consistent import Consistent, consistent
from recal.calibration.error_bounds import bound, images_needed, layer_errors
from recal.calibration.estimators import CONSISTENT, ESTIMATORS, ONE_PASS, Estimate, OnePass
from recal.calibration.hooks import Listener, observe
from recal.data.batches import Batches, PolicyBatches
from recal.data.images import MIN_IMAGES, counting_broken, usable_batches
from recal.data.normalise import normalise
from recal.data.sampling import DEFAULT_SAMPLES
from recal.distributed import ALONE, World
from recal.errors import InputError, UsageError, pick
from recal.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from recal.policies.prepared import PreparedTogether


Key = TypeVar("Key")

DEFAULT_BATCH = 128
# with a tolerance, the number of images before the first estimate of how many are needed
PILOT_IMAGES = 1024
# factor on an estimated number of images, and the largest growth of their number in one round
MARGIN, MOST_GROWTH = 1.05, 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How statistics are estimated.

    Attributes:
        estimator: Name of an estimator: `pooled`, `consistent`, `ema` or `mean-of-batches`.
        samples: Largest number of images, which the seed chooses; None for all.
        batch_size: Images per batch.
        seed: Seed of the choice and order of images, and of the policies' draws.
        tolerance: Stop when the 95 % error bound of the least precise layer (of the mean in
            standard deviations, of the variance relative) is at most this; None to use all samples.
        min_images: Smallest number of images that is accepted.
        skip_broken: Whether to leave out images that cannot be decoded; otherwise they are an
            error.
        device: Device that the network runs on.
        workers: Number of processes that decode and augment images.
        autocast: Reduced precision of the forward pass, but not of the moments; None for float32.
        world: The processes that share the images.
    """

    estimator: str = "pooled"
    samples: int | None = DEFAULT_SAMPLES
    batch_size: int = DEFAULT_BATCH
    seed: int = 0
    tolerance: float | None = None
    min_images: int = MIN_IMAGES
    skip_broken: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0
    autocast: torch.dtype | None = None
    world: World = ALONE

    def __post_init__(self) -> None:
        pick(self.estimator, ESTIMATORS, "--estimator")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise UsageError(
                f"--tolerance: expected a relative error between 0 and 1, got {self.tolerance:g}."
            )


@dataclass(frozen=True, kw_only=True)
class Estimation(Generic[Key]):
    """The result of an estimation.

    Attributes:
        layers: For each key, the statistics of every layer that saw data, by path.
        used: Indices of the images used, in order.
        skipped: Names of images that cannot be decoded and were left out, relative to the source.
        passes: For each key, the number of passes of the images through the network.
    """

    layers: dict[Key, dict[str, Estimate]]
    used: list[int]
    skipped: tuple[str, ...]
    passes: dict[Key, int]


def estimate(
    networks: Mapping[Key, nn.Module],
    columns: Mapping[Key, int],
    images: PreparedTogether,
    settings: Settings,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    progress: Progress = silent,
) -> Estimation[Key]:
    """Estimate the statistics of several networks under several policies in one reading.

    Batches are determined by seed and batch size. In a job of several processes, process r takes
    batches r, r + size, r + 2 size ... With a tolerance, images are added in rounds that do not
    depend on the number of processes.

    Args:
        networks: Networks on the device, by a key of the caller's. They are not changed.
        columns: For each key, the number of its policy among those of `images`.
        images: The images under their policies.
        settings: How to estimate.
        mean: Mean of each channel of images in [0, 1].
        std: Standard deviation of each channel of images in [0, 1].
        progress: Called with the numbers of image passes done and expected; while broken images are
            searched for, with the numbers of images tried and in total.

    Raises:
        InputError: There are too few images, an image cannot be used, or values are not finite.
    """
    batches, skipped = usable_batches(
        images.source, settings.samples, settings.batch_size, settings.seed,
        min_images=settings.min_images, skip_broken=settings.skip_broken,
        ask_once=settings.world.ask_leader, progress=progress,
    )  # fmt: skip
    drawn = np.concatenate(batches)
    task = _Task(networks, columns, images, settings, mean, std, progress)
    rounds = _Layerwise(task) if settings.estimator == CONSISTENT else _OneReading(task)
    end = _pilot(batches, settings)
    while True:
        with counting_broken(images.source, drawn, progress):
            layers, passes = rounds.estimates(batches[:end])
        for found in layers.values():
            check_finite(found)
        if end == len(batches) or settings.tolerance is None:
            break
        reached = max(bound(layer_errors(found)) for found in layers.values())
        if reached <= settings.tolerance:
            break
        end = _next_end(batches, end, reached, settings)
    used = [int(index) for batch in batches[:end] for index in batch]
    return Estimation(layers=layers, used=used, skipped=skipped, passes=passes)


def _pilot(batches: Sequence[NDArray[np.int64]], settings: Settings) -> int:
    if settings.tolerance is None:
        return len(batches)
    return min(len(batches), -(-PILOT_IMAGES // settings.batch_size))


def _next_end(
    batches: Sequence[NDArray[np.int64]], end: int, reached: float, settings: Settings
) -> int:
    assert settings.tolerance is not None
    needed = MARGIN * images_needed(end * settings.batch_size, reached, settings.tolerance)
    wanted = -(-int(needed) // settings.batch_size)
    return min(len(batches), max(end + 1, min(wanted, MOST_GROWTH * end)))


@dataclass(frozen=True)
class _Task(Generic[Key]):
    """The arguments of `estimate`, and values computed from them."""

    networks: Mapping[Key, nn.Module]
    columns: Mapping[Key, int]
    images: PreparedTogether
    settings: Settings
    mean: Sequence[float]
    std: Sequence[float]
    progress: Progress

    def own(self, batches: Sequence[NDArray[np.int64]], start: int = 0) -> range:
        """Return the numbers of the batches of this process, from `start` on."""
        world = self.settings.world
        return range(start + (world.rank - start) % world.size, len(batches), world.size)

    def read(self, batches: Sequence[NDArray[np.int64]], *, keep: bool) -> Batches:
        return Batches(self.images, batches, workers=self.settings.workers, keep=keep)

    def inputs(self, pixels: PolicyBatches, keys: Iterable[Key]) -> dict[Key, torch.Tensor]:
        """Return the batches of the networks by key; those of one policy share a tensor."""
        columns = {self.columns[key] for key in keys}
        ready = {
            column: normalise(pixels[column], self.mean, self.std, self.settings.device)
            for column in columns
        }
        return {key: ready[self.columns[key]] for key in keys}


Found = tuple[dict[Key, dict[str, Estimate]], dict[Key, int]]


class _OneReading(Generic[Key]):
    """Reads every batch once for all networks, and continues where the last round ended."""

    def __init__(self, task: _Task[Key]) -> None:
        self._task = task
        combine = ONE_PASS[task.settings.estimator]
        self._gathered = {key: OnePass(net, combine) for key, net in task.networks.items()}
        self._done = 0

    def estimates(self, batches: Sequence[NDArray[np.int64]]) -> Found[Key]:
        """Return statistics and passes of batches that begin with those of the last call."""
        task, world = self._task, self._task.settings.world
        own = task.own(batches, self._done)
        read = task.read([batches[number] for number in own], keep=False)
        inputs = (task.inputs(pixels, task.networks) for pixels in read)
        listen = partial(Listener, by_batch=True, autocast=task.settings.autocast)
        through = np.cumsum([len(batch) for batch in batches])
        for count, (key, found) in enumerate(observe(task.networks, inputs, listen=listen)):
            number = own[count // len(task.networks)]
            self._gathered[key].add(number, found)
            task.progress(int(through[number]), int(through[-1]))
        self._done = len(batches)
        layers = {key: gathered.estimates(world) for key, gathered in self._gathered.items()}
        return layers, dict.fromkeys(layers, 1)


class _Layerwise(Generic[Key]):
    """Processes one network after the other, and keeps the images in memory if they fit."""

    def __init__(self, task: _Task[Key]) -> None:
        self._task = task

    def estimates(self, batches: Sequence[NDArray[np.int64]]) -> Found[Key]:
        """Return statistics and passes of these batches."""
        task, settings = self._task, self._task.settings
        read = task.read([batches[number] for number in task.own(batches)], keep=True)
        total = sum(map(len, batches))
        results: dict[Key, Consistent] = {}

        def progress(done: int, layers: int) -> None:
            share = (len(results) + done / layers) / len(task.networks)
            task.progress(int(share * total), total)

        for key, network in task.networks.items():
            results[key] = consistent(
                network, _Inputs(task, read, key), world=settings.world,
                autocast=settings.autocast, progress=progress,
            )  # fmt: skip
        task.progress(total, total)
        layers = {key: result.layers for key, result in results.items()}
        return layers, {key: result.passes for key, result in results.items()}


@dataclass(frozen=True)
class _Inputs(Generic[Key]):
    """The normalised batches of one network, which can be iterated several times."""

    task: _Task[Key]
    read: Batches
    key: Key

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self.task.inputs(pixels, [self.key])[self.key] for pixels in self.read)


def check_finite(layers: Mapping[str, Estimate]) -> None:
    """Refuse statistics with NaN or infinity, and empty ones.

    Raises:
        InputError: A value is not finite, or there are no statistics.
    """
    if not layers:
        raise InputError("calibration: expected at least one image, got none.")
    for name, found in layers.items():
        if not (found.mean.isfinite().all() and found.variance.isfinite().all()):
            raise InputError(
                f"calibration: layer {name}: expected finite values, got NaN or infinity. Look for "
                "them in the checkpoint (`recal inspect`) and in the images."
            )
