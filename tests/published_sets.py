"""Small sets in the layouts of the published ones: folders, arrays, and tar files of either."""

import io
import tarfile

import numpy as np
from PIL import Image

SUITE = """
title = "Small corrupted folders"
family = "cifar"
classes = 10

[clean]
folders = ["small"]

[corrupted]
layout = "folders"
folders = ["Small-C"]
rows = 20
size = 32
severities = [1, 2]
corruptions = ["fog", "snow"]
"""


def write_suite(folder, text=SUITE, name="small"):
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def pictures(count, seed=0):
    """Random smooth pictures, uint8 (count, 32, 32, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return np.stack([
        np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
        for image in small
    ])  # fmt: skip


def write_folders(folder, corruptions=("fog", "snow"), severities=(1, 2), classes=None, each=2):
    """Write `<corruption>/<severity>/<class>/<file>.JPEG`, other pictures in every cell."""
    classes = classes or [f"class{i}" for i in range(10)]
    for number, corruption in enumerate(corruptions):
        for severity in severities:
            shown = pictures(len(classes) * each, seed=10 * number + severity)
            for i, image in enumerate(shown):
                path = folder / corruption / str(severity) / classes[i // each] / f"{i:03d}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path, quality=95)
    return folder


def pack(folder, archive, top=""):
    """Put a folder into a tar file, its files in an order of their own."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    np.random.default_rng(0).shuffle(files)
    with tarfile.open(archive, "w") as tar:
        for path in files:
            tar.add(path, f"{top}{path.relative_to(folder).as_posix()}")
    return archive


def add_member(archive, name, content=b"", **fields):
    """Append a member of any kind to a tar file."""
    with tarfile.open(archive, "a") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        for field, value in fields.items():
            setattr(member, field, value)
        tar.addfile(member, io.BytesIO(content))
