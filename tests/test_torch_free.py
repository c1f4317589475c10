"""Packages that a machine without torch needs import none, as a subprocess without it shows."""

import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

NEEDS_TORCH = {"recal.data.batches"}


@pytest.mark.parametrize("package", ["data", "policies", "datasets", "corruptions", "suites"])
def test_package_is_imported_without_torch(package):
    root = import_module(f"recal.{package}")
    names = [m.name for m in pkgutil.walk_packages(root.__path__, f"{root.__name__}.")]
    code = (
        "import sys, importlib\n"
        "for name in ('torch', 'torchvision', 'timm'): sys.modules[name] = None\n"
        f"for name in {sorted(set(names) - NEEDS_TORCH)}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
