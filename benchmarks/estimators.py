"""Compare the accuracy that the estimators give, over branches and policies.

For every affine x policy x estimator, prints the accuracy on the clean test images and on a part of
CIFAR-10-C, and the paired difference from `pooled` with its 95 % interval, as a Markdown table. The
table is also written next to the runs. An interrupted benchmark resumes with existing variants and
cells.

    python benchmarks/estimators.py --data CIFAR10 -o FOLDER CHECKPOINT [CHECKPOINT ...]
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from recal import evaluate, load_checkpoint
from recal.calibration.calibrate import calibrate_matrix
from recal.calibration.estimators import ESTIMATORS
from recal.calibration.rounds import Settings
from recal.runs.compare import compare
from recal.runs.store import read_target_cell
from recal.suites.suite import load_suite
from recal.variant.variant import save_variant

POLICIES = ("clean", "weak", "strong_noise")


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option("--samples", default=10_000, show_default=True, help="Images for the statistics.")
@click.option("--corrupted", default=2000, show_default=True, help="Images of each corrupted cell.")
@click.option("--workers", default=1, show_default=True)
def main(
    checkpoints: tuple[Path, ...],
    data: Path,
    output: Path,
    samples: int,
    corrupted: int,
    workers: int,
) -> None:
    """Measure every estimator."""
    lines = [
        "| checkpoint | affine | images | estimator | clean % | vs pooled [95 %] | corrupted % "
        "| vs pooled [95 %] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in checkpoints:
        folder = output / path.stem
        names = _variants(path, folder, data, samples, workers)
        targets = ["main", "aux0", *(str(file) for file in names.values())]
        common = {"data": data, "checkpoint": path}
        clean = evaluate(targets, suite="cifar10", output=folder / "clean", **common)
        noisy = evaluate(
            targets, suite="cifar10c", output=folder / "corrupted", severities=[3],
            limit=corrupted, **common,
        )  # fmt: skip
        cells = [cell.name for cell in load_suite("cifar10c").cells(severities=[3])]
        for branch in ("main", "aux0"):
            right = [_right(clean.folder, branch, ["clean"]), _right(noisy.folder, branch, cells)]
            shown = [f"{100 * np.mean(r):.2f} | " for r in right]
            lines.append(f"| {path.stem} | {branch} | stored | | {' | '.join(shown)} |")
        for (affine, policy, estimator), file in names.items():
            row = f"| {path.stem} | {affine} | {policy} | {estimator} |"
            pooled = str(names[affine, policy, "pooled"])
            runs = ((clean, "clean_accuracy"), (noisy, "corrupted_accuracy"))
            for run, quantity in runs:
                if estimator == "pooled":
                    group = ["clean"] if run is clean else cells
                    row += f" {100 * np.mean(_right(run.folder, str(file), group)):.2f} | |"
                    continue
                (pair,) = compare(run, [pooled, str(file)]).pairs
                d = pair.differences[quantity]
                row += f" {100 * d.of_second:.2f} |"
                row += f" {100 * d.value:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}] |"
            lines.append(row)
    table = "\n".join(lines)
    click.echo(table)
    (output / "table.md").write_text(table + "\n", encoding="utf-8")


def _variants(
    path: Path, folder: Path, data: Path, samples: int, workers: int
) -> dict[tuple[str, str, str], Path]:
    checkpoint = load_checkpoint(path)
    names = {
        (affine, policy, estimator): folder / f"{affine}-{policy}-{estimator}.safetensors"
        for affine in checkpoint.branches
        for policy in POLICIES
        for estimator in ESTIMATORS
    }
    for estimator in ESTIMATORS:
        mine = [key for key in names if key[2] == estimator]
        if all(names[key].exists() for key in mine):
            continue
        table = calibrate_matrix(
            checkpoint, list(checkpoint.branches), POLICIES, data=data,
            settings=Settings(samples=samples, estimator=estimator, workers=workers),
        )  # fmt: skip
        for affine, policy, _ in mine:
            save_variant(table[affine, policy], names[affine, policy, estimator])
    return names


def _right(folder: Path, target: str, cells: list[str]) -> list[np.ndarray]:
    return [read_target_cell(folder, target, cell)["rank"] == 0 for cell in cells]


if __name__ == "__main__":
    main()
