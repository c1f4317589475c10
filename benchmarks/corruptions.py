"""Compare recal's corruptions with the original generators and with a library of them.

    git clone https://github.com/hendrycks/robustness
    pip install scikit-image wand imagecorruptions-imaug       # and ImageMagick 6
    python benchmarks/corruptions.py --originals robustness/ImageNet-C/create_c

Prints milliseconds per image on one thread, the best of several runs. Ratios are those of one run.
The functions of the generators are extracted from their scripts, because importing a script starts
work on files of its authors. Functions that NumPy, scikit-image and Pillow have removed since are
provided here. `--fidelity` compares the spread of both over many draws instead.
"""
# ruff: noqa: B023  (the closures are called before their loop goes on)

from __future__ import annotations

import argparse
import ast
import ctypes
import io
import json
import math
import os
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import cv2
import numpy as np
from PIL import Image

from recal.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt
from recal.corruptions.frost import find_textures

SCRIPTS = {
    "cifar": ("make_cifar_c.py", 32),
    "tiny": ("make_tinyimagenet_c.py", 64),
    "imagenet": ("make_imagenet_c.py", 224),
}
ALL = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
IMAGES = {"cifar": 10_000, "tiny": 10_000, "imagenet": 50_000}
# what limits the speed of recal, from profiles of the kernels
BOUNDS = {
    "gaussian_noise": "random numbers",
    "shot_noise": "random numbers",
    "impulse_noise": "random numbers",
    "speckle_noise": "random numbers",
    "defocus_blur": "arithmetic: taps of the disc",
    "glass_blur": "arithmetic, then the chain of copies",
    "motion_blur": "arithmetic: taps of the line",
    "zoom_blur": "gathering neighbours",
    "snow": "random numbers, arithmetic",
    "frost": "memory",
    "fog": "random numbers",
    "brightness": "memory (look-ups)",
    "contrast": "memory (look-ups)",
    "elastic_transform": "gathering neighbours; arithmetic at wide sigmas",
    "pixelate": "memory, integer arithmetic",
    "jpeg_compression": "JPEG codec",
    "gaussian_blur": "arithmetic",
    "spatter": "random numbers; OpenCV's passes",
    "saturate": "arithmetic: HSV",
}


def load_originals(script, *, rounded=False):
    """Return the functions that a generator's script defines, by name.

    Args:
        script: The script's path.
        rounded: Round ImageMagick's 16-bit results to 8 bits, where its writers truncate.
    """
    import skimage
    import skimage.color
    import skimage.filters
    import skimage.util
    from scipy.ndimage import map_coordinates, zoom

    def gaussian(image, sigma, multichannel=False, **options):
        axis = -1 if multichannel else None
        return skimage.filters.gaussian(image, sigma=sigma, channel_axis=axis, **options)

    class OldNumPy:
        float_ = np.float64
        fromstring = staticmethod(np.frombuffer)

        def __getattr__(self, name):
            return getattr(np, name)

    class OldPillow:
        BOX = Image.Resampling.BOX
        open = staticmethod(Image.open)

        @staticmethod
        def fromarray(array, mode=None):
            del mode  # Pillow now takes the mode from the array
            return Image.fromarray(array)

    names = {
        "np": OldNumPy(), "cv2": cv2, "sk": skimage, "gaussian": gaussian, "BytesIO": io.BytesIO,
        "PILImage": OldPillow, "scizoom": zoom, "map_coordinates": map_coordinates,
        "ctypes": ctypes,
    }  # fmt: skip
    try:
        from wand.api import library
        from wand.image import Image as WandImage

        motion = library.MagickMotionBlurImage
        motion.argtypes = (ctypes.c_void_p, ctypes.c_double, ctypes.c_double, ctypes.c_double)
        names |= {"WandImage": WandImage, "wandlibrary": library}
    except ImportError:
        print("wand or ImageMagick is missing: motion_blur and snow have no original here")
        names["WandImage"] = object
    tree = ast.parse(script.read_text(encoding="utf-8"))
    wanted = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    wanted = [
        n
        for n in wanted
        if n.name in (*ALL, "disk", "plasma_fractal", "clipped_zoom", "MotionImage")
    ]
    exec(compile(ast.Module(wanted, []), str(script), "exec"), names)
    if rounded and names["WandImage"] is not object:
        names["MotionImage"] = _rounding(names["MotionImage"])
    return names


def _rounding(motion_image):
    class Rounding(motion_image):
        def make_blob(self):
            self.depth = 16
            wide = np.frombuffer(super().make_blob("png"), np.uint8)
            wide = cv2.imdecode(wide, cv2.IMREAD_UNCHANGED)
            narrow = wide if wide.dtype == np.uint8 else np.rint(wide / 257).astype(np.uint8)
            return cv2.imencode(".png", narrow)[1].tobytes()

    return Rounding


def original(functions, name, image, severity):
    """Return the image that a generator would save, uint8 (H, W, 3)."""
    return np.uint8(functions[name](Image.fromarray(image), severity))


def load_library():
    """Return the function of imagecorruptions (ImageNet's parameters only), or None."""
    try:
        from imagecorruptions import corrupt as peer
    except ImportError:
        return None
    return lambda name, image, severity: peer(image, corruption_name=name, severity=severity)


def best_time(call, runs, budget):
    """Return the smallest time of at most `runs` calls, which together take about `budget` s."""
    best, spent = math.inf, 0.0
    for _ in range(runs):
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        best, spent = min(best, took), spent + took
        if spent > budget:
            break
    return best


def photographs(count, side):
    """Return synthetic images with smooth and sharp regions, like photographs."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = rng.random((7, 7, 3), dtype=np.float32)
        fine = rng.random((side // 4, side // 4, 3), dtype=np.float32)
        image = 0.8 * cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        image += 0.2 * cv2.resize(fine, (side, side), interpolation=cv2.INTER_NEAREST)
        images.append(np.clip(image * 255, 0, 255).astype(np.uint8))
    return np.stack(images)


def measure(family, functions, library, names, budget):
    """Return one row per corruption and severity with milliseconds per image of each method."""
    side = SCRIPTS[family][1]
    batch = photographs(128 if side == 32 else 8, side)
    rows = []
    for name in names:
        for severity in range(1, 6):
            corrupt(batch[:1], name, severity, family=family)
            mine = best_time(lambda: corrupt(batch, name, severity, family=family), 5, budget)
            row = {"name": name, "severity": severity, "recal": 1000 * mine / len(batch)}
            some = batch[: 16 if side == 32 else 2]
            if functions:
                theirs = best_time(
                    lambda: [original(functions, name, image, severity) for image in some],
                    3,
                    budget,
                )
                row["original"] = 1000 * theirs / len(some)
            if library and side == 224:
                theirs = best_time(
                    lambda: [library(name, image, severity) for image in some], 3, budget
                )
                row["library"] = 1000 * theirs / len(some)
            rows.append(row)
    return rows


def mean(values):
    """Return the mean, or NaN for an empty list."""
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def geometric_mean(values):
    """Return the geometric mean, or NaN for an empty list."""
    values = list(values)
    return math.exp(mean(math.log(v) for v in values)) if values else math.nan


def report(family, rows):
    """Print the table of a family, its geometric means and the projected hours."""
    print(f"\n{family}: milliseconds an image, mean over severities")
    print(
        f"{'':18s} {'recal':>8s} {'original':>9s} {'ratio':>7s} "
        f"{'library':>9s} {'ratio':>7s}  bound"
    )
    for name in dict.fromkeys(row["name"] for row in rows):
        its = [row for row in rows if row["name"] == name]
        line = f"{name:18s} {mean(r['recal'] for r in its):8.3f}"
        for peer in ("original", "library"):
            ratios = [r[peer] / r["recal"] for r in its if peer in r]
            times = mean(r[peer] for r in its if peer in r)
            line += f" {times:9.3f} {geometric_mean(ratios):7.1f}" if ratios else " " * 17
            line += "" if not ratios or min(ratios) >= 1 else "!"
        print(f"{line}  {BOUNDS[name]}")
    standard = [row for row in rows if row["name"] in CORRUPTIONS]
    for peer in ("original", "library"):
        ratios = [r[peer] / r["recal"] for r in standard if peer in r]
        if ratios:
            print(
                f"geometric mean over the standard ones, against the {peer}: "
                f"{geometric_mean(ratios):.1f}, least {min(ratios):.2f}"
            )
    for whose in ("recal", "original"):
        times = [r[whose] for r in standard if whose in r]
        if len(times) == 75:
            hours = sum(times) / 1000 * IMAGES[family] / 3600
            print(f"projected for the 75 cells, {whose}: {hours:.3f} core-hours")


def fidelity(functions, family, names, draws):
    """Print for each cell the mean RMSE to clean of both, and their distance in standard errors."""
    images = photographs({"cifar": 16, "tiny": 8, "imagenet": 2}[family], SCRIPTS[family][1])
    for name in names:
        for severity in range(1, 6):
            many = np.concatenate([images] * draws)
            mine = corrupt(many, name, severity, family=family)
            theirs = np.stack([original(functions, name, image, severity) for image in many])
            a, b = (
                np.sqrt(((x - many.astype(float)) ** 2).mean((1, 2, 3))).reshape(draws, -1)
                for x in (mine, theirs)
            )
            error = np.sqrt((a.var(0).mean() + b.var(0).mean()) / (draws * len(images)))
            z = (a.mean() - b.mean()) / max(error, 1e-9)
            print(
                f"{family:9s}{name:18s}{severity} RMSE {a.mean():8.3f} {b.mean():8.3f}"
                f"  deviation {a.std(0).mean():7.3f} {b.std(0).mean():7.3f}  z {z:6.2f}",
                flush=True,
            )


def main():
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--originals", type=Path, help="the generators' folder, ImageNet-C/create_c"
    )
    parser.add_argument("--families", nargs="+", default=["cifar", "imagenet"], choices=SCRIPTS)
    parser.add_argument("--only", nargs="+", default=ALL, choices=ALL, metavar="CORRUPTION")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds for each measurement")
    parser.add_argument(
        "--fidelity", type=int, metavar="DRAWS", help="compare spreads over DRAWS draws instead"
    )
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    originals = options.originals and options.originals.resolve()
    textures = find_textures()
    os.chdir(textures[0].parent)  # the generators search here
    figures = {}
    for family in options.families:
        script = originals / SCRIPTS[family][0] if originals else None
        functions = load_originals(script, rounded=bool(options.fidelity)) if script else {}
        if options.fidelity:
            fidelity(functions, family, options.only, options.fidelity)
            continue
        figures[family] = measure(family, functions, load_library(), options.only, options.budget)
        report(family, figures[family])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
