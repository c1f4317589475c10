"""Run the commands on real data: CIFAR-10 and checkpoints with auxiliary BatchNorm.

    python .ci/end_to_end.py SHARED SCRATCH

SHARED holds data/ and checkpoints/, described by their READMEs. Accuracies are compared with those
in the checkpoints' README, from an independent script. Statistics are compared with float64 NumPy.
"""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch

from recal import build, calibrate, load_checkpoint
from recal.data.folders import open_images
from recal.data.normalise import normalise_array
from recal.onnx_file.session import OnnxNetwork
from recal.runs.store import read_target_cell
from recal.variant.variant import load_variant

SEVEN = "gaussian_noise,impulse_noise,defocus_blur,contrast,brightness,pixelate,jpeg_compression"
CORRECT = {
    "wrn16_1_splitbn_cifar10.pth": {"main": 8545, "aux0": 8524},
    "wrn16_1_splitbn_noise_cifar10.pth": {"main": 8529, "aux0": 8345},
}


def recal(*arguments: object, cwd: Path, status: int = 0, messages: bool = False) -> str:
    """Run the command and return its output."""
    command = [sys.executable, "-m", "recal", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == status, (command, done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr if messages or status != 0 else done.stdout


def main() -> None:
    """Run every check."""
    shared, scratch = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    cifar10 = scratch / "cifar10"
    with tarfile.open(shared / "data" / "cifar10-jpeg.tar.gz") as archive:
        archive.extractall(cifar10, filter="data")
    checkpoints = shared / "checkpoints"
    check_accuracies(checkpoints, cifar10, scratch)
    check_statistics(checkpoints / "wrn16_1_splitbn_cifar10.pth", cifar10)
    check_processes(checkpoints / "wrn16_1_splitbn_noise_cifar10.pth", cifar10, scratch)
    check_project(checkpoints / "wrn16_1_splitbn_cifar10.pth", cifar10, scratch / "project")
    check_bundled(cifar10, scratch)


def check_accuracies(checkpoints: Path, cifar10: Path, scratch: Path) -> None:
    """Check the branches' accuracies on all 10,000 test images."""
    for name, correct in CORRECT.items():
        targets = [f"{checkpoints / name}:{branch}" for branch in correct]
        for backend in ("onnxruntime", "torch"):
            out = recal(
                "eval", *targets, "--suite", "cifar10", "--data", cifar10, "--json",
                "--backend", backend, "-o", f"run-{name}-{backend}", cwd=scratch,
            )  # fmt: skip
            cells = json.loads(out)["cells"]
            found = [round(cell["accuracy"] * cell["n"]) for cell in cells]
            assert found == list(correct.values()), (name, backend, found)
    print("accuracies of all branches: as documented, to the image, by both backends")


def check_statistics(path: Path, cifar10: Path) -> None:
    """Compare both estimators with an independent float64 computation."""
    checkpoint = load_checkpoint(path)
    spec = checkpoint.spec
    source = open_images(cifar10, "train")
    images, batch = 384, 128
    order = np.random.default_rng(0).permutation(len(source))[:images]
    pixels = np.stack([source[int(i)] for i in order]).astype(np.float64) / 255
    pixels = ((pixels - np.array(spec.mean)) / np.array(spec.std)).transpose(0, 3, 1, 2)
    for estimator, size in (("pooled", batch), ("consistent", images)):
        variant = calibrate(
            checkpoint, mode="clean", data=cifar10, samples=images, batch_size=batch,
            estimator=estimator,
        )  # fmt: skip
        worst = 0.0
        for layer, (mean, variance) in float64_statistics(checkpoint, pixels, size).items():
            found_mean = variant.tensors[f"{layer}.running_mean"].astype(np.float64)
            found_variance = variant.tensors[f"{layer}.running_var"].astype(np.float64)
            worst = max(
                worst,
                np.abs((found_mean - mean) / np.sqrt(variance)).max(),
                np.abs(found_variance / variance - 1).max(),
            )
        assert worst < 1e-6, (estimator, worst)
        print(f"statistics, {estimator}: largest error against float64 {worst:.1e}")


def float64_statistics(checkpoint, pixels: np.ndarray, size: int) -> dict:
    """Run the network in float64 with NumPy normalisation; pool the values of every BN layer."""
    network = build(checkpoint, "main").double()
    sums: dict = {}

    class Reference(torch.nn.Module):
        def __init__(self, name, layer):
            super().__init__()
            self.name, self.layer = name, layer

        def forward(self, x):
            values = x.numpy().transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
            n, first, second = sums.get(self.name, (0, 0.0, 0.0))
            sums[self.name] = (
                n + values.shape[1], first + values.sum(1), second + (values**2).sum(1),
            )  # fmt: skip
            mean, variance = (f(values, axis=1)[:, None, None] for f in (np.mean, np.var))
            gamma = self.layer.weight.numpy()[:, None, None]
            beta = self.layer.bias.numpy()[:, None, None]
            return torch.from_numpy(
                (x.numpy() - mean) / np.sqrt(variance + self.layer.eps) * gamma + beta
            )

    for name, layer in list(network.named_modules()):
        if isinstance(layer, torch.nn.BatchNorm2d):
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, Reference(name, layer))
    with torch.no_grad():
        for start in range(0, len(pixels), size):
            network(torch.from_numpy(pixels[start : start + size]))
    return {k: (s / n, q / n - (s / n) ** 2) for k, (n, s, q) in sums.items()}


def check_processes(path: Path, cifar10: Path, scratch: Path) -> None:
    """Check that two processes give the variants and cells of one process."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in (
        ["calibrate", path, "--matrix", "--samples", 1000, "--data", cifar10],
        ["eval", f"{path}:main", f"{path}:aux0", "--suite", "cifar10", "--limit", 1000,
         "--data", cifar10],
    ):  # fmt: skip
        for folder, start in (("two", torchrun), ("one", [sys.executable])):
            subprocess.run(
                [*start, "-m", "recal", *map(str, command), "-o", f"{command[0]}-{folder}"],
                cwd=scratch, env=environment, check=True, capture_output=True,
            )  # fmt: skip
    tables = [sorted((scratch / f"calibrate-{n}").iterdir()) for n in ("one", "two")]
    assert len(tables[0]) == len(tables[1]) == 8
    worst = 0.0
    for one, two in zip(*tables, strict=True):
        first, second = load_variant(one), load_variant(two)
        assert first.statistics == second.statistics, one
        for name, tensor in first.tensors.items():
            gap = np.abs(second.tensors[name] - tensor) / np.maximum(np.abs(tensor), 1e-3)
            worst = max(worst, float(gap.max()))
    assert worst < 1e-6, worst
    for branch in ("main", "aux0"):
        runs = (scratch / f"eval-{n}" for n in ("one", "two"))
        one, two = (read_target_cell(run, f"{path}:{branch}", "clean") for run in runs)
        assert all(np.array_equal(one[name], two[name]) for name in one), branch
    print(f"two processes: statistics within {worst:.1e} of one's, the same cells")


def check_project(path: Path, cifar10: Path, project: Path) -> None:
    """Check the short commands with a recal.toml, and the exported file."""
    project.mkdir()
    (project / "recal.toml").write_text(
        f'[model]\ncheckpoint = "{path}"\narch = "wrn16_1"\n[data]\ndata = "{cifar10}"\n'
        "[eval]\nlimit = 1000\n",
        encoding="utf-8",
    )
    text = json.loads(recal("inspect", path, "--json", cwd=project))
    assert text["layout"] == "timm-splitbn", text
    assert [branch["name"] for branch in text["branches"]] == ["main", "aux0"]
    recal("calibrate", "--mode", "weak", "-o", "weak.safetensors", cwd=project)
    recal("calibrate", "--mode", "weak", "-o", "again.safetensors", "--workers", 2, cwd=project)
    first, again = (project / f"{name}.safetensors" for name in ("weak", "again"))
    assert first.read_bytes() == again.read_bytes()
    out = recal("eval", "--suite", "cifar10c", "--corruptions", SEVEN, "--json", cwd=project)
    document = json.loads(out)
    assert len(document["cells"]) == 2 * (1 + 35)
    assert document["provenance"].startswith("regenerated")

    run = next((project / "runs").glob("cifar10c-*"))
    found = json.loads(recal("compare", run, "--json", cwd=project))
    assert found, found
    chosen = json.loads(recal("select", run, "--maximize", "clean", "--json", cwd=project))
    assert chosen, chosen
    asked = ["--suite", "cifar10c", "--corruptions", SEVEN, "--plan", "--json"]
    plan = json.loads(recal("eval", *asked, cwd=project))
    assert (plan["cells"], plan["kept"]) == (36, 72), plan

    recal("export", "--variant", "weak.safetensors", "-o", "model.onnx", cwd=project)
    recal(
        "eval", "weak.safetensors", "model.onnx", path, f"{path}:aux0", "--suite", "cifar10",
        "--limit", 10_000, "-o", "predictions", cwd=project,
    )  # fmt: skip
    cells = {
        name: read_target_cell(project / "predictions", name, "clean")["prediction"]
        for name in ("weak.safetensors", "model.onnx", str(path), f"{path}:aux0")
    }
    source = open_images(cifar10, "test")
    pixels = np.stack([source[i] for i in range(len(source))])
    check_file(path, project, pixels)
    differs = int((cells["model.onnx"] != cells[f"{path}:aux0"]).sum())
    assert differs > 100, differs
    agree = int((cells["model.onnx"] == cells["weak.safetensors"]).sum())
    print(f"model.onnx: {agree:,} of 10,000 predictions as the variant's, {differs} unlike aux0's")


def check_file(path: Path, project: Path, pixels: np.ndarray) -> None:
    """Check that the file predicts like PyTorch on every image, except for ties under 1e-4."""
    checkpoint = load_checkpoint(path)
    variant = load_variant(project / "weak.safetensors")
    network = build(checkpoint, variant)
    file = OnnxNetwork(project / "model.onnx")
    ties = []
    for start in range(0, len(pixels), 500):
        inputs = normalise_array(pixels[start : start + 500], variant.spec.normalisation)
        with torch.no_grad():
            own = network(torch.from_numpy(inputs)).numpy()
        unlike = np.flatnonzero(file.logits(inputs).argmax(1) != own.argmax(1))
        for i in unlike:
            best, second = np.sort(own[i])[::-1][:2]
            assert best - second < 1e-4, (start + i, best, second)
            ties.append(start + int(i))
    print(f"model.onnx against PyTorch on 10,000 images: ties under 1e-4: {ties or 'none'}")


def check_bundled(cifar10: Path, scratch: Path) -> None:
    """Check `--suite cifar10c` with the bundled network, and the error without data."""
    note = recal(
        "eval", "--suite", "cifar10c", "--data", cifar10, "--limit", 200,
        "--corruptions", SEVEN, cwd=scratch, messages=True,
    )  # fmt: skip
    assert note.startswith("No checkpoint given: using the bundled CIFAR-10 network.")
    error = recal("eval", "--suite", "cifar10c", cwd=scratch, status=3)
    assert "regenerate" in error, error
    print("the bundled CIFAR-10 network runs; missing data are explained")


if __name__ == "__main__":
    main()
