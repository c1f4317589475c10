"""Check that two revisions of recal compute the same numbers, to the bit.

    python -m benchmarks.same_numbers REVISION

Both revisions, REVISION and the working tree, make twelve variants, six ONNX files and one run from
the bundled checkpoints, through the command line. The variants' tensors, the ONNX files' outputs on
seeded noise and the columns of the run's cells are then compared bit by bit. File formats and
metadata may differ. It takes about three minutes on two cores and exits with 1 if a number differs.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "recal" / "sample"
FASHION = SAMPLE / "fashion_mnist_wrn10_1_splitbn.pth"
CIFAR = SAMPLE / "cifar10_wrn16_1_splitbn_noise.pth"
IMAGES = SAMPLE / "fashion-mnist"
PHOTOGRAPHS = 300
CALIBRATE = ["calibrate", FASHION, "--data", IMAGES]

VARIANTS = {
    **{
        f"{affine}-{mode}": [*CALIBRATE, "--affine", affine, "--mode", mode]
        for affine in ("main", "aux0")
        for mode in ("clean", "weak", "strong")
    },
    **{
        estimator: [*CALIBRATE, "--mode", "weak", "--estimator", estimator]
        for estimator in ("consistent", "ema", "mean-of-batches")
    },
    "cifar": ["calibrate", CIFAR, "--mode", "weak", "--data", "photographs"],
    "half": ["mix", f"{FASHION}:main=0.5", f"{FASHION}:aux0=0.5"],
    "shrunk": ["mix", f"{FASHION}:main", "main-strong.safetensors", "--prior", "100"],
}
FORMS = {
    "float32": [],
    "uint8": ["--uint8"],
    "float16": ["--fp16"],
    "int8": ["--int8", "--data", IMAGES],
    "patchable": ["--patchable"],
    "switchable": ["--switchable", "main,aux0"],
}
TARGETS = [f"{FASHION}:main", f"{FASHION}:aux0", "main-weak.safetensors", "half.safetensors"]
RUN = [
    "eval",
    *TARGETS,
    "--checkpoint",
    FASHION,
    "--suite",
    "sample",
    "--data",
    IMAGES,
    "--limit",
    "500",
]


def make(source: Path, folder: Path) -> None:
    """Run the commands of one revision in a folder."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    (folder / "photographs").mkdir()
    for number in range(PHOTOGRAPHS):
        coarse = draws.integers(0, 256, (5, 5, 3), np.uint8)
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(
            folder / "photographs" / f"{number:03}.png"
        )
    for name, command in VARIANTS.items():
        recal(source, folder, [*command, "-o", f"{name}.safetensors"])
    for name, options in FORMS.items():
        variant = [] if name == "switchable" else ["--variant", "main-weak.safetensors"]
        recal(source, folder, ["export", FASHION, *variant, *options, "-o", f"{name}.onnx"])
    recal(source, folder, [*RUN, "-o", "run"])


def recal(source: Path, folder: Path, arguments: list[object]) -> None:
    """Run one command of the revision in the folder `source`."""
    done = subprocess.run(
        [sys.executable, "-m", "recal", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(source)},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"{source}: recal {' '.join(map(str, arguments))}: {done.stderr}")


def arrays(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every array that a revision made, with its file and name."""
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            yield f"{path.name}: {name}", tensor
    for path in sorted(folder.glob("*.onnx")):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        draws = np.random.default_rng(1)
        choices = (0, 1) if path.stem == "switchable" else (None,)
        for choice in choices:
            feeds = {}
            for given in session.get_inputs():
                shape = [3 if isinstance(length, str) else length for length in given.shape]
                if given.type == "tensor(uint8)":
                    feeds[given.name] = draws.integers(0, 256, shape, np.uint8)
                elif given.type == "tensor(float)":
                    feeds[given.name] = draws.normal(size=shape).astype(np.float32)
                else:
                    feeds[given.name] = np.full(given.shape, choice or 0, np.int64)
            yield f"{path.name}: outputs {choice or ''}", session.run(None, feeds)[0]
    request = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))
    for target in request["targets"]:
        for path in sorted((folder / "run" / "cells" / target["sha256"][:16]).glob("*.parquet")):
            table = pq.read_table(path)
            for column in sorted(table.column_names):
                place = f"run: {Path(target['name']).name}: {path.stem}: {column}"
                yield place, table[column].to_numpy()


def main() -> None:
    """Make the files of both revisions and print differences and a count."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.same_numbers REVISION")
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch, "before")
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", before, sys.argv[1]],
            check=True,
        )
        try:
            make(before, Path(scratch, "old"))
            make(ROOT, Path(scratch, "new"))
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", before], check=True)
        old, new = (dict(arrays(Path(scratch, name))) for name in ("old", "new"))
    differing = [
        place
        for place in sorted(old.keys() | new.keys())
        if place not in old
        or place not in new
        or old[place].dtype != new[place].dtype
        or old[place].tobytes() != new[place].tobytes()
    ]
    for place in differing:
        print(f"differs: {place}")
    print(
        f"{len(old)} arrays of {len(VARIANTS)} variants, {len(FORMS)} ONNX files and one run: "
        f"{len(old) - len(differing)} the same to the bit, {len(differing)} not"
    )
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
