"""Measure how evaluation scales: processes, parts, targets, cells, images, and large runs.

    python benchmarks/scale.py CHECKPOINT IMAGES [--count 2000] [--run 76,12,50000]

CHECKPOINT is a CIFAR-10 network with several branches and IMAGES is a folder of CIFAR-10. Every
measurement is a process of its own, whose peak memory is that of the process or of the largest one.
The large run is made of random columns; opening it, finding all of its cells and summarising them
is timed. Processor time is nearly independent of other work on the machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SEVERITIES = "1,2,3,4,5"
ALONE = "\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
BARE = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from evaluation import model_bytes, session
from pathlib import Path
from PIL import Image
from recal.checkpoint.checkpoint import load_checkpoint
from recal.data.folders import open_images
checkpoint, images, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
spec, source = load_checkpoint(checkpoint).spec, open_images(images, "test")
network, pool = session(model_bytes(checkpoint), 1), ThreadPoolExecutor(threads)
mean, std = (np.array(v, np.float32) for v in (spec.mean, spec.std))
def run(start):
    some = range(start, min(start + 16, len(source)))
    pixels = np.stack([np.asarray(Image.open(source.paths[i]).convert("RGB")) for i in some])
    batch = ((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    return network.run(None, {"input": np.ascontiguousarray(batch, np.float32)})[0]
begun = time.process_time()
list(pool.map(run, range(0, len(source), 16)))
print((time.process_time() - begun) / len(source) * 1e6)
"""
EVALUATE = """
import json, sys, time
from recal import evaluate
targets, options = json.loads(sys.argv[1]), json.loads(sys.argv[2])
begun = time.process_time()
evaluate(targets, **options)
print(time.process_time() - begun)
"""
MAKE = """
import sys
from pathlib import Path
import numpy as np
from recal.networks.spec import ModelSpec
from recal.runs.store import *
from recal.suites.suite import Cell, load_suite
folder, (cells, targets, images) = Path(sys.argv[1]), map(int, sys.argv[2].split(","))
suite, rng = load_suite("imagenetc"), np.random.default_rng(0)
cells = [Cell(None, None), *suite.cells()][:cells]
index, hard = np.arange(images, dtype=np.int32), rng.random(images)
labels = index % 1000
digest = images_digest(index, labels)
model = ModelSpec(arch="timm:resnet50", classes=1000, family="imagenet", mean=(0.5,) * 3,
                  std=(0.5,) * 3, size=224)
named = [RunTarget(name=f"t{t}", label=f"t{t}", sha256=f"{t + 1:064x}"[::-1], adaptation=None,
                   model=model) for t in range(targets)]
for t, target in enumerate(named):
    for c, cell in enumerate(cells):
        right = hard + 0.2 * rng.random(images) < 0.75 - 0.006 * c + 0.003 * t
        rank = np.where(right, 0, rng.integers(1, 1000, images)).astype(np.int32)
        drawn = {name: rng.uniform(0.05, 1, images).astype(np.float32)
                 for name in ("confidence", "nll", "sum_p2")}
        write_cell(cell_file(folder, target.sha256, cell),
                   {"index": index, "label": labels, "prediction": labels, "rank": rank, **drawn},
                   "key")
write_record(folder, RunRecord(
    suite=suite.name, suite_sha256="0" * 64, title=suite.title, provenance=None,
    reference=suite.reference, classes=1000, standard=tuple(c.name for c in suite.cells()),
    cells=tuple(c.name for c in cells), images=ImageDigests(clean=digest, corrupted=digest), seed=0,
    execution="none", targets=tuple(named), versions={}))
"""
SUMMARISE = """
import sys, time
from pathlib import Path
begun = time.perf_counter()
from recal.report.page import write_report
from recal.runs.store import cell_file, open_run, read_cell
from recal.runs.summary import finish_run
run = open_run(Path(sys.argv[1]))
opened = time.perf_counter()
for target in run.targets:
    for cell in run.cells:
        read_cell(cell_file(run.folder, target.sha256, cell), "key")
found = time.perf_counter()
write_report(finish_run(run.folder, execution="", warnings=()), run.folder / "report.html")
done = time.perf_counter()
print(opened - begun, found - opened, done - found, time.process_time())
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=2_000, help="images per cell")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", default="76,12,50000", help="cells, targets and images; or 0")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.run != "0":
            large_run(folder / "large", options.run)
        from evaluation import make_set

        make_set(options.images, folder / "CIFAR-10-C", 10_000)
        against_bare(options, folder)
        ways(options, folder)
        memory(options, folder)


def alone(script: str, *words: object) -> tuple[list[float], float]:
    """Run a script as a process; return the numbers that it prints, and its peak in MB."""
    done = subprocess.run(
        [sys.executable, "-c", script + ALONE, *map(str, words)],
        check=True, capture_output=True, text=True, cwd=Path(__file__).parent,
    )  # fmt: skip
    *lines, kilobytes = done.stdout.splitlines()
    return [float(word) for word in (lines[-1].split() if lines else [])], int(kilobytes) / 1024


def large_run(folder: Path, shape: str) -> None:
    """Make a run of random columns, and time what is done with it."""
    alone(MAKE, folder, shape)
    (opened, found, done, processor), peak = alone(SUMMARISE, folder)
    print(
        f"run of {shape} (cells, targets, images): open {opened:.1f} s, find the cells "
        f"{found:.1f} s, summarise and report {done:.1f} s, {processor:.1f} s of processor time, "
        f"peak {peak:,.0f} MB"
    )


def against_bare(options: argparse.Namespace, folder: Path) -> None:
    """Compare the cost of an image in a clean cell with decoding and a forward pass alone."""
    ((bare,), _) = alone(BARE, options.checkpoint, options.images, options.threads)
    chosen = {"suite": "cifar10", "data": str(options.images), "output": str(folder / "clean")}
    ((seconds,), _) = alone(
        EVALUATE, json.dumps([str(options.checkpoint)]),
        json.dumps({**chosen, "threads": options.threads}),
    )  # fmt: skip
    held = json.loads((folder / "clean" / "summary.json").read_text(encoding="utf-8"))
    each = seconds / held["cells"][0]["n"] * 1e6
    print(
        f"an image of a clean cell: {each:.0f} us of processor time; decoding and forward alone: "
        f"{bare:.0f} us"
    )


def ways(options: argparse.Namespace, folder: Path) -> None:
    """Time a run by one and two processes, and in one and four parts at once."""
    command = [
        "-m", "recal", "eval", str(options.checkpoint), "--suite", "cifar10c", "--data",
        str(folder), "--corruptions", "contrast", "--severities", SEVERITIES, "--limit",
        str(options.count), "--device", "cpu", "--json",
    ]  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    for name, starts in {
        "1 process": [command],
        "2 processes": [[*torchrun, "2", *command]],
        "1 part": [[*command, "--part", "1/1"]],
        "4 parts": [[*command, "--threads", "1", "--part", f"{i}/4"] for i in range(1, 5)],
    }.items():
        run = str(folder / name.replace(" ", "-"))
        begun, before = time.perf_counter(), processor_time()
        started = [
            subprocess.Popen(
                [sys.executable, *start, "-o", run], stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for start in starts
        ]  # fmt: skip
        codes = [process.wait() for process in started]
        print(
            f"{name}: {time.perf_counter() - begun:.1f} s for 5 cells, "
            f"{processor_time() - before:.1f} s of processor time, exit {set(codes)}"
        )


def processor_time() -> float:
    """Return the processor time of all finished children, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory(options: argparse.Namespace, folder: Path) -> None:
    """Print peak memory for more targets, cells and images."""
    from recal.checkpoint.checkpoint import load_checkpoint

    branches = [f"{options.checkpoint}:{b}" for b in load_checkpoint(options.checkpoint).branches]
    base = {"suite": "cifar10c", "data": str(folder), "corruptions": ["contrast"]}
    for number, (name, targets, more) in enumerate([
        ("1 target, 1 cell, 1,000 images", branches[:1], {"severities": [1], "limit": 1000}),
        (f"{len(branches)} targets", branches, {"severities": [1], "limit": 1000}),
        ("5 cells", branches[:1], {"severities": [1, 2, 3, 4, 5], "limit": 1000}),
        ("10,000 images", branches[:1], {"severities": [1]}),
    ]):  # fmt: skip
        asked = {**base, **more, "threads": options.threads, "output": str(folder / f"m{number}")}
        _, peak = alone(EVALUATE, json.dumps(targets), json.dumps(asked))
        print(f"{name}: peak {peak:,.0f} MB")


if __name__ == "__main__":
    main()
