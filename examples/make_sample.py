"""Make the bundled sample of Fashion-MNIST, seeded and balanced over the classes.

    python examples/make_sample.py /usr/share/datasets/fashion-mnist recal/sample/fashion-mnist

Writes train.npz and test.npz, each with `images` uint8 (2000, 28, 28) and `labels` uint8 (2000,).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from recal.data.folders import open_images
from recal.data.sampling import stratified_sample

IMAGES = 2000
SEED = 0


def main() -> None:
    """Sample and write both splits."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        images = open_images(source, split)
        indices = stratified_sample(images.labels, IMAGES, SEED)
        np.savez_compressed(
            target / f"{split}.npz",
            images=np.stack([images[int(i)][:, :, 0] for i in indices]),
            labels=images.labels[indices].astype(np.uint8),
        )


if __name__ == "__main__":
    main()
