"""Which engine runs which form of ONNX file, found by running them, as a table for docs/engines.md.

Run `python docs/engine_table.py` for a table of the engines at hand. It exports the bundled network
in every form and checks each file in each engine, as `recal verify --provider` does. ONNX Runtime
Web is tried if `npm ci` was run in examples/web. Exits with 1 if an engine fails.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from click.testing import CliRunner

from recal.cli.main import recal
from recal.errors import RecalError
from recal.onnx_file.engines import CPU, OPENVINO, engines_at_hand, verify_alone

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "recal" / "sample"
CHECKPOINT = SAMPLE / "fashion_mnist_wrn10_1_splitbn.pth"
WEB = ROOT / "examples" / "web"
INT8 = ("--int8", "--data", str(SAMPLE / "fashion-mnist"), "--int8-samples", "64")
# options of `recal export`, one file each
FORMS = (
    (),
    ("--uint8", "--softmax"),
    ("--any-size",),
    ("--uint8", "--any-size"),
    ("--fixed-batch", "1"),
    ("--opset", "13"),
    ("--opset", "20"),
    ("--patchable",),
    ("--switchable", "main,aux0"),
    ("--fp16",),
    INT8,
    (*INT8, "--int8-symmetric"),
)
PYTHON = {CPU: "ONNX Runtime", OPENVINO: "OpenVINO"}


def main() -> int:
    """Print the table; return the exit status."""
    names = {name: title for name, title in PYTHON.items() if name in engines_at_hand()}
    with tempfile.TemporaryDirectory() as folder:
        files = [_export(options, Path(folder) / f"{n}.onnx") for n, options in enumerate(FORMS)]
        columns = {title: [_checked(file, name) for file in files] for name, title in names.items()}
        if shutil.which("node") and (WEB / "node_modules").exists():
            columns["ONNX Runtime Web"] = _on_the_web(files)
    rows = [["options", *columns], ["---"] * (len(columns) + 1)]
    for number, options in enumerate(FORMS):
        shown = " ".join(o for o in options if o not in INT8[1:])
        found = (column[number] for column in columns.values())
        rows.append([f"`{shown}`" if shown else "(none)", *found])
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return int(any(not text[0].isdigit() for column in columns.values() for text in column))


def _export(options: tuple[str, ...], path: Path) -> Path:
    arguments = ["export", str(CHECKPOINT), "-o", str(path), *options]
    CliRunner().invoke(recal, arguments, catch_exceptions=False)
    return path


def _checked(path: Path, provider: str) -> str:
    """Return the difference from the recorded outputs, or the reason why there is none."""
    try:
        return _shown(verify_alone(path, provider).probe_difference)
    except RecalError as error:
        return f"fails: {str(error).replace('|', '/')}"


def _shown(difference: float) -> str:
    return f"{max(difference, 1e-6):.0e}"  # six digits are recorded


def _on_the_web(files: list[Path]) -> list[str]:
    command = ["node", "verify.mjs", *map(str, files)]
    done = subprocess.run(command, cwd=WEB, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [
        _shown(check["difference"]) if check["same"] else f"fails: {check['error']}"
        for check in found
    ]


if __name__ == "__main__":
    sys.exit(main())
