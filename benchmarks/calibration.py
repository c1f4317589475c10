"""Measure the speed of calibration, the coverage of its error bounds, and how many images it needs.

    python benchmarks/calibration.py CHECKPOINT --data CIFAR10 [SECTION ...]

Times are those of whole calls, made in turn in one run. Ratios are medians over rounds. fvcore is
included if it is installed. Augmented images are computed once and kept in memory, so that every
method reads the same batches without decoding; only `tolerance` includes reading and decoding.
"""

from __future__ import annotations

import copy
import importlib.util
import statistics
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch

from recal import build, calibrate, load_checkpoint
from recal.calibration.consistent import consistent
from recal.calibration.estimators import layer_errors, one_pass
from recal.calibration.hooks import Listener
from recal.calibration.moments import ImageSums, Moments, image_sums
from recal.calibration.rounds import bound, images_needed
from recal.data.batches import Batches
from recal.data.folders import open_images
from recal.data.normalise import normalise
from recal.data.sampling import seeded_batches
from recal.data.splits import TEST, TRAIN
from recal.policies.policy import load_policy
from recal.policies.prepared import PreparedTogether
from recal.variant.plain import batch_norms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from recal.networks.spec import ModelSpec

CPU = torch.device("cpu")
BATCH = 128
Z = 1.96


class Task:
    """A network and all training images under the weak policy, kept as uint8."""

    def __init__(self, checkpoint: Path, data: Path, images: int) -> None:
        self.checkpoint = load_checkpoint(checkpoint)
        self.data = data
        self.spec: ModelSpec = self.checkpoint.spec
        self.network: nn.Module = build(self.checkpoint)
        self.pixels = self._read(TRAIN, "weak", images)

    def _read(self, split: str, policy: str, most: int) -> torch.Tensor:
        source = open_images(self.data, split)
        images = PreparedTogether(source, [load_policy("cifar", policy)], 0, self.spec.preparation)
        batches = seeded_batches(len(source), most, 1000, 0)
        return torch.cat([batch for (batch,) in Batches(images, batches)])

    def batches(self, indices: np.ndarray) -> Iterator[torch.Tensor]:
        """Yield normalised, contiguous NCHW batches, as a user's loader does."""
        for start in range(0, len(indices), BATCH):
            pixels = self.pixels[torch.from_numpy(indices[start : start + BATCH])]
            yield normalise(pixels, self.spec.normalisation, CPU).contiguous()


def rounds(functions: dict[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Time functions in turn, without the first round, which warms up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(count + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if number:
                times[name].append(time.perf_counter() - began)
    return times


def ratio(of: list[float], to: list[float]) -> float:
    """Return the median over rounds of the time of `of` relative to that of `to`."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def speed(task: Task) -> None:
    """Print images/s and ratios to `update_bn`, and the error against float64."""
    chosen = np.random.default_rng(0).permutation(len(task.pixels))[: 16 * BATCH]
    kept = list(task.batches(chosen))
    trained = copy.deepcopy(task.network)
    for layer in batch_norms(trained).values():
        layer.train()

    def forward() -> None:
        with torch.inference_mode():
            for batch in kept:
                trained(batch)

    functions: dict[str, Callable[[], object]] = {
        "torch update_bn": lambda: torch.optim.swa_utils.update_bn(
            kept, copy.deepcopy(task.network)
        ),
        "bare training-mode forward": forward,
        "recal pooled": lambda: one_pass(task.network, kept),
        "recal consistent, one pass": lambda: consistent(task.network, kept),
        "recal consistent, repeated": lambda: consistent(task.network, kept, memory=0),
    }
    if importlib.util.find_spec("fvcore"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from fvcore.nn.precise_bn import update_bn_stats

        def peer() -> None:
            update_bn_stats(copy.deepcopy(trained), kept, len(kept), None)

        functions["fvcore update_bn_stats"] = peer
    times = rounds(functions, 7)
    print(f"{'':30} images/s   times as fast as update_bn")
    for name, seconds in times.items():
        rate = len(chosen) / statistics.median(seconds)
        print(f"{name:30} {rate:8.0f}   {ratio(times['torch update_bn'], seconds):.2f}")
    exact = one_pass(copy.deepcopy(task.network).double(), [batch.double() for batch in kept])
    worst = 0.0
    for name, found in one_pass(task.network, kept).items():
        truth, stated = exact[name], found.moments.error()
        mean, variance = relative(found.mean, found.variance, truth.mean, truth.variance)
        worst = max(worst, mean / stated.mean, variance / stated.log_variance)
    print(f"pooled against float64: at most {worst:.1e} of the stated standard error")


def relative(
    mean: torch.Tensor, variance: torch.Tensor, true_mean: torch.Tensor, true_variance: torch.Tensor
) -> tuple[float, float]:
    """Return root mean squares over channels of the errors of mean and log-variance."""
    shift = (mean - true_mean) / true_variance.sqrt()
    scale = (variance / true_variance).log()
    return float(shift.square().mean().sqrt()), float(scale.square().mean().sqrt())


class Sums(Listener):
    """A listener that keeps the sums of every image instead of merging them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, by_batch=False)
        self.kept: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self.k: dict[str, int] = {}

    def on_input(self, name: str, layer: nn.Module, values: torch.Tensor) -> None:
        """Keep the sums of a batch."""
        pivot, a, b = image_sums(values, torch.float64)
        k = values.shape[2] * values.shape[3]
        # move the pivot to zero, so that all batches share it
        self.k[name] = k
        self.kept.setdefault(name, []).append((a + k * pivot, b + pivot * (2 * a + k * pivot)))


def coverage(task: Task, draws: int = 400, size: int = 2000) -> None:
    """Print how often 95 % intervals and bounds hold over draws of images."""
    listening = Sums(task.network)
    for batch in task.batches(np.arange(len(task.pixels))):
        listening(batch)
    rng = np.random.default_rng(1)
    inside, within, total = np.zeros(2), np.zeros(2), 0
    for name, parts in listening.kept.items():
        k = listening.k[name]
        a, b = (torch.cat(column) for column in zip(*parts, strict=True))
        mean = a.mean(0) / k
        a, b = a - k * mean, b - mean * (2 * a - k * mean)
        variance = b.mean(0) / k
        for _ in range(draws):
            rows = torch.from_numpy(rng.integers(0, len(a), size))
            found = [ImageSums(k, mean, a[r], b[r]).moments() for r in rows.split(BATCH)]
            moments = found[0]
            for more in found[1:]:
                moments = moments.merge(more)
            tally(moments, mean, variance, inside, within)
            total += 1
    report("earlier layers' statistics frozen", size, draws, inside / total, within / total)
    full = one_pass(task.network, task.batches(np.arange(len(task.pixels))))
    inside, within, total = np.zeros(2), np.zeros(2), 0
    repeated = max(20, draws // 10)
    for _ in range(repeated):
        chosen = rng.permutation(len(task.pixels))[:size]
        for name, estimate in one_pass(task.network, task.batches(chosen)).items():
            tally(estimate.moments, full[name].mean, full[name].variance, inside, within)
            total += 1
    report("pooled, unconditional", size, repeated, inside / total, within / total)


def tally(
    moments: Moments,
    mean: torch.Tensor,
    variance: torch.Tensor,
    inside: np.ndarray,
    within: np.ndarray,
) -> None:
    """Count the channels whose interval, and the layers whose bound, holds the true value."""
    errors = moments.standard_errors()
    shift = (moments.mean - mean) / moments.variance.sqrt()
    scale = (moments.variance / variance).log()
    stated = moments.error()
    bounds = (stated.mean_bound, stated.log_variance_bound)
    for i, actual in enumerate((shift, scale)):
        inside[i] += float((actual.abs() <= Z * errors[i]).double().mean())
        within[i] += float(actual.square().mean().sqrt()) <= bounds[i]


def report(what: str, size: int, draws: int, inside: np.ndarray, within: np.ndarray) -> None:
    """Print one line of coverage."""
    print(
        f"{what}: {draws} draws of {size:,} images: channel intervals hold mean {inside[0]:.1%}, "
        f"log-variance {inside[1]:.1%}; layer bounds {within[0]:.1%}, {within[1]:.1%}"
    )


def tolerance(task: Task, wanted: float = 0.02, draws: int = 60) -> None:
    """Print the cost of a tolerance, and how often the actual error is within it."""
    options = {"data": task.data, "mode": "weak"}
    began = time.perf_counter()
    whole = calibrate(task.checkpoint, samples=None, **options)
    middle = time.perf_counter()
    enough = calibrate(task.checkpoint, samples=None, tolerance=wanted, **options)
    end = time.perf_counter()
    print(
        f"tolerance {wanted}: {enough.estimated.images:,} of {whole.estimated.images:,} "
        f"images, {(end - middle) / (middle - began):.3f} of the time of all"
    )
    full = one_pass(task.network, task.batches(np.arange(len(task.pixels))))
    rng = np.random.default_rng(2)
    errors, used = [], []
    for _ in range(draws):
        order = rng.permutation(len(task.pixels))
        # like `estimate`: a pilot, then as many images as it asks for
        found = one_pass(task.network, task.batches(order[:1024]))
        count = 1024
        while bound(layer_errors(found)) > wanted:
            needed = images_needed(count, bound(layer_errors(found)), wanted)
            count = min(len(order), max(count + BATCH, min(int(1.05 * needed), 4 * count)))
            found = one_pass(task.network, task.batches(order[:count]))
        pairs = (
            relative(f.mean, f.variance, full[name].mean, full[name].variance)
            for name, f in found.items()
        )
        errors.append(max(max(pair) for pair in pairs))
        used.append(count)
    print(
        f"actual error of the worst layer, {draws} draws of {np.mean(used):,.0f} images: median "
        f"{np.median(errors):.4f}, largest {max(errors):.4f}; within {wanted} in "
        f"{np.mean(np.array(errors) <= wanted):.1%}"
    )


def images(task: Task, draws: int = 3) -> None:
    """Print the difference of the clean accuracy from that with all images, by number of images."""
    test = open_images(task.data, TEST)
    pixels = task._read(TEST, "clean", len(test))
    order = np.concatenate(seeded_batches(len(test), len(test), 1000, 0))
    labels = torch.from_numpy(test.labels[order])

    def right(network: nn.Module) -> np.ndarray:
        with torch.inference_mode():
            logits = [
                network(normalise(part, task.spec.normalisation, CPU)) for part in pixels.split(500)
            ]
        return (torch.cat(logits).argmax(1) == labels).numpy()

    rng = np.random.default_rng(3)
    every = right(calibrate(task.network, task.batches(np.arange(len(task.pixels)))))
    print(f"all {len(task.pixels):,} images: {every.mean():.2%} of {len(test):,} test images")
    for size in (32, 128, 512, 2048, 8192):
        gaps = []
        for _ in range(draws):
            chosen = rng.permutation(len(task.pixels))[:size]
            gaps.append(right(calibrate(task.network, task.batches(chosen))).mean() - every.mean())
        print(
            f"{size:6,} images: {100 * np.mean(gaps):+.2f} points, from {100 * min(gaps):+.2f} to "
            f"{100 * max(gaps):+.2f} over {draws} draws"
        )


SECTIONS = {"speed": speed, "coverage": coverage, "tolerance": tolerance, "images": images}


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("sections", nargs=-1, type=click.Choice(list(SECTIONS)))
@click.option("--data", required=True, type=click.Path(path_type=Path))
@click.option("--images", "count", default=50_000, show_default=True)
def main(checkpoint: Path, sections: tuple[str, ...], data: Path, count: int) -> None:
    """Run the sections, all by default."""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    task = Task(checkpoint, data, count)
    for name in sections or SECTIONS:
        print(f"\n{name}")
        SECTIONS[name](task)


if __name__ == "__main__":
    main()
