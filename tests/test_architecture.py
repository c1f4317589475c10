"""docs/architecture.md: packages import in the order that it gives, and what it names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "recal"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ENDS = {"__init__", "__main__"}  # the package's own two ends, below all others


def rows(heading):
    """Return the cells of the table below a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


PACKAGES = [row[0].strip("`/") for row in rows("What may import what")]


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def home(parts):
    """Return the package of a module, or `root`."""
    return parts[0] if len(parts) > 1 else "root"


def imported(path):
    """Yield the package of every module of recal that a module imports, anywhere in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module == "recal":
            yield "root"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("recal."):
            parts = node.module.split(".")[1:]
            yield parts[0] if (PACKAGE / parts[0]).is_dir() else "root"
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("recal") for alias in node.names), path


def names(path):
    """Return the functions, methods, classes and constants that a module defines."""
    nodes = list(ast.walk(tree(path)))
    found = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    return found | {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def test_every_package_has_its_row():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(PACKAGES) == sorted({*folders, "root"})


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_those_above_it(package):
    above = PACKAGES[: PACKAGES.index(package) + 1]
    paths = PACKAGE.glob("*.py") if package == "root" else (PACKAGE / package).rglob("*.py")
    wrong = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in paths
        if path.stem not in ENDS or package != "root"
        for name in imported(path)
        if name not in above
    }
    assert wrong == set()


def test_the_calls_of_the_tour_exist():
    tour = rows("One variant, from checkpoint to verified file")
    assert 8 <= len(tour) <= 12
    for call, module, _ in tour:
        (name,) = re.findall(r"(\w+)(?:\(.*)?`$", call)
        assert name in names(PACKAGE / module.strip("`")), call


def test_the_places_to_add_to_exist():
    found = rows("Where to add what")
    assert len(found) > 10
    for what, text in found:
        paths = re.findall(r"`((?:recal|policies|evals)/[^`<]*)", text)
        assert paths, what
        assert all((ROOT / path).exists() for path in paths), paths
        modules = [ROOT / path for path in paths if path.endswith(".py")]
        for constant in re.findall(r"`([A-Z]\w{2,})`", text):
            assert any(constant in names(module) for module in modules), (what, constant)
