"""Estimating statistics over a set of images: which images each process reads, and when to stop."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from recal.attacks.attack import Pgd
from recal.attacks.gradient import attack_images, normalised, random_starts
from recal.calibration.consistent import Consistent, consistent
from recal.calibration.estimators import (
    CONSISTENT,
    ESTIMATORS,
    ONE_PASS,
    Estimate,
    OnePass,
    layer_errors,
)
from recal.calibration.hooks import ForwardPass, Listener, observe
from recal.data.batches import Batches, PolicyBatches
from recal.data.images import MIN_IMAGES, counting_broken, usable_batches
from recal.data.normalise import Normalisation, normalise
from recal.data.sampling import DEFAULT_SAMPLES
from recal.distributed import ALONE, WHOLE, Part, World
from recal.errors import InputError, UsageError, pick
from recal.networks.spec import ModelSpec
from recal.policies.prepared import PreparedTogether
from recal.progress import Progress, silent
from recal.variant.statistics import LayerError

# affine and number of the policy
Key = tuple[str, int]
DEFAULT_BATCH = 128
# with a tolerance, the number of images before the first estimate of how many are needed
PILOT_IMAGES = 1024
# factor on an estimated number of images, and the largest growth of their number in one round
MARGIN, MOST_GROWTH = 1.05, 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How statistics are estimated; each attribute is the argument of `calibrate` of that name."""

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
    layers: tuple[str, ...] = ()  # all

    @property
    def forward(self) -> ForwardPass:
        """How networks are run on images."""
        return ForwardPass(autocast=self.autocast)

    def __post_init__(self) -> None:
        pick(self.estimator, ESTIMATORS, "--estimator")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise UsageError(
                f"--tolerance: expected a relative error between 0 and 1, got {self.tolerance:g}."
            )


@dataclass(frozen=True, kw_only=True)
class Estimation:
    """The result of an estimation.

    Attributes:
        layers: For each key, the statistics of every layer that saw data, by path.
        batches: Indices of the images used by all parts, in order, cut into batches.
        skipped: Names of images that cannot be decoded and were left out, relative to the source.
        passes: For each key, the number of passes of the images through the network.
    """

    layers: dict[Key, dict[str, Estimate]]
    batches: list[NDArray[np.int64]]
    skipped: tuple[str, ...]
    passes: dict[Key, int]


def estimate(
    networks: Mapping[Key, nn.Module],
    images: PreparedTogether,
    settings: Settings,
    spec: ModelSpec,
    *,
    part: Part = WHOLE,
    progress: Progress = silent,
) -> Estimation:
    """Estimate the statistics of several networks under several policies in one reading.

    Batches are determined by seed and batch size. In a job of several processes, process r takes
    batches r, r + size, r + 2 size ... With a tolerance, images are added in rounds that do not
    depend on the number of processes.

    Args:
        networks: Networks on the device, by affine and number of the policy among those of
            `images`. They are not changed.
        images: The images under their policies.
        settings: How to estimate.
        spec: The networks' preprocessing.
        part: Part of the batches to read; the result is then of these alone.
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
    if part.number > len(batches):
        raise UsageError(
            f"--part: expected at most {len(batches)} parts, the number of batches, got {part}."
        )
    drawn = np.concatenate(batches)
    policies = [prepared.policy for prepared in images.each]
    if settings.tolerance is not None and any(policy.mix for policy in policies):
        raise UsageError(
            "--tolerance: expected a policy that mixes no images, got one that mixes each with any "
            "of the whole sample. Set --samples instead."
        )
    images = images.mixing_with(np.sort(drawn))
    task = _Task(networks, images, settings, spec, part, progress)
    rounds = _Layerwise(task) if settings.estimator == CONSISTENT else _OneReading(task)
    size, tolerance, end = settings.batch_size, settings.tolerance, len(batches)
    if tolerance is not None:
        end = min(end, -(-PILOT_IMAGES // size))
    while True:
        with counting_broken(images.source, drawn, progress):
            layers, passes = rounds.estimates(batches[:end])
        for found in layers.values():
            check_finite(found)
        if end == len(batches) or tolerance is None:
            break
        reached = max(bound(layer_errors(found)) for found in layers.values())
        if reached <= tolerance:
            break
        wanted = -(-int(MARGIN * images_needed(end * size, reached, tolerance)) // size)
        end = min(len(batches), max(end + 1, min(wanted, MOST_GROWTH * end)))
    return Estimation(layers=layers, batches=batches[:end], skipped=skipped, passes=passes)


def bound(errors: Mapping[str, LayerError]) -> float:
    """Return the bound of the least precise layer, which is compared with a tolerance."""
    return max((max(e.mean_bound, e.log_variance_bound) for e in errors.values()), default=math.inf)


def images_needed(images: int, reached: float, tolerance: float) -> int:
    """Return how many images a tolerance needs, if `images` of them have the bound `reached`."""
    if not math.isfinite(reached):
        return 2 * images
    # errors fall with the square root of the number of images
    return math.ceil(images * (reached / tolerance) ** 2)


@dataclass(frozen=True)
class _Task:
    """The arguments of `estimate`, and values computed from them."""

    networks: Mapping[Key, nn.Module]
    images: PreparedTogether
    settings: Settings
    spec: ModelSpec
    part: Part
    progress: Progress

    def own(self, batches: Sequence[NDArray[np.int64]], start: int = 0) -> range:
        """Return the numbers of the batches of this process, from `start` on."""
        world, part = self.settings.world, self.part
        first, step = world.rank * part.count + part.number - 1, world.size * part.count
        return range(start + (first - start) % step, len(batches), step)

    def read(self, batches: Sequence[NDArray[np.int64]], *, keep: bool) -> Batches:
        return Batches(self.images, batches, workers=self.settings.workers, keep=keep)

    def inputs(
        self, pixels: PolicyBatches, keys: Iterable[Key], indices: NDArray[np.int64]
    ) -> dict[Key, torch.Tensor]:
        """Return the batches of the networks by key; those of one policy share a tensor.

        Adversarial images are those of each network with its stored statistics.
        """
        spec, device = self.spec, self.settings.device
        attacks = [prepared.policy.attack for prepared in self.images.each]
        policies = {policy for _, policy in keys}
        ready = {p: normalise(pixels[p], spec.normalisation, device) for p in policies}
        return {
            key: ready[key[1]]
            if (attack := attacks[key[1]]) is None
            else self._attacked(attack, self.networks[key], pixels[key[1]], indices)
            for key in keys
        }

    def _attacked(
        self, attack: Pgd, network: nn.Module, pixels: torch.Tensor, indices: NDArray[np.int64]
    ) -> torch.Tensor:
        """Return normalised images that lead a network away from its own predictions."""
        spec, device = self.spec, self.settings.device
        unchanged = Normalisation((0.0,) * len(spec.mean), (1.0,) * len(spec.mean))
        images = normalise(pixels, unchanged, device).contiguous()

        def logits(images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = network(normalised(images, spec.normalisation))
            return found

        with torch.no_grad():
            labels = logits(images).argmax(1)
        starts = random_starts(attack, self.settings.seed, indices, tuple(images.shape[1:]))
        starts = None if starts is None else starts.to(device)
        changed = attack_images(logits, images, labels, attack, starts)
        return normalised(changed.detach(), spec.normalisation)


Found = tuple[dict[Key, dict[str, Estimate]], dict[Key, int]]


class _OneReading:
    """Reads every batch once for all networks, and continues where the last round ended."""

    def __init__(self, task: _Task) -> None:
        self._task = task
        combine = ONE_PASS[task.settings.estimator]
        self._gathered = {key: OnePass(net, combine) for key, net in task.networks.items()}
        self._done = 0

    def estimates(self, batches: Sequence[NDArray[np.int64]]) -> Found:
        """Return statistics and passes of batches that begin with those of the last call."""
        task, world = self._task, self._task.settings.world
        own = task.own(batches, self._done)
        read = task.read([batches[number] for number in own], keep=False)
        inputs = (
            task.inputs(pixels, task.networks, batches[number])
            for number, pixels in zip(own, read, strict=True)
        )
        listen = partial(Listener, by_batch=True, forward=task.settings.forward)
        through = np.cumsum([len(batch) for batch in batches])
        for count, (key, found) in enumerate(observe(task.networks, inputs, listen=listen)):
            number = own[count // len(task.networks)]
            self._gathered[key].add(number, found)
            task.progress(int(through[number]), int(through[-1]))
        self._done = len(batches)
        layers = {key: gathered.estimates(world) for key, gathered in self._gathered.items()}
        return layers, dict.fromkeys(layers, 1)


@dataclass(frozen=True)
class _Layerwise:
    """Processes one network after the other, and keeps the images in memory if they fit."""

    task: _Task

    def estimates(self, batches: Sequence[NDArray[np.int64]]) -> Found:
        """Return statistics and passes of these batches."""
        task, settings = self.task, self.task.settings
        own = [batches[number] for number in task.own(batches)]
        read = task.read(own, keep=True)
        total = sum(map(len, batches))
        results: dict[Key, Consistent] = {}

        def progress(done: int, layers: int) -> None:
            share = (len(results) + done / layers) / len(task.networks)
            task.progress(int(share * total), total)

        for key, network in task.networks.items():
            results[key] = consistent(
                network, _Inputs(task, read, own, key), world=settings.world,
                forward=settings.forward, progress=progress,
            )  # fmt: skip
        task.progress(total, total)
        layers = {key: result.layers for key, result in results.items()}
        return layers, {key: result.passes for key, result in results.items()}


@dataclass(frozen=True)
class _Inputs:
    """The normalised batches of one network, which can be iterated several times."""

    task: _Task
    read: Batches
    indices: Sequence[NDArray[np.int64]]
    key: Key

    def __iter__(self) -> Iterator[torch.Tensor]:
        for pixels, indices in zip(self.read, self.indices, strict=True):
            yield self.task.inputs(pixels, [self.key], indices)[self.key]


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
