"""Check the page in headless Chromium against recal in Python: python examples/web/check.py.

Exports the bundled CIFAR-10 network in several forms, lets the page classify pictures with each
variant, and compares the outputs with those of `recal predict`'s code. Needs node, npm and
chromium; without them it says what is missing and does nothing. The pictures are cut from a
photograph in the documentation. Screenshots are kept in the folder given as an argument, if any.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from recal.cli.main import recal
from recal.data.normalise import normalise_array
from recal.onnx_file.predict import prepared_files
from recal.onnx_file.session import OnnxNetwork

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHECKPOINT = ROOT / "recal" / "sample" / "cifar10_wrn16_1_splitbn_noise.pth"
ALLOWED = 1e-4
RESIZING = ("--crop-mode", "center")
FILES = {
    "switchable.onnx": ("--switchable", "main,aux0", *RESIZING, "--interpolation", "bicubic"),
    "pixels.onnx": ("--uint8", "--softmax", *RESIZING, "--interpolation", "bilinear"),
    "half.onnx": ("--fp16", "--crop-mode", "squash", "--crop-share", "0.875"),
}


class QuietHandler(SimpleHTTPRequestHandler):
    """A handler that prints nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def main() -> int:
    """Run the check; return the exit status."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    tools = {"node": shutil.which("node"), "npm": shutil.which("npm"), "chromium": chromium}
    missing = [name for name, path in tools.items() if path is None]
    if missing:
        print(f"the web page is not checked: no {', '.join(missing)}")
        return 0
    subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"],
        cwd=HERE, check=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else scratch)
        folder.mkdir(parents=True, exist_ok=True)
        cases = make_cases(folder)
        found = use_page(str(chromium), folder)
        assert not found["faults"], found["faults"]
        worst = max(
            compare(folder, case, answer)
            for case, answer in zip(cases, found["found"], strict=True)
        )
    print(f"the web page: {len(cases)} files, outputs within {worst:.1e} of Python's")
    return 0


def make_cases(folder: Path) -> list[dict[str, object]]:
    """Write files, pictures and the list of them; return the list."""
    photograph = Image.open(ROOT / "docs" / "corruptions.jpg").convert("RGB")
    photograph.crop((10, 30, 220, 190)).save(folder / "wide.png")
    photograph.crop((230, 30, 440, 190)).save(folder / "photo.jpg", quality=92)
    photograph.resize((24, 30)).save(folder / "small.png")
    pictures = ["wide.png", "photo.jpg", "small.png"]
    cases: list[dict[str, object]] = []
    for name, options in FILES.items():
        arguments = ["export", str(CHECKPOINT), "-o", str(folder / name), *options]
        CliRunner().invoke(recal, arguments, catch_exceptions=False)
        cases.append({"model": name, "pictures": pictures})
    (folder / "broken.onnx").write_bytes((folder / "half.onnx").read_bytes()[:5000])
    cases.append({"model": "broken.onnx", "message": "broken.onnx: expected a whole ONNX file"})
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    return cases


def use_page(chromium: str, folder: Path) -> dict[str, list]:
    """Serve the page on this machine, use it in Chromium and return what it computed."""
    handler = functools.partial(QuietHandler, directory=str(HERE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        command = ["node", "test.mjs", address, chromium, str(folder)]
        done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, check=True, timeout=240)
        server.shutdown()
    return json.loads(done.stdout)


def compare(folder: Path, case: dict, answer: dict) -> float:
    """Return the largest difference between the page's outputs and Python's."""
    if "message" in case:
        assert case["message"] in answer["message"], answer
        return 0.0
    assert "confirmed" in answer["status"], answer["status"]
    worst = 0.0
    for number in range(len(answer["outputs"][0])):
        network = OnnxNetwork(folder / case["model"], variant=number)
        spec = network.record.model
        for picture, rows in zip(case["pictures"], answer["outputs"], strict=True):
            pixels = prepared_files([folder / picture], spec).read(0)[None]
            plain = network.takes_pixels
            inputs = pixels if plain else normalise_array(pixels, spec.normalisation)
            difference = np.abs(network.outputs(inputs)[0] - rows[number]).max()
            assert difference < ALLOWED, (case["model"], picture, number, difference)
            worst = max(worst, float(difference))
    return worst


if __name__ == "__main__":
    sys.exit(main())
