"""Images and textures that the tests of the corruptions make for themselves."""

import cv2
import numpy as np

from recal.corruptions.frost import TEXTURES


def photographs(count=4, side=32, seed=0):
    """Smooth random colours with edges, as photographs have, uint8 (count, side, side, 3)."""
    rng = np.random.RandomState(seed)  # whose numbers are promised never to change
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
        coarse = np.random.RandomState(number).random_sample((12, 16, 3)).astype(np.float32)
        texture = cv2.resize(coarse, (400, 300), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / name), np.clip(texture * 255, 0, 255).astype(np.uint8))
    return folder


def sampled(images):
    """Return 96 values of a batch, spread over it, uint8 (96,)."""
    places = np.random.RandomState(0).randint(0, images.size, 96)
    return np.ascontiguousarray(images.reshape(-1)[places])


def figures_of(outputs, images):
    """Return mean and spread of what an image's corruption is like.

    Args:
        outputs: uint8 (draws, N, H, W, 3).
        images: uint8 (N, H, W, 3), clean.

    Returns:
        Means and standard deviations of [RMSE, shift of red, green, blue, share of the difference's
        power below 1/16, 1/8, 1/4 cycles a pixel, and above]. Deviations are over the draws of one
        image, root mean square over images.
    """
    difference = outputs.astype(np.float64) - images
    rmse = np.sqrt((difference**2).mean((2, 3, 4)))[..., None]
    shift = difference.mean((2, 3))
    power = np.abs(np.fft.fft2(difference.mean(-1))) ** 2
    side = images.shape[1]
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    band = np.digitize(radius, [1 / 16, 1 / 8, 1 / 4])
    shares = np.stack([(power * (band == b)).sum((2, 3)) for b in range(4)], axis=-1)
    shares /= np.maximum(shares.sum(-1, keepdims=True), 1e-12)
    figures = np.concatenate([rmse, shift, shares], axis=-1)
    spread = np.sqrt(figures.var(axis=0, ddof=1).mean(axis=0))
    return {"mean": figures.mean((0, 1)).tolist(), "deviation": spread.tolist()}
