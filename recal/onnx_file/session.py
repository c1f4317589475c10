"""Running ONNX files in ONNX Runtime, and seeded noise to compare runs with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from recal.data.normalise import normalise_array
from recal.errors import InputError, pick, reason
from recal.onnx_file.reading import read_model
from recal.onnx_file.record import Probe, parse_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


INPUTS = ("tensor(float)", "tensor(uint8)")
TINY = np.finfo(np.float32).tiny
FULL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
BASIC = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
NONE = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def open_session(
    model: bytes,
    where: str,
    *,
    threads: int = 0,
    optimisation: onnxruntime.GraphOptimizationLevel = FULL,
    optimised: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Load a serialised model on the CPU.

    Args:
        model: The model. Check one from outside with `read_model` first.
        where: Name of the model, for messages.
        threads: Threads of ONNX Runtime; 0 for all cores.
        optimisation: How far ONNX Runtime folds and fuses nodes.
        optimised: Where to write the optimised model, if anywhere.

    Raises:
        InputError: ONNX Runtime cannot load it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.graph_optimization_level = optimisation
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"{where}: expected an ONNX network, got {reason(error)}.") from error


def run_session(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """Return all outputs of a session.

    Raises:
        InputError: ONNX Runtime refuses the inputs.
    """
    try:
        outputs: list[NDArray[Any]] = session.run(None, inputs)
    except Exception as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
        raise InputError(f"ONNX Runtime: {shapes}: {reason(error)}.") from error
    return outputs


class OnnxNetwork:
    """A session on one ONNX file or model.

    Args:
        model: A file, which is checked first, or a serialised model.
        threads: Threads of ONNX Runtime; 0 for all cores.
        variant: The variant of a switchable file that runs, by name or number; by default the
            first.
        optimisation: How far ONNX Runtime folds and fuses nodes.

    Attributes:
        classes: Number of classes, or None if the file leaves it open.
        batch: Number of images to which the file is fixed, or None.
        size: Side of the input in pixels, or None if the file leaves it open.
        takes_pixels: Whether the input is uint8 (N, H, W, 3), normalised in the graph.
        gives_probabilities: Whether the output is the softmax of the logits.
        record: What the file says of itself; None if recal did not write it.

    Raises:
        InputError: It is no network from images to one vector each, or cannot be loaded.
        UsageError: The file has no such variant.
    """

    def __init__(
        self,
        model: Path | bytes,
        threads: int = 0,
        *,
        variant: str | int = 0,
        optimisation: onnxruntime.GraphOptimizationLevel = FULL,
    ) -> None:
        where = str(model) if isinstance(model, Path) else "ONNX model"
        content = read_model(model).SerializeToString() if isinstance(model, Path) else model
        self._session = open_session(content, where, threads=threads, optimisation=optimisation)
        self.record = parse_record(self._session.get_modelmeta().custom_metadata_map, where)
        if isinstance(variant, str):
            names = [held.name for held in self.record.variants] if self.record else []
            variant = names.index(pick(variant, names, "--variant"))
        inputs = {i.name: i for i in self._session.get_inputs()}
        self._extra: dict[str, NDArray[np.int64]] = {}
        if inputs.pop("variant", None) is not None:
            self._extra["variant"] = np.array(variant, np.int64)
        outputs = self._session.get_outputs()
        image = next(iter(inputs.values()), None)
        shape = image.shape if image is not None else []
        kind = image.type if image is not None else ""
        if len(inputs) != 1 or len(outputs) != 1 or len(shape) != 4 or kind not in INPUTS:
            raise InputError(
                f"{where}: expected one float input (N, 3, H, W) or uint8 input (N, H, W, 3) and "
                f"one output, got {len(inputs)} inputs {shape} {kind} and {len(outputs)} outputs."
            )
        self._input = next(iter(inputs))
        self.takes_pixels = kind == "tensor(uint8)"
        side = shape[1] if self.takes_pixels else shape[2]
        self.size: int | None = side if isinstance(side, int) else None
        self.batch: int | None = shape[0] if isinstance(shape[0], int) else None
        width = outputs[0].shape[-1] if len(outputs[0].shape) == 2 else None
        self.classes: int | None = width if isinstance(width, int) else None
        self.gives_probabilities = outputs[0].name == "probabilities"

    def logits(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Return logits (N, K), or logarithms of probabilities where the file gives those.

        Args:
            inputs: Normalised images, float32 (N, 3, H, W), or with `takes_pixels` uint8
                (N, H, W, 3).
        """
        result = self.outputs(inputs)
        return np.log(np.maximum(result, TINY)) if self.gives_probabilities else result

    def outputs(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Return the file's own outputs (N, K); a file of a fixed batch is run several times.

        Args:
            inputs: Normalised images, float32 (N, 3, H, W), or with `takes_pixels` uint8
                (N, H, W, 3).

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
        """Return logits (N, K) of pixels, uint8 (N, H, W, 3), normalised if the file needs it."""
        return self.logits(pixels if self.takes_pixels else normalise_array(pixels, mean, std))

    def noise(self, images: int, side: int) -> NDArray[Any]:
        """Return seeded noise in the form that the file takes.

        Args:
            images: Number of images.
            side: Side of the images in pixels, where the file leaves it open.
        """
        side = self.size or side
        rng = np.random.default_rng(SEED)
        if self.takes_pixels:
            return rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8)
        return rng.standard_normal((images, 3, side, side), dtype=np.float32)

    def _run(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = run_session(
            self._session, {self._input: inputs, **self._extra}
        )[0]
        return result


def filled(batch: NDArray[Any], count: int) -> NDArray[Any]:
    """Return a batch of at least `count` images, in which the last one repeats if need be."""
    missing = max(0, count - len(batch))
    return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])


SEED = 0
SIDE = 64  # of noise for networks that take any size
KEPT = 8


def make_probe(model: bytes) -> Probe:
    """Run a network on two images of seeded noise and return its first outputs."""
    outputs = _on_noise(model)
    return Probe(
        seed=SEED,
        largest=float(f"{np.abs(outputs).max():.4g}"),
        outputs=tuple(tuple(float(f"{value:.6g}") for value in row[:KEPT]) for row in outputs),
    )


def probe_difference(model: bytes, recorded: Probe) -> float:
    """Return how far outputs are from the recorded ones, relative to max(1, the largest)."""
    found = _on_noise(model)[:, :KEPT]
    if any(len(row) != found.shape[1] for row in recorded.outputs):
        return float("inf")
    expected = np.asarray(recorded.outputs, np.float64)
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / max(1.0, recorded.largest))


def folding_difference(model: bytes) -> float:
    """Return how far outputs with ONNX Runtime's folding are from those without it, relative."""
    return _distance(_on_noise(model), _on_noise(model, optimisation=NONE))


def noise_difference(first: bytes, second: bytes) -> float:
    """Return how far two networks' outputs are apart, relative to max(1, the largest)."""
    return _distance(_on_noise(first), _on_noise(second))


def _distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.abs(a - b).max() / max(1.0, float(np.abs(a).max())))


def _on_noise(
    model: bytes, *, optimisation: onnxruntime.GraphOptimizationLevel = FULL
) -> NDArray[np.float64]:
    network = OnnxNetwork(model, optimisation=optimisation)
    return network.outputs(network.noise(2, SIDE)).astype(np.float64)
