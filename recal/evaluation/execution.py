"""How networks are run, and the batches that they take."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recal.data.normalise import Normalisation, normalise, normalise_array
from recal.errors import UsageError, pick
from recal.evaluation.adaptation import Adaptation
from recal.machine import cores_of_this_process

BACKENDS = ("auto", "onnxruntime", "torch")
# values in a batch, 3 * size^2 per image: 256 images of 32 pixels, 64 of 224
BATCH_VALUES, SMALLEST_BATCH, LARGEST_BATCH = 3 * 224**2 * 64, 16, 256


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """How the user wants networks to be run.

    Attributes:
        backend: `onnxruntime`, `torch`, or `auto`: ONNX Runtime on a CPU, where it is faster, and
            PyTorch elsewhere, with `autocast` or with `adaptation`, and for networks of
            quantisation-aware training.
        batch_size: Number of images in a batch; None chooses by the size of the images.
        threads: Threads of this process; None for its share of the machine's cores.
        autocast: Reduced precision for the operations that torch lists as safe, or None.
        adaptation: How statistics are taken from the test images, by PyTorch and in the batches
            of the adaptation; None to keep the network's own.

    Raises:
        UsageError: There is no such backend, or options contradict one another.
    """

    backend: str = "auto"
    device: str = "cpu"
    batch_size: int | None = None
    threads: int | None = None
    autocast: torch.dtype | None = None
    adaptation: Adaptation | None = None

    def __post_init__(self) -> None:
        pick(self.backend, BACKENDS, "--backend")
        for option, value in (("--autocast", self.autocast), ("--adapt", self.adaptation)):
            if value and self.backend == "onnxruntime":
                raise UsageError(f"{option}: expected --backend torch, got onnxruntime.")
        if self.adaptation and self.batch_size not in (None, self.adaptation.batch):
            raise UsageError(
                f"batch_size: expected None with an adaptation, got {self.batch_size}. Set "
                "Adaptation.batch."
            )


@dataclass(frozen=True, kw_only=True)
class Execution(ExecutionOptions):
    """How networks are run: options with everything chosen, never `auto` or None for a number."""

    batch_size: int
    threads: int

    @property
    def identity(self) -> str:
        """What the numbers of a cell depend on; threads, and for ONNX Runtime batches, do not."""
        if self.backend == "onnxruntime":
            return "onnxruntime"
        kind = self.device.partition(":")[0]
        adapted = f" {self.adaptation.identity}" if self.adaptation else ""
        half = f" autocast {self.autocast}" if self.autocast else ""
        return f"torch {kind} {self.batch_size}{half}{adapted}"

    def describe(self) -> str:
        """Return a description for people."""
        where = "" if self.backend == "onnxruntime" else f" on {self.device}"
        half = f", autocast to {self.autocast}" if self.autocast else ""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.backend}{where}{half}, {threads}, batches of {self.batch_size}"


class Batch:
    """Images, uint8 (N, H, W, C), for several networks: equal preparations are made once."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels
        self._arrays: dict[Normalisation, NDArray[np.float32]] = {}
        self._tensors: dict[tuple[Normalisation, torch.device], torch.Tensor] = {}

    def normalised(self, how: Normalisation) -> NDArray[np.float32]:
        """Return float32 (N, C, H, W), (x / 255 - mean) / std."""
        if how not in self._arrays:
            self._arrays[how] = normalise_array(self.pixels, how)
        return self._arrays[how]

    def on_device(self, how: Normalisation, device: torch.device) -> torch.Tensor:
        """Return the normalised images on a device, in channels_last."""
        key = how, device
        if key not in self._tensors:
            if device.type == "cpu":
                batch = torch.from_numpy(self.normalised(how))
            else:
                batch = normalise(torch.from_numpy(self.pixels), how, device)
            self._tensors[key] = batch.contiguous(memory_format=torch.channels_last)
        return self._tensors[key]


def choose_execution(options: ExecutionOptions, size: int) -> Execution:
    """Return options with everything chosen, for networks whose input has `size` pixels a side."""
    backend, adaptation = options.backend, options.adaptation
    if backend == "auto":
        fast = options.device == "cpu" and not options.autocast and adaptation is None
        backend = "onnxruntime" if fast else "torch"
    batch_size = adaptation.batch if adaptation else options.batch_size
    fitting = BATCH_VALUES // (3 * size**2)
    return Execution(
        backend=backend,
        device=options.device,
        batch_size=batch_size or min(LARGEST_BATCH, max(SMALLEST_BATCH, fitting)),
        threads=options.threads or cores_of_this_process(),
        autocast=options.autocast,
        adaptation=adaptation,
    )
