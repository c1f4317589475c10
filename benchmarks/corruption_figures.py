"""Write tests/corruption_figures.json, from the original generators on the images of the tests.

    python benchmarks/corruption_figures.py robustness/ImageNet-C/create_c

benchmarks/corruptions.py describes what is needed and runs the generators. For deterministic
corruptions, the file holds some of the values of their output. For the others, it holds mean and
standard deviation over many draws of one image (root mean square over images) of the RMSE to the
clean image, of the mean shift of each channel, and of the shares of the difference's power in four
frequency bands.
"""
# ruff: noqa: E402  (the path is set first)

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np
from corruptions import SCRIPTS, load_originals, original

from tests.corruption_images import figures_of, photographs, sampled, write_textures

EXACT = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression",
         "gaussian_blur", "saturate")  # fmt: skip
RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow",
          "frost", "fog", "elastic_transform", "speckle_noise", "spatter")  # fmt: skip
IMAGES = {"cifar": 6, "tiny": 4, "imagenet": 2}
DRAWS = {"cifar": 60, "tiny": 30, "imagenet": 16}


def main():
    """Run the generators and write the file."""
    scripts = Path(sys.argv[1]).resolve()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(write_textures(Path(folder)))
        for family, (script, side) in SCRIPTS.items():
            functions = load_originals(scripts / script, rounded=True)
            images = photographs(IMAGES[family], side)
            for name in (*EXACT, *RANDOM):
                for severity in range(1, 6):
                    key = f"{name}/{family}/{severity}"
                    figures[key] = measure(functions, name, family, severity, images)
                print(family, name, flush=True)
        os.chdir(ROOT)
    lines = [f'"{key}": {json.dumps(value)}' for key, value in sorted(figures.items())]
    path = ROOT / "tests" / "corruption_figures.json"
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def measure(functions, name, family, severity, images):
    """Return the figures of one corruption at one severity."""
    if name in EXACT:
        outputs = np.stack([original(functions, name, image, severity) for image in images])
        return {"values": sampled(outputs).tobytes().hex()}
    np.random.seed(severity)
    draws = 6 if (name, family) == ("glass_blur", "imagenet") else DRAWS[family]
    outputs = [
        np.stack([original(functions, name, image, severity) for image in images])
        for _ in range(draws)
    ]
    found = figures_of(np.stack(outputs), images)
    rounded = {key: [float(f"{v:.5g}") for v in values] for key, values in found.items()}
    return {"draws": draws * len(images), **rounded}


if __name__ == "__main__":
    main()
