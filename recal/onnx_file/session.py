"""Running ONNX files in ONNX Runtime on the CPU, without torch."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from recal.data.normalise import Normalisation, normalise_array
from recal.errors import InputError, pick, reason
from recal.networks.spec import ModelSpec
from recal.onnx_file.preparing import resizes
from recal.onnx_file.probe import IMAGES, Probe, probe_of, repeatable_noise
from recal.onnx_file.reading import read_model
from recal.onnx_file.record import GraphOptions, parse_record

NODE = re.compile(r"Name:('[^']*')")
Run = Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]
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
    """Load a serialised model on the CPU; check one from outside with `read_model` first.

    Args:
        model: The serialised model.
        where: Name of the model, for messages.
        threads: Threads of ONNX Runtime; 0 for all cores.
        optimisation: How far ONNX Runtime folds and fuses nodes.
        optimised: Where to write the optimised model, if anywhere.

    Raises:
        InputError: ONNX Runtime cannot load it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised, and need not be printed too
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
        return list(session.run(None, inputs))
    except Exception as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
        raise InputError(f"ONNX Runtime: {shapes}: {reason(error)}.") from error


class OnnxNetwork:
    """A session on one ONNX file or model.

    Args:
        model: A file, which is checked first, or a serialised model.
        threads: Threads of ONNX Runtime; 0 for all cores.
        variant: The variant of a switchable file that runs, by name or number.
        optimisation: How far ONNX Runtime folds and fuses nodes.

    Attributes:
        run: Function from inputs by name to the output; another engine's may take its place.
        variant: Number of the variant that runs; None if the file is not switchable.
        classes: Number of classes, or None if the file leaves it open.
        batch: Number of images to which the file is fixed, or None.
        size: Side of the input in pixels, or None if the file leaves it open.
        channels: Number of channels of the input, or None if the file leaves it open.
        takes_pixels: Whether the input is uint8 (N, H, W, C), normalised in the graph.
        gives_probabilities: Whether the output is the softmax of the logits.
        record: What the file says of itself; None if recal did not write it.
        prepares: Whether the file takes pixels of any size and prepares them itself.

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
        session = open_session(content, where, threads=threads, optimisation=optimisation)
        self.run: Run = lambda given: run_session(session, given)[0]
        self.record = parse_record(session.get_modelmeta().custom_metadata_map, where)
        if isinstance(variant, str):
            names = [held.name for held in self.record.variants] if self.record else []
            variant = names.index(pick(variant, names, "--variant"))
        inputs, outputs = session.get_inputs(), session.get_outputs()
        self.variant: int | None = None
        if any(given.name == "variant" for given in inputs):
            inputs = [given for given in inputs if given.name != "variant"]
            self.variant = variant
        shape, kind = (inputs[0].shape, inputs[0].type) if inputs else ([], "")
        if len(inputs) != 1 or len(outputs) != 1 or len(shape) != 4 or kind not in INPUTS:
            raise InputError(
                f"{where}: expected one float input (N, C, H, W) or uint8 input (N, H, W, C) and "
                f"one output, got {len(inputs)} inputs {shape} {kind} and {len(outputs)} outputs."
            )
        self._input = inputs[0].name
        self.takes_pixels = kind == "tensor(uint8)"
        side = shape[1] if self.takes_pixels else shape[2]
        self.size: int | None = side if isinstance(side, int) else None
        channels = shape[3] if self.takes_pixels else shape[1]
        self.channels: int | None = channels if isinstance(channels, int) else None
        self.batch: int | None = shape[0] if isinstance(shape[0], int) else None
        width = outputs[0].shape[-1] if len(outputs[0].shape) == 2 else None
        self.classes: int | None = width if isinstance(width, int) else None
        self.gives_probabilities = outputs[0].name == "probabilities"
        self.prepares = self.record is not None and resizes(self.record.options, self.record.model)

    def logits(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Return logits (N, K) of inputs as `outputs` takes them; of probabilities, logarithms."""
        result = self.outputs(inputs)
        return np.log(np.maximum(result, TINY)) if self.gives_probabilities else result

    def outputs(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Return the file's own outputs (N, K); a file of a fixed batch is run several times.

        Args:
            inputs: Normalised float32 (N, C, H, W), or with `takes_pixels` uint8 (N, H, W, C).

        Raises:
            InputError: ONNX Runtime refuses the images.
        """
        chosen = {} if self.variant is None else {"variant": np.array(self.variant, np.int64)}
        if self.batch is None:
            return self.run({self._input: inputs, **chosen})
        parts = []
        for start in range(0, len(inputs), self.batch):
            part = inputs[start : start + self.batch]
            given = {self._input: filled(part, self.batch), **chosen}
            parts.append(self.run(given)[: len(part)])
        return np.concatenate(parts)

    def classify(
        self, pixels: NDArray[np.uint8], normalisation: Normalisation
    ) -> NDArray[np.float32]:
        """Return logits (N, K) of pixels, uint8 (N, H, W, C), normalised if the file needs it."""
        return self.logits(pixels if self.takes_pixels else normalise_array(pixels, normalisation))

    def noise(self, images: int, side: int) -> NDArray[Any]:
        """Return noise as the file takes it; `side` in pixels applies if it takes any."""
        side, channels = self.size or side, self.channels or 3
        places = (side, side, channels) if self.takes_pixels else (channels, side, side)
        return repeatable_noise((images, *places), pixels=self.takes_pixels)


def check_any_batch(network: OnnxNetwork, side: int, where: str, advice: str) -> None:
    """Refuse a graph that claims to take any number of images and fails for some.

    Args:
        network: The graph in a session.
        side: Side of the input in pixels, if the graph takes any.
        where: What is checked, for the message.
        advice: What to do about it, for the message.

    Raises:
        InputError: It fails for one image or for three.
    """
    for images in (1, 3) if network.batch is None else ():
        try:
            network.outputs(network.noise(images, side))
        except InputError as error:
            node = NODE.search(str(error))
            raise InputError(
                f"{where}: {f'node {node[1]}' if node else error}: expected a graph for any number "
                f"of images, got one that fails for {images}: the network's code makes a constant "
                f"of the number of images in a batch. {advice}"
            ) from error


def filled(batch: NDArray[Any], count: int) -> NDArray[Any]:
    """Return a batch of at least `count` images, in which the last one repeats if need be."""
    missing = max(0, count - len(batch))
    return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])


SIDE = 64  # of noise for networks that take any size


def noise_side(options: GraphOptions, spec: ModelSpec, otherwise: int = SIDE) -> int:
    """Return the side in pixels of the noise on which a file that takes any size runs.

    It is about twice the network's where the file resizes, so that it filters, else `otherwise`.
    """
    return 2 * spec.size + 1 if resizes(options, spec) else otherwise


def make_probe(
    model: bytes, variants: int = 1, run: Run | None = None, *, side: int = SIDE
) -> Probe:
    """Run each variant of a network on noise and return the first outputs.

    Args:
        model: The serialised model.
        variants: Number of variants in it.
        run: What runs it: another engine's function instead of a session on the CPU.
        side: Side of the noise in pixels, if the network takes any.
    """
    network = OnnxNetwork(model)
    network.run = run or network.run
    inputs = network.noise(network.batch or IMAGES, side)
    outputs = []
    for number in range(variants):
        network.variant = number if variants > 1 else None
        outputs.append(network.outputs(inputs))
    return probe_of(inputs, outputs)


def noise_difference(
    first: bytes, second: bytes, optimisation: onnxruntime.GraphOptimizationLevel = FULL
) -> float:
    """Return how far two networks' outputs on noise are apart, relative to max(1, the largest).

    The first runs with all of ONNX Runtime's optimisation, the second with the one given.
    """
    a, b = _on_noise(first), _on_noise(second, optimisation)
    return float(np.abs(a - b).max() / max(1.0, float(np.abs(a).max())))


def _on_noise(
    model: bytes, optimisation: onnxruntime.GraphOptimizationLevel = FULL
) -> NDArray[np.float64]:
    network = OnnxNetwork(model, optimisation=optimisation)
    return network.outputs(network.noise(IMAGES, SIDE)).astype(np.float64)
