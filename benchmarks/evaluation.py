"""Compare evaluation with RobustBench, with ONNX Runtime alone, and with other ways to run it.

    python benchmarks/evaluation.py CHECKPOINT IMAGES [--rounds 5] [--images 10000] [--ways]

CHECKPOINT is a CIFAR-10 network with several branches and IMAGES is a folder of CIFAR-10, from
which a set in the layout of CIFAR-10-C is made once. All methods are timed in turn in one run,
with the same network, images and threads. The median of the ratios of a round is compared, since
other work on the machine slows neighbours alike. Peak memory is that of a separate process.
RobustBench is optional.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

CORRUPTION, SEVERITIES = "contrast", (1, 3, 5)
BATCH = 256
Timed = dict[str, Callable[[], object]]


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=10_000, help="images per cell")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--processor", action="store_true", help="measure processor time instead of wall time"
    )
    parser.add_argument("--ways", action="store_true", help="also compare ways to run ONNX Runtime")
    parser.add_argument("--alone", choices=("recal", "robustbench"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        run_alone(options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        options.data = Path(scratch)
        make_set(options.images, options.data / "CIFAR-10-C", options.count)
        if options.rounds:
            compare(options)
        if options.ways:
            compare_ways(options)
        compare_memory(options)


def make_set(images: Path, folder: Path, count: int) -> None:
    """Write one corruption of the test images, with labels, in the published layout."""
    from recal.corruptions import corrupt
    from recal.data.folders import open_images

    source = open_images(images, "test")
    assert source.labels is not None
    # class folders are sorted by class; the rows of the published files are not
    order = np.random.default_rng(0).permutation(len(source))
    rows = np.resize(order, 10_000)
    clean = np.stack([source[int(i)] for i in rows[: min(count, len(order))]])
    clean = np.resize(clean, (10_000, 32, 32, 3))
    folder.mkdir(parents=True)
    shown = [corrupt(clean, CORRUPTION, severity, family="cifar") for severity in range(1, 6)]
    np.save(folder / f"{CORRUPTION}.npy", np.concatenate(shown))
    np.save(folder / "labels.npy", np.tile(source.labels[rows], 5))


def recal_runs(options: argparse.Namespace, targets: list[str], scratch: Path) -> None:
    """Evaluate with recal: read, check, score and write the cells."""
    from recal.evaluation.cells import compute_cells
    from recal.evaluation.execution import ExecutionOptions
    from recal.evaluation.prepare import EvaluationRequest, prepare_work

    request = EvaluationRequest(
        suite="cifar10c", data=options.data, checkpoint=options.checkpoint,
        corruptions=[CORRUPTION], severities=SEVERITIES, output=scratch / next(FOLDERS),
        limit=options.count if options.count < 10_000 else None,
        execution=ExecutionOptions(threads=options.threads, batch_size=BATCH),
    )  # fmt: skip
    compute_cells(prepare_work(targets, request))


FOLDERS = (f"run{i}" for i in itertools.count())


def robustbench_run(options: argparse.Namespace) -> Callable[[], object]:
    """Evaluate with RobustBench's loader and `clean_accuracy`; the network normalises inside."""
    import torch

    from recal.checkpoint.checkpoint import load_checkpoint
    from recal.networks.external import robustbench_module
    from recal.variant.build import build

    checkpoint = load_checkpoint(options.checkpoint)
    spec = checkpoint.spec
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))

    class Normalised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = build(checkpoint, "main")

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network((images - mean) / std)

    network = Normalised().eval()
    torch.set_num_threads(options.threads)
    accuracy = robustbench_module("robustbench.utils").clean_accuracy
    read = robustbench_module("robustbench.data").load_cifar10c

    def run() -> list[float]:
        found = []
        for severity in SEVERITIES:
            x, y = read(options.count, severity, str(options.data), False, [CORRUPTION])
            found.append(accuracy(network, x, y, batch_size=BATCH))
        return found

    return run


def model_bytes(checkpoint: Path) -> bytes:
    """Return the main branch's graph, as evaluation runs it."""
    from recal.checkpoint.checkpoint import load_checkpoint
    from recal.export.trace import to_onnx
    from recal.variant.build import build

    return bytes(to_onnx(build(load_checkpoint(checkpoint)), 32, fold=False).SerializeToString())


def session(model: bytes, threads: int) -> object:
    """Open an ONNX Runtime session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def bare_runs(options: argparse.Namespace) -> Timed:
    """Run ONNX Runtime alone on batches in memory: in the usual way and in recal's way."""
    model = model_bytes(options.checkpoint)
    images = np.random.default_rng(0).standard_normal((options.count, 3, 32, 32), np.float32)
    together, single = session(model, options.threads), session(model, 1)
    pool = ThreadPoolExecutor(options.threads)

    def run(sessions: object, piece: int, apply: Callable[..., object]) -> None:
        for _ in SEVERITIES:
            list(apply(
                lambda i: sessions.run(None, {"input": images[i : i + piece]}),
                range(0, options.count, piece),
            ))  # fmt: skip

    return {
        "session.run, all threads": lambda: run(together, BATCH, map),
        "session.run, one thread each": lambda: run(single, 16, pool.map),
    }


def compare(options: argparse.Namespace) -> None:
    """Print images per second and ratios."""
    from recal.checkpoint.checkpoint import load_checkpoint

    branches = list(load_checkpoint(options.checkpoint).branches)
    paths = [f"{options.checkpoint}:{branch}" for branch in branches]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        timed: Timed = {
            **bare_runs(options),
            "recal, 1 variant": lambda: recal_runs(options, paths[:1], scratch),
            f"recal, {len(paths)} variants": lambda: recal_runs(options, paths, scratch),
        }
        if importlib.util.find_spec("robustbench"):
            timed["RobustBench"] = robustbench_run(options)
        # processor time is nearly independent of other work on the machine
        clock = time.process_time if options.processor else time.perf_counter
        times = in_turn(timed, options.rounds, clock)
    base = times["recal, 1 variant"]
    kind = "processor time" if options.processor else "time"
    print(
        f"{options.count:,} images x {len(SEVERITIES)} cells, {options.threads} threads, by {kind}"
    )
    for name, seconds in times.items():
        rate = options.count * len(SEVERITIES) / np.median(seconds)
        print(f"  {name:30} {rate:8,.0f} images/s   time / recal's {np.median(seconds / base):.2f}")
    more = (times[f"recal, {len(paths)} variants"] - base) / (len(paths) - 1) / base
    print(f"  each further variant costs {np.median(more):.2f} of the first")
    for name in list(timed)[:2]:
        print(f"  recal over {name}: {np.median(base / times[name]) - 1:+.1%}")


def compare_ways(options: argparse.Namespace) -> None:
    """Print the times of other ways to run the same network: threads, pieces, sessions."""
    model = model_bytes(options.checkpoint)
    images = np.random.default_rng(0).standard_normal((2048, 3, 32, 32), np.float32)
    pool = ThreadPoolExecutor(options.threads)
    sessions = {threads: session(model, threads) for threads in {1, options.threads}}
    several = [session(model, 1) for _ in range(options.threads)]
    results = {}

    def run(name: str, choose: Callable[[int], object], piece: int, apply: object) -> None:
        parts = apply(
            lambda i: choose(i).run(None, {"input": images[i : i + piece]})[0],
            range(0, len(images), piece),
        )
        results[name] = np.concatenate(list(parts))

    timed: Timed = {}
    for piece in (16, 64, 256):
        name = f"{options.threads} threads in one session, pieces of {piece}"
        timed[name] = lambda n=name, p=piece: run(n, lambda _: sessions[options.threads], p, map)
    for piece in (4, 8, 16, 32, 64, 128):
        name = f"{options.threads} x 1 thread, one session, pieces of {piece}"
        timed[name] = lambda n=name, p=piece: run(n, lambda _: sessions[1], p, pool.map)
    name = f"{options.threads} x 1 thread, a session each, pieces of 16"
    timed[name] = lambda n=name: run(n, lambda i: several[i // 16 % len(several)], 16, pool.map)
    times = in_turn(timed, options.rounds)
    base = times[f"{options.threads} threads in one session, pieces of 256"]
    reference = results[f"{options.threads} threads in one session, pieces of 256"]
    print("ways to run ONNX Runtime on 2,048 ready images")
    for name, seconds in times.items():
        same = "same bits" if np.array_equal(results[name], reference) else "other bits"
        print(f"  {name:48} speed {np.median(base / seconds):.2f}   {same}")


def in_turn(
    timed: Timed, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, np.ndarray]:
    """Time each function in turn, without the first round, which warms up."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, run in timed.items():
            begun = clock()
            run()
            if number:
                times[name].append(clock() - begun)
    return {name: np.array(seconds) for name, seconds in times.items()}


def compare_memory(options: argparse.Namespace) -> None:
    """Print the peak memory of a process that only evaluates."""
    kinds = ["recal"] + (["robustbench"] if importlib.util.find_spec("robustbench") else [])
    for kind in kinds:
        done = subprocess.run(
            [sys.executable, __file__, str(options.checkpoint), str(options.images),
             "--alone", kind, "--data", str(options.data), "--threads", str(options.threads),
             "--count", str(options.count)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"  {kind:12} peak {found['megabytes']:,.0f} MB, imports {found['imports']:.1f} s")


def run_alone(options: argparse.Namespace) -> None:
    """Evaluate once and print time and memory."""
    begun = time.perf_counter()
    if options.alone == "recal":
        importlib.import_module("recal.evaluation.evaluate")
    else:
        from recal.networks.external import robustbench_module

        robustbench_module("robustbench.data")
        robustbench_module("robustbench.utils")
    imports = time.perf_counter() - begun
    if options.alone == "recal":
        with tempfile.TemporaryDirectory() as folder:
            recal_runs(options, [str(options.checkpoint)], Path(folder))
    else:
        robustbench_run(options)()
    # getrusage also counts the memory of the parent at the fork
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    kilobytes = int(status.split("VmHWM:")[1].split()[0])
    print(json.dumps({"megabytes": kilobytes / 1024, "imports": imports}))


if __name__ == "__main__":
    main()
