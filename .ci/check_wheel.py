"""Check that the installed wheel is imported and has all policies, suites and sample files."""

import sys
from pathlib import Path

import recal
from recal.datasets.catalogue import catalogue
from recal.files import PACKAGE, sample_folder, shipped

checkout = Path(sys.argv[1])
assert checkout not in PACKAGE.parents, f"{recal.__file__} is the checkout, not the wheel"
for kind in ("policies", "evals"):
    wanted = {path.relative_to(checkout / kind) for path in (checkout / kind).rglob("*.toml")}
    found = {path.relative_to(shipped(kind)) for path in shipped(kind).rglob("*.toml")}
    assert wanted == found, f"{kind}: missing from the wheel: {sorted(wanted - found)}"
    assert PACKAGE in shipped(kind).parents
sample = checkout / "recal" / "sample"
for path in sample.rglob("*"):
    if path.is_file() and "__pycache__" not in path.parts:
        assert (sample_folder() / path.relative_to(sample)).is_file(), path
assert (PACKAGE / "py.typed").is_file()
assert catalogue()
print("wheel: all policies, suites and sample files are in it")
