"""Folders of runs made by hand, and columns of simulated networks."""

import numpy as np

from recal.networks.spec import ModelSpec
from recal.runs.store import (
    ImageDigests,
    RunRecord,
    RunTarget,
    cell_file,
    images_digest,
    write_cell,
    write_record,
)
from recal.suites.suite import Cell, Reference

CORRUPTIONS = ("fog", "contrast", "gaussian_noise")
MODEL = ModelSpec(
    arch="wrn10_1", classes=10, family="cifar", mean=(0.5,) * 3, std=(0.5,) * 3, size=32
)


def columns_of(right, *, labels=None, confidence=None, seed=0, classes=10):
    """Columns of a cell in which these images are answered rightly; the rest is plausible."""
    rng = np.random.default_rng(seed)
    right = np.asarray(right, bool)
    n = len(right)
    confidence = rng.uniform(0.2, 1, n) if confidence is None else confidence
    labels = np.arange(n) % classes if labels is None else labels
    return {
        "index": np.arange(n, dtype=np.int32),
        "label": np.asarray(labels, np.int32),
        "rank": np.where(right, 0, rng.integers(1, classes, n)).astype(np.int32),
        "confidence": np.asarray(confidence, np.float32),
        "nll": rng.exponential(0.5, n).astype(np.float32),
        "sum_p2": rng.uniform(0.3, 1, n).astype(np.float32),
    }


def simulated(shares, n, *, seed=0, clean=True, corruptions=CORRUPTIONS, severities=(1, 2)):
    """Columns of every cell: an image is right with the given share, less under corruption."""
    rng = np.random.default_rng(seed)
    hardness = rng.random(n)
    names = ["clean"] * clean + [f"{c}-{s}" for c in corruptions for s in severities]
    return {
        target: {
            name: columns_of(
                hardness + 0.2 * rng.random(n) < share - 0.1 * (name != "clean"), seed=i
            )
            for i, name in enumerate(names)
        }
        for target, share in shares.items()
    }


def write_run(folder, columns, *, standard=None, reference=None, adaptation=None):
    """Write the folder of a run that holds these columns, by target and name of the cell."""
    targets = [
        RunTarget(
            name=name, label=name, sha256=f"{i:064x}"[::-1], adaptation=adaptation, model=MODEL
        )
        for i, name in enumerate(columns)
    ]
    cells = list(dict.fromkeys(cell for of in columns.values() for cell in of))
    images = {"clean": None, "corrupted": None}
    for target in targets:
        for name, of in columns[target.name].items():
            write_cell(cell_file(folder, target.sha256, Cell.parse(name)), of, "key")
            kind = "clean" if name == "clean" else "corrupted"
            images[kind] = images_digest(of["index"], of["label"])
    corrupted = [cell for cell in cells if cell != "clean"]
    record = RunRecord(
        suite="by_hand",
        suite_sha256="0" * 64,
        title="By hand",
        provenance=None,
        reference=reference and Reference(**reference),
        classes=10,
        standard=tuple(corrupted if standard is None else standard),
        cells=tuple(cells),
        images=ImageDigests(**images),
        seed=0,
        execution="by hand",
        targets=tuple(targets),
        versions={},
    )
    write_record(folder, record)
    return folder
