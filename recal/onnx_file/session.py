"""A few recorded outputs, by which a device tells whether its ONNX Runtime computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from recal.data.normalise import normalise_array
from recal.errors import InputError
from recal.onnx_file.reading import read_model
from recal.onnx_file.record import decode_entries, variants_of
from recal.wording import pick

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


INPUTS = ("tensor(float)", "tensor(uint8)")
TINY = np.finfo(np.float32).tiny


class OnnxNetwork:
    """A session on one ONNX file or model.

    Args:
        model: A file, which is checked first, or a serialised model.
        threads: Of ONNX Runtime; 0 for as many as there are cores.
        variant: Which variant of a switchable file runs, by name; by default its first.
        optimise: Whether ONNX Runtime may fold and fuse.

    Attributes:
        classes: Number of logits, or None where the file leaves it open.
        batch: The number of images that the file is fixed to, or None.
        size: Side of the input in pixels, or None where the file leaves it open.
        takes_pixels: Whether the input is uint8 (N, H, W, 3), normalised in the graph.
        gives_probabilities: Whether the output is softmax of the logits.
        metadata: The file's `recal.*` entries without the prefix, JSON decoded where it is JSON.

    Raises:
        InputError: It is no network from images to one vector each, or cannot be loaded.
        UsageError: The file has no such variant.
    """

    def __init__(
        self,
        model: Path | bytes,
        threads: int = 0,
        *,
        variant: str | None = None,
        optimise: bool = True,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        where = str(model) if isinstance(model, Path) else "ONNX model"
        try:
            self._session = onnxruntime.InferenceSession(
                _checked(model) if isinstance(model, Path) else model,
                options,
                providers=["CPUExecutionProvider"],
            )
        except InputError:
            raise
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{where}: expected an ONNX network, got {reason}") from error
        custom = self._session.get_modelmeta().custom_metadata_map
        self.metadata: Mapping[str, Any] = decode_entries(custom)
        inputs = {i.name: i for i in self._session.get_inputs()}
        names: list[str] = []
        if "variants" in self.metadata:
            names = [entry["variant"] for entry in variants_of(self.metadata, where)]
        self._extra = _variant_input(inputs.pop("variant", None), names, variant)
        outputs = self._session.get_outputs()
        image = next(iter(inputs.values()), None)
        shape = image.shape if image is not None else []
        kind = image.type if image is not None else ""
        if (
            image is None
            or len(inputs) != 1
            or len(outputs) != 1
            or len(shape) != 4
            or kind not in INPUTS
        ):
            raise InputError(
                f"{where}: expected one float input (N, 3, H, W) or uint8 input (N, H, W, 3) and "
                f"one output, got {len(inputs)} inputs {shape} {kind} and {len(outputs)} outputs."
            )
        self._input = image.name
        self.takes_pixels = kind == "tensor(uint8)"
        side = shape[1] if self.takes_pixels else shape[2]
        self.size: int | None = side if isinstance(side, int) else None
        self.batch: int | None = shape[0] if isinstance(shape[0], int) else None
        width = outputs[0].shape[-1] if len(outputs[0].shape) == 2 else None
        self.classes: int | None = width if isinstance(width, int) else None
        self.gives_probabilities = outputs[0].name == "probabilities"

    def logits(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Map what the file takes to logits (N, K), or their logarithms of probabilities.

        Args:
            inputs: Normalised images, float32 (N, 3, H, W), or with `takes_pixels` uint8
                (N, H, W, 3).
        """
        result = self.outputs(inputs)
        return np.log(np.maximum(result, TINY)) if self.gives_probabilities else result

    def outputs(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Map what the file takes to what it gives; a file of a fixed batch is run several times.

        Raises:
            InputError: ONNX Runtime refuses the images.
        """
        if self.batch is None:
            return self._run(inputs)
        parts = []
        for start in range(0, len(inputs), self.batch):
            part = inputs[start : start + self.batch]
            parts.append(self._run(filled(part, self.batch))[: len(part)])
        return np.concatenate(parts)

    def classify(
        self, pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]
    ) -> NDArray[np.float32]:
        """Map uint8 (N, H, W, 3) to logits (N, K), whichever of the two the file takes."""
        return self.logits(pixels if self.takes_pixels else normalise_array(pixels, mean, std))

    def _run(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        try:
            result: NDArray[np.float32] = self._session.run(
                None, {self._input: inputs, **self._extra}
            )[0]
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"ONNX Runtime: {inputs.shape} images: {reason}") from error
        return result


def _variant_input(
    given: Any, names: Sequence[str], chosen: str | None
) -> dict[str, NDArray[np.int64]]:
    """Return the second input of a switchable file; of others none."""
    if chosen is not None:
        pick(chosen, names, "--variant")
    if given is None:
        return {}
    return {"variant": np.array(0 if chosen is None else names.index(chosen), np.int64)}


def _checked(path: Path) -> bytes:
    """Return a model that has passed `read_model`, with what lay in files beside it inside."""
    content: bytes = read_model(path).SerializeToString()
    return content


def filled(batch: NDArray[Any], count: int) -> NDArray[Any]:
    """Return a batch of `count` images at least: its last one is repeated as often as it takes."""
    missing = max(0, count - len(batch))
    return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])


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
