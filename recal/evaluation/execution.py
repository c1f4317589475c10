"""How networks are run, and the batches that they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from recal.data.normalise import normalise, normalise_array
from recal.errors import UsageError
from recal.machine import cores_of_this_process
from recal.wording import pick

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from recal.evaluation.adaptation import Adaptation


BACKENDS = ("auto", "onnxruntime", "torch")
# values of a batch, 3 * size^2 an image: 256 images of 32 pixels, 64 of 224
BATCH_VALUES, SMALLEST_BATCH, LARGEST_BATCH = 3 * 224**2 * 64, 16, 256


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How networks are run.

    Attributes:
        backend: `onnxruntime` or `torch`.
        device: For torch.
        batch_size: Images a batch.
        threads: Of this process.
        autocast: Precision to which torch may go down where it holds that to be safe, or None.
        adaptation: How statistics come from the test images; None where they do not.
    """

    backend: str
    device: str
    batch_size: int
    threads: int
    autocast: torch.dtype | None = None
    adaptation: Adaptation | None = None

    @property
    def identity(self) -> str:
        """What a cell's numbers depend on; they do not on batch size or threads."""
        if self.backend == "onnxruntime":
            return "onnxruntime"
        kind = self.device.partition(":")[0]
        adapted = f" {self.adaptation.text}" if self.adaptation else ""
        half = f" autocast {self.autocast}" if self.autocast else ""
        return f"torch {kind} {self.batch_size}{half}{adapted}"

    def describe(self) -> str:
        """Say it for people."""
        where = "" if self.backend == "onnxruntime" else f" on {self.device}"
        half = f", autocast to {self.autocast}" if self.autocast else ""
        plural = "s" * (self.threads != 1)
        return (
            f"{self.backend}{where}{half}, {self.threads} thread{plural}, "
            f"batches of {self.batch_size}"
        )


class Batch:
    """Images that several networks take: what they have in common is made once.

    Args:
        pixels: uint8 (N, H, W, 3).
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels
        self._made: dict[tuple[Any, ...], Any] = {}

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
        """Return float32 (N, 3, H, W), (x / 255 - mean) / std."""
        key = (tuple(mean), tuple(std))
        if key not in self._made:
            self._made[key] = normalise_array(self.pixels, mean, std)
        made: NDArray[np.float32] = self._made[key]
        return made

    def on_device(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device
    ) -> torch.Tensor:
        """Return the same on a device, in channels_last."""
        key = (tuple(mean), tuple(std), device)
        if key not in self._made:
            if device.type == "cpu":
                batch = torch.from_numpy(self.normalised(mean, std))
            else:
                batch = normalise(torch.from_numpy(self.pixels), mean, std, device)
            self._made[key] = batch.contiguous(memory_format=torch.channels_last)
        made: torch.Tensor = self._made[key]
        return made


def choose_execution(
    backend: str,
    device: str,
    size: int,
    *,
    batch_size: int | None = None,
    threads: int | None = None,
    autocast: torch.dtype | None = None,
    adaptation: Adaptation | None = None,
) -> Execution:
    """Return how networks are run, with what was not asked for chosen.

    Args:
        backend: `auto` is ONNX Runtime on a CPU, where it is faster, else PyTorch.
        device: For torch.
        size: Side of the networks' input in pixels; larger images come in smaller batches.
        batch_size: Images a batch, or None.
        threads: Of this process, or None for its share of the machine's cores.
        autocast: See `Execution`.
        adaptation: See `Execution`; it takes PyTorch, and decides on the batches.

    Raises:
        UsageError: There is no such backend, or `autocast` is asked of ONNX Runtime.
    """
    backend = pick(backend, BACKENDS, "--backend")
    if backend == "auto":
        fast = device == "cpu" and not autocast and adaptation is None
        backend = "onnxruntime" if fast else "torch"
    if autocast and backend != "torch":
        raise UsageError("--autocast: expected --backend torch, got onnxruntime.")
    if adaptation and backend != "torch":
        raise UsageError("--adapt: expected --backend torch, got onnxruntime.")
    if adaptation and batch_size not in (None, adaptation.batch):
        raise UsageError(f"--batch-size: expected --adapt-batch to decide, got {batch_size} too.")
    batch_size = adaptation.batch if adaptation else batch_size
    fitting = BATCH_VALUES // (3 * size**2)
    return Execution(
        backend=backend,
        device=device,
        batch_size=batch_size or min(LARGEST_BATCH, max(SMALLEST_BATCH, fitting)),
        threads=threads or cores_of_this_process(),
        autocast=autocast,
        adaptation=adaptation,
    )
