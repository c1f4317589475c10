"""`import recal` and `recal --help` stay light, and every command is documented."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from recal.cli.main import COMMANDS
from recal.cli.main import recal as group

HEAVY = ("torch", "timm", "torchvision", "onnx", "onnxruntime", "numpy", "matplotlib", "scipy")


def imported_by(code):
    program = f"{code}\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import recal",
        "import sys; sys.argv = ['recal', '--help']\n"
        "from recal.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass",
    ],
)
def test_start_up_imports_nothing_heavy(code):
    assert not imported_by(code) & set(HEAVY)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_stands_in_the_readme(name):
    result = CliRunner().invoke(group, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"recal {name}" in readme


def test_help_lists_every_command_with_its_line():
    text = CliRunner().invoke(group, ["--help"]).output
    for name, (_, line) in COMMANDS.items():
        assert name in text
        assert line in " ".join(text.split())
