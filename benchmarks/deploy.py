"""Exported files against the exporters of the field, and their forms against each other.

    python benchmarks/deploy.py [--runs 20] [NETWORK ...]

For each network (random weights, split BN where timm has it) prints size and latency at batch 1 of
recal's folded, patchable, uint8 and two-variant files and of timm's own export of the same network,
as ratios to the folded file, measured in turn in one run.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from timm.layers import convert_splitbn_model
from timm.utils.onnx import onnx_export

from recal import build, export_onnx, load_checkpoint
from recal.architectures import create_network
from recal.bn.variant import branch_variant
from recal.deploy.bench import bench
from recal.deploy.export import ExportOptions, export_switchable

NETWORKS = (
    ("wrn16_1", 32),
    ("timm:resnet18", 224),
    ("timm:mobilenetv3_small_100", 224),
    ("timm:efficientnet_lite0", 224),
    ("torchvision:resnet18", 224),
)
FORMS = {
    "folded": ExportOptions(),
    "patchable": ExportOptions(patchable=True),
    "uint8": ExportOptions(uint8=True),
}


def main() -> None:
    """Export and time every network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=[name for name, _ in NETWORKS])
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args()
    print(f"{'network':28} {'file':10} {'MB':>7} {'size':>6} {'ms':>7} {'time':>6}  difference")
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            compare(name, dict(NETWORKS).get(name, 224), Path(folder), arguments.runs)


def compare(name: str, size: int, folder: Path, runs: int) -> None:
    """Print one network's table."""
    checkpoint = load_checkpoint(make_checkpoint(name, folder / "c.pth"))
    asked = {"arch": name, "size": size, "classes": 10}
    pixels = np.random.default_rng(0).integers(0, 256, (68, size, size, 3), dtype=np.uint8)
    differences = {}
    for form, options in FORMS.items():
        proof = export_onnx(
            checkpoint, "main", folder / f"{form}.onnx", pixels, options=options, **asked
        )
        differences[form] = proof.difference / max(1.0, proof.tolerance * 1e4)
    files = [folder / f"{form}.onnx" for form in FORMS]
    spec = checkpoint.spec(**asked)
    other = list(checkpoint.branches)[-1]
    if other != "main":
        variants = {b: branch_variant(checkpoint, b, spec) for b in ("main", other)}
        proofs = export_switchable(checkpoint, variants, folder / "switch.onnx", pixels)
        differences["switch"] = max(p.difference for p in proofs.values())
        files.append(folder / "switch.onnx")
    network = build(checkpoint, "main", **asked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx_export(
            network, str(folder / "timm.onnx"), input_size=(3, size, size), batch_size=1,
            dynamic_size=False, input_names=["input"], output_names=["logits"],
        )  # fmt: skip
    files.append(folder / "timm.onnx")
    base = total_size(files[0])
    for timing in bench(files, batches=[1], threads=[1], runs=runs):
        form = timing.model.stem
        print(
            f"{name:28} {form:10} {total_size(timing.model) / 1e6:7.2f} "
            f"{total_size(timing.model) / base:6.3f} {timing.p50:7.2f} {timing.ratio:6.3f}  "
            f"{differences.get(form, float('nan')):.1e}",
            flush=True,
        )


def make_checkpoint(name: str, path: Path) -> Path:
    """Save a network with random weights and BatchNorm, with split BN, but not in torchvision's."""
    torch.manual_seed(0)
    network = create_network(name, 10)
    if not name.startswith("torchvision:"):
        network = convert_splitbn_model(network, 2)
    running = [m for m in network.modules() if getattr(m, "running_mean", None) is not None]
    with torch.no_grad():
        for layer in running:
            # nothing may be zero or equal, which exporters would fold away
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(0, 0.1)
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    torch.save({"state_dict": network.state_dict()}, path)
    return path


def total_size(path: Path) -> int:
    """Return the bytes of a file and of what it keeps in files beside it."""
    return sum(p.stat().st_size for p in (path, path.with_name(f"{path.name}.data")) if p.is_file())


if __name__ == "__main__":
    main()
