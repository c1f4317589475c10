"""Timing ONNX files against each other, interleaved."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recal.errors import UsageError
from recal.onnx_file.session import OnnxNetwork, noise_side

WARM_UP = 3
SIDE = 224


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long runs of one file took.

    Attributes:
        model: The file.
        threads: Threads of ONNX Runtime; 0 for all cores.
        batch: Images per run.
        runs: Number of timed runs.
        p50: Median time of a run, in milliseconds.
        p90: 90th percentile of the time of a run, in milliseconds.
        p99: 99th percentile of the time of a run, in milliseconds.
        throughput: Images per second, from the median.
        ratio: Median over rounds of this file's time divided by the first file's in that round.
    """

    model: Path
    threads: int
    batch: int
    runs: int
    p50: float
    p90: float
    p99: float
    throughput: float
    ratio: float


def bench(
    models: Sequence[Path], *, batches: Sequence[int], threads: Sequence[int], runs: int
) -> list[Timing]:
    """Time files in rounds of one run each, so that changes of the machine's speed affect all.

    Every round has a new random order, because a file is slower after one that fills the caches.
    Inputs are seeded noise.

    Args:
        models: The files. Ratios are to the first.
        batches: Batch sizes to time.
        threads: Numbers of threads to time; 0 stands for all cores.
        runs: Timed runs of each file at each batch size and number of threads.

    Raises:
        UsageError: A file is fixed to another batch size.
    """
    timings = []
    for count in threads:
        sessions = [OnnxNetwork(path, count) for path in models]
        for batch in batches:
            for path, session in zip(models, sessions, strict=True):
                if session.batch not in (None, batch):
                    raise UsageError(
                        f"{path}: is fixed to batches of {session.batch}, got --batch-size "
                        f"{batch}. Time it with --batch-size {session.batch}."
                    )
            seconds = _interleaved(sessions, batch, runs)
            ratios = np.median(seconds / seconds[:1], axis=1)
            for path, own, ratio in zip(models, seconds * 1e3, ratios, strict=True):
                p50, p90, p99 = np.percentile(own, (50, 90, 99))
                timings.append(
                    Timing(
                        model=path, threads=count, batch=batch, runs=runs, p50=float(p50),
                        p90=float(p90), p99=float(p99), throughput=float(1e3 * batch / p50),
                        ratio=float(ratio),
                    )
                )  # fmt: skip
    return timings


def _interleaved(sessions: Sequence[OnnxNetwork], batch: int, runs: int) -> NDArray[np.float64]:
    """Return the seconds of each run, float64 (sessions, runs)."""
    sides = [
        noise_side(s.record.options, s.record.model, s.record.model.size) if s.record else SIDE
        for s in sessions
    ]
    inputs = [s.noise(batch, side) for s, side in zip(sessions, sides, strict=True)]
    for session, given in zip(sessions, inputs, strict=True):
        for _ in range(WARM_UP):
            session.outputs(given)
    seconds = np.zeros((len(sessions), runs))
    rng = np.random.default_rng(0)
    for run in range(runs):
        for number in rng.permutation(len(sessions)).tolist():
            began = time.perf_counter()
            sessions[number].outputs(inputs[number])
            seconds[number, run] = time.perf_counter() - began
    return seconds
