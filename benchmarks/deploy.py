"""Compare exported files with those of timm's exporter, and their forms with each other.

    python benchmarks/deploy.py [--runs 30] [NETWORK | CHECKPOINT ...]

For each checkpoint or network (random weights, with split BN if timm's layers allow it), prints
size and latency at batch size 1 on one thread of recal's folded, patchable, uint8, two-variant and
int8 files and of timm's own export. Latencies are measured in pairs, in turn in one run, relative
to the folded file. Then prints which of the limits hold.
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
from recal.export.forms import Int8, Patchable, Switchable
from recal.export.int8_images import HeldOutImages, RangeImages
from recal.files import sample_checkpoint
from recal.networks.names import create_network
from recal.onnx_file.bench import bench
from recal.onnx_file.record import RangeImagesRecord
from recal.variant.variant import branch_variant

SIZES = {
    "wrn16_1": 32,
    "timm:resnet18": 224,
    "timm:mobilenetv3_small_100": 224,
    "timm:efficientnet_lite0": 224,
    "torchvision:resnet18": 224,
}
FORMS = {
    "folded": {},
    "patchable": {"form": Patchable()},
    "uint8": {"uint8": True},
}
# limits (size, time): the folded file relative to timm's, the others relative to the folded file
LIMITS = {"timm": (1.02, 1.02), "patchable": (1.02, 1.03), "switch": (1.05, 1.10)}
IMAGES = 68


def main() -> None:
    """Export and time every network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    bundled = [str(sample_checkpoint()), str(sample_checkpoint("cifar"))]
    parser.add_argument("networks", nargs="*", default=[*bundled, *SIZES])
    parser.add_argument("--runs", type=int, default=30)
    arguments = parser.parse_args()
    print(f"{'network':38} {'file':10} {'MB':>7} {'size':>6} {'ms':>7} {'time':>6}  difference")
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            compare(name, Path(folder), arguments.runs)


def compare(name: str, folder: Path, runs: int) -> None:
    """Print one network's table."""
    given = Path(name) if Path(name).is_file() else None
    checkpoint = load_checkpoint(given or make_checkpoint(name, folder / "c.pth"))
    asked = {} if given else {"arch": name, "size": SIZES.get(name, 224), "classes": 10}
    checkpoint = checkpoint.overridden(**asked)
    size = checkpoint.spec.size
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8)
    main_variant = branch_variant(checkpoint, "main")
    differences = {}
    for form, options in FORMS.items():
        path = folder / f"{form}.onnx"
        evidence = export_onnx(checkpoint, main_variant, path, pixels, **options)
        differences[form] = evidence.proof.difference
    other = list(checkpoint.branches)[-1]
    if other != "main":
        variants = {"main": main_variant, other: branch_variant(checkpoint, other)}
        path = folder / "switch.onnx"
        evidence = export_onnx(checkpoint, variants, path, pixels, form=Switchable())
        differences["switch"] = max(p.difference for p in evidence.proofs.values())
    record = RangeImagesRecord(
        policy="noise", policy_sha256="", data_sha256="", images=32, seed=0, class_balanced=False
    )
    images = RangeImages(record=record, pixels=pixels[:32], indices=np.arange(32), where=folder)
    held_out = HeldOutImages(pixels=pixels[32:], labels=None, what="noise")
    int8 = Int8(images=images, held_out=held_out, max_drop=1.0)
    export_onnx(checkpoint, main_variant, folder / "int8.onnx", held_out.pixels, form=int8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx_export(
            build(checkpoint, main_variant), str(folder / "timm.onnx"), input_size=(3, size, size),
            batch_size=1, dynamic_size=False, input_names=["input"], output_names=["logits"],
        )  # fmt: skip
    names = [*FORMS, "switch", "int8", "timm"]
    files = [path for path in (folder / f"{n}.onnx" for n in names) if path.is_file()]
    base, found = total_size(files[0]), {}
    for path in files:
        form, bytes_ = path.stem, total_size(path)
        milliseconds, ratio = time_ratio(files[0], path, runs)
        found[form] = (bytes_ / base, ratio)
        print(
            f"{given.name if given else name:38} {form:10} {bytes_ / 1e6:7.2f} "
            f"{bytes_ / base:6.3f} {milliseconds:7.2f} {ratio:6.3f}  "
            f"{differences.get(form, float('nan')):.1e}",
            flush=True,
        )
    found["timm"] = tuple(1 / ratio for ratio in found["timm"])
    for form, limits in LIMITS.items():
        if form in found:
            what = "folded to timm's" if form == "timm" else f"{form} to folded"
            for kind, ratio, limit in zip(("size", "time"), found[form], limits, strict=True):
                verdict = "holds" if ratio <= limit else "MISSED"
                print(f"    {what}: {kind} {ratio:.3f}, at most {limit}: {verdict}", flush=True)


def time_ratio(first: Path, second: Path, runs: int) -> tuple[float, float]:
    """Return milliseconds of the second file, and its time as a ratio to the first file's.

    Each file is loaded first once, because the order of memory allocations changes times:
    six sessions of one small network differed by 4 % in the order of their loading.
    """
    _, one = bench([first, second], batches=[1], threads=[1], runs=runs)
    _, other = bench([second, first], batches=[1], threads=[1], runs=runs)
    return one.p50, float(np.sqrt(one.ratio / other.ratio))


def make_checkpoint(name: str, path: Path) -> Path:
    """Save a network with random weights, with split BN unless it is from torchvision."""
    torch.manual_seed(0)
    network = create_network(name, 10)
    if not name.startswith("torchvision:"):
        network = convert_splitbn_model(network, 2)
    running = [m for m in network.modules() if getattr(m, "running_mean", None) is not None]
    with torch.no_grad():
        for layer in running:
            # no zeros and no equal values, which exporters would fold away
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(0, 0.1)
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    torch.save({"state_dict": network.state_dict()}, path)
    return path


def total_size(path: Path) -> int:
    """Return the bytes of a file and of its external data."""
    return sum(p.stat().st_size for p in (path, path.with_name(f"{path.name}.data")) if p.is_file())


if __name__ == "__main__":
    main()
