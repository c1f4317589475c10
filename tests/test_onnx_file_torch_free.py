"""All that a device does with ONNX files works without torch, with the documented packages."""

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import numpy as np
import pytest

from recal import export_onnx, load_checkpoint
from recal.export.forms import Patchable

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
TEXT = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text(encoding="utf-8")
# imports every module of recal.onnx_file, runs commands, prints the packages that recal imported
SCRIPT = """
import builtins, importlib, json, pkgutil, sys
for name in ("torch", "torchvision", "timm"):
    sys.modules[name] = None
real, seen = builtins.__import__, set()
def recording(name, globals=None, locals=None, fromlist=(), level=0):
    module = real(name, globals, locals, fromlist, level)
    if level == 0 and str((globals or {}).get("__name__")).startswith("recal"):
        seen.add(name.partition(".")[0])
    return module
builtins.__import__ = recording
import recal.onnx_file
for module in pkgutil.iter_modules(recal.onnx_file.__path__):
    importlib.import_module(f"recal.onnx_file.{module.name}")
from recal.cli.main import recal as group
for arguments in json.loads(sys.argv[1]):
    group(arguments, standalone_mode=False)
print(json.dumps(sorted(seen)))
"""


@pytest.fixture(scope="module")
def imported(split_checkpoint, class_folders, tmp_path_factory):
    """The top-level packages that recal imported without torch."""
    folder = tmp_path_factory.mktemp("lean")
    checkpoint = load_checkpoint(split_checkpoint)
    export_onnx(checkpoint, "main", folder / "base.onnx", PIXELS, form=Patchable())
    images = str(class_folders)
    commands = [
        ["calibrate", "base.onnx", "--mode", "clean", "--data", images, "-o", "v.safetensors"],
        ["patch", "base.onnx", "v.safetensors", "-o", "here.onnx"],
        ["verify", "here.onnx"],
        ["predict", "here.onnx", f"{images}/test/class0"],
        ["bench", "base.onnx", "here.onnx", "--runs", "2", "--batch-size", "1"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_device_needs_no_torch(imported):
    assert "onnxruntime" in imported
    assert not imported & {"torch", "torchvision", "timm"}


def test_packages_for_a_device_are_those_in_the_docs(imported):
    homes = packages_distributions()
    used = {
        distribution.lower()
        for name in imported - {"recal", *sys.stdlib_module_names}
        for distribution in homes[name]
    }
    (listed,) = re.findall(r"^pip install (?!--)(.*)$", TEXT.split("without torch")[-1], re.M)
    documented = set(listed.split())
    brought = {
        re.match(r"[\w.-]+", requirement)[0].lower()
        for distribution in documented
        for requirement in requires(distribution) or ()
        if "extra ==" not in requirement
    }
    assert documented <= used, "every package that is listed is imported"
    assert used - brought <= documented, "every package that is imported is listed or brought along"
