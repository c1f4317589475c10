"""A few recorded outputs, by which a device tells whether its ONNX Runtime computes the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recal.deploy.runtime import OnnxNetwork

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 0
SIDE = 64  # of networks that take any size
KEPT = 8


def probe(model: bytes) -> dict[str, Any]:
    """Return the first outputs of a network on two images of seeded noise."""
    outputs = _run(model)
    return {
        "seed": SEED,
        "largest": float(f"{np.abs(outputs).max():.4g}"),
        "outputs": [[float(f"{value:.6g}") for value in row[:KEPT]] for row in outputs],
    }


def probe_difference(model: bytes, recorded: dict[str, Any]) -> float:
    """Return how far outputs are from the recorded ones, relative to max(1, the largest)."""
    try:
        expected = np.asarray(recorded["outputs"], np.float64)
        largest = float(recorded["largest"])
    except (KeyError, TypeError, ValueError):
        return float("inf")
    found = _run(model)[:, :KEPT]
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / max(1.0, largest))


def probe_distance(
    first: bytes, second: bytes, optimise: tuple[bool, bool] = (True, True)
) -> float:
    """Return how far two networks' outputs are apart, relative to max(1, the largest)."""
    a, b = (_run(m, optimise=o) for m, o in zip((first, second), optimise, strict=True))
    return float(np.abs(a - b).max() / max(1.0, float(np.abs(a).max())))


def _run(model: bytes, *, optimise: bool = True) -> NDArray[np.float64]:
    session = OnnxNetwork(model, optimise=optimise)
    side = session.size or SIDE
    rng = np.random.default_rng(SEED)
    if session.takes_pixels:
        pixels = rng.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
        return session.outputs(pixels).astype(np.float64)
    noise = rng.standard_normal((2, 3, side, side), dtype=np.float32)
    return session.outputs(noise).astype(np.float64)
