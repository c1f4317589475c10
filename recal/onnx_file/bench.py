"""Timing ONNX files against each other, interleaved."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recal.errors import UsageError
from recal.onnx_file.session import OnnxNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


WARM_UP = 3
SIDE = 224  # of networks that take any size and say nothing


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long runs of one file took.

    Attributes:
        model: The file.
        threads: Of ONNX Runtime.
        batch: Images a run.
        runs: How many were timed.
        p50: Median, in milliseconds.
        p90: The 90th percentile, likewise.
        p99: The 99th, likewise.
        throughput: Images a second, from the median.
        ratio: Median over rounds of this file's time over the first file's in the same round.
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
    """Time files, one run of each in turn, so that the machine's moods fall on all alike.

    The order is drawn anew for each round, because a file is slower after one that left less of the
    caches to it. Inputs are seeded noise.

    Args:
        models: The files; ratios are to the first.
        batches: Images a run; files that are fixed to a batch take that one.
        threads: Of ONNX Runtime; 0 for all cores.
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
                        f"{path}: is fixed to batches of {session.batch}, got --batch-sizes "
                        f"{batch}. Time it with --batch-sizes {session.batch}."
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
    """Return seconds, float64 (sessions, runs)."""
    inputs = [_noise(session, batch) for session in sessions]
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


def _noise(session: OnnxNetwork, batch: int) -> NDArray[Any]:
    side = session.size or session.metadata.get("model", {}).get("size", SIDE)
    rng = np.random.default_rng(0)
    if session.takes_pixels:
        return rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    return rng.standard_normal((batch, 3, side, side), dtype=np.float32)
