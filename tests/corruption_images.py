"""Images and textures that the tests of the corruptions make for themselves."""

import cv2
import numpy as np

from recal.corruptions.frost import TEXTURES


def photographs(count=4, side=32, seed=0):
    """Smooth random colours with edges, as photographs have, uint8 (count, side, side, 3)."""
    rng = np.random.default_rng(seed)
    grid = np.mgrid[:side, :side] / side
    images = []
    for _ in range(count):
        waves = rng.normal(size=(6, 2, 3)) * np.array([1, 2, 3, 5, 8, 13])[:, None, None]
        phases = np.einsum("wdc,dyx->wyxc", waves, grid) * 3 + rng.uniform(0, 6, (6, 1, 1, 3))
        image = (np.sin(phases) / np.array([1, 2, 3, 4, 6, 9])[:, None, None, None]).sum(0)
        image += 1.2 * (np.hypot(*(grid - rng.uniform(0.2, 0.8, (2, 1, 1)))) < 0.25)[..., None]
        images.append(image)
    low, high = np.percentile(images, [1, 99])
    return (np.clip((np.array(images) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def write_textures(data_folder):
    """Write stand-ins for the textures of frost into `frost/` of a data folder."""
    folder = data_folder / "frost"
    folder.mkdir(parents=True)
    for number, name in enumerate(TEXTURES):
        coarse = np.random.default_rng(number).random((12, 16, 3)).astype(np.float32)
        texture = cv2.resize(coarse, (400, 300), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / name), np.clip(texture * 255, 0, 255).astype(np.uint8))
    return folder
