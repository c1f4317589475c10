"""What turns images into logits: ONNX Runtime, or PyTorch."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from recal.bn.build import build
from recal.declared import pick
from recal.deploy.graph import to_onnx, with_tensors
from recal.deploy.runtime import OnnxNetwork, normalise_array
from recal.errors import RecalError, UsageError
from recal.evaluation.adaptation import AdaptedPredictor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx
    from numpy.typing import NDArray

    from recal.bn.variant import Variant
    from recal.evaluation.adaptation import Adaptation
    from recal.evaluation.targets import Target

BACKENDS = ("auto", "onnxruntime", "torch")
# values of a batch, 3 * size^2 an image: 256 images of 32 pixels, 64 of 224
BATCH_VALUES, SMALLEST_BATCH, LARGEST_BATCH = 3 * 224**2 * 64, 16, 256
# likewise, of what one thread of ONNX Runtime works on at a time
PIECE_VALUES, SMALLEST_PIECE = 3 * 32**2 * 16, 4


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How networks are run.

    Attributes:
        backend: `onnxruntime` or `torch`.
        device: For torch.
        batch_size: Images a batch.
        threads: Of this process.
        autocast: Whether torch may compute in half precision where it holds that to be safe.
        adaptation: How statistics come from the test images; None where they do not.
    """

    backend: str
    device: str
    batch_size: int
    threads: int
    autocast: bool = False
    adaptation: Adaptation | None = None

    @property
    def identity(self) -> str:
        """What a cell's numbers depend on; they do not on batch size or threads."""
        if self.backend == "onnxruntime":
            return "onnxruntime"
        kind = self.device.partition(":")[0]
        adapted = f" {self.adaptation.text}" if self.adaptation else ""
        return f"torch {kind} {self.batch_size}{' autocast' * self.autocast}{adapted}"

    def describe(self) -> str:
        """Say it for people."""
        where = "" if self.backend == "onnxruntime" else f" on {self.device}"
        half = ", autocast" if self.autocast else ""
        plural = "s" * (self.threads != 1)
        return (
            f"{self.backend}{where}{half}, {self.threads} thread{plural}, "
            f"batches of {self.batch_size}"
        )


class Predictor(Protocol):
    """Maps normalised images to logits."""

    def __call__(self, images: Batch) -> NDArray[np.float32]:
        """Map a batch to logits (N, K)."""
        ...


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
                from recal.data.loading import normalise

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
    autocast: bool = False,
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


def cores_of_this_process() -> int:
    """Return the cores that this process may use, shared with the others that torchrun started."""
    from recal.data.generating import available_cores

    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class Predictors:
    """One predictor a target, made when it is first needed.

    For ONNX Runtime each checkpoint is traced once; its other variants are the same graph with
    other BatchNorm tensors.

    Args:
        targets: What is to be run.
        execution: How.

    Raises:
        UsageError: An ONNX file is to run by torch.
    """

    def __init__(self, targets: Sequence[Target], execution: Execution) -> None:
        for target in targets:
            if target.onnx is not None and execution.backend == "torch":
                raise UsageError(f"{target.name}: an ONNX file runs by --backend onnxruntime only.")
        self._targets = {target.name: target for target in targets}
        self._execution = execution
        self._traced: dict[tuple[str, str], onnx.ModelProto] = {}
        self._made: dict[str, Predictor] = {}
        self._faults: dict[str, str] = {}
        if execution.backend == "torch":
            torch.set_num_threads(execution.threads)

    def __getitem__(self, name: str) -> Predictor:
        """Return a target's predictor.

        Raises:
            RecalError: It cannot be made of this target; it is for others.
        """
        if name not in self._made and name not in self._faults:
            try:
                self._made[name] = self._make(self._targets[name])
            except RecalError as error:
                self._faults[name] = str(error)
            except (RuntimeError, ValueError, TypeError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                self._faults[name] = f"the network cannot be built ({reason})."
        if name in self._faults:
            raise RecalError(self._faults[name])
        return self._made[name]

    def begin(self, name: str, images: Batch) -> Callable[[], NDArray[np.float32]]:
        """Start to map a batch by a target's network; return what waits for the logits.

        ONNX Runtime works on several batches and targets one after the other without a pause;
        PyTorch begins when the logits are asked for. What fails is raised then, too.
        """
        try:
            predictor = self[name]
        except RecalError as error:
            return partial(_raise, error)
        if isinstance(predictor, _OnnxPredictor):
            return predictor.begin(images)
        return partial(predictor, images)

    def begin_cell(self) -> None:
        """Forget what was learnt of the images of another cell."""
        for predictor in self._made.values():
            if isinstance(predictor, AdaptedPredictor):
                predictor.reset()

    def _make(self, target: Target) -> Predictor:
        if target.onnx is not None:
            return _OnnxPredictor(OnnxNetwork(target.onnx, 1), target, self._pool)
        assert target.checkpoint is not None
        assert target.variant is not None
        if self._execution.adaptation:
            return AdaptedPredictor(target, self._execution)
        if self._execution.backend == "torch":
            return _TorchPredictor(target, self._execution)
        key = (target.checkpoint.weights_sha256, target.spec.arch)
        if key not in self._traced:
            # tensors that are equal would become one in the graph, and no variant could part them
            network = build(target.checkpoint, _with_distinct_tensors(target.variant))
            self._traced[key] = to_onnx(network, target.spec.size, fold=False)
        model = with_tensors(self._traced[key], dict(target.variant.tensors))
        return _OnnxPredictor(OnnxNetwork(model.SerializeToString(), 1), target, self._pool)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._execution.threads, "networks")


class _OnnxPredictor:
    """A session of one thread, that several threads run on pieces of a batch.

    The threads of one session wait for each other in every layer, which costs much where others use
    the machine too; threads with pieces of their own do not. The numbers are the same to the last
    bit (docs/evaluation.md has figures).
    """

    def __init__(self, network: OnnxNetwork, target: Target, pool: ThreadPoolExecutor) -> None:
        self._network = network
        self._mean, self._std = target.spec.mean, target.spec.std
        self._pool = pool
        self._piece = max(SMALLEST_PIECE, PIECE_VALUES // (3 * target.spec.size**2))

    def __call__(self, images: Batch) -> NDArray[np.float32]:
        return self.begin(images)()

    def begin(self, images: Batch) -> Callable[[], NDArray[np.float32]]:
        """Hand a batch's pieces to the threads; return what waits for their logits."""
        if self._network.takes_pixels:
            inputs: NDArray[Any] = images.pixels
        else:
            inputs = images.normalised(self._mean, self._std)
        pieces = [inputs[i : i + self._piece] for i in range(0, len(inputs), self._piece)]
        started = self._pool.map(self._network.logits, pieces)
        return lambda: np.concatenate(list(started))


def _raise(error: RecalError) -> NDArray[np.float32]:
    raise error


def _with_distinct_tensors(variant: Variant) -> Variant:
    generator = torch.Generator().manual_seed(0)
    distinct = {
        name: torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5
        for name, tensor in variant.tensors.items()
    }
    return replace(variant, tensors=distinct)


class _TorchPredictor:
    def __init__(self, target: Target, execution: Execution) -> None:
        assert target.checkpoint is not None
        assert target.variant is not None
        self._device = torch.device(execution.device)
        network = build(target.checkpoint, target.variant)
        self._network = network.to(self._device).to(memory_format=torch.channels_last)
        self._mean, self._std = target.spec.mean, target.spec.std
        self._autocast = execution.autocast

    @torch.inference_mode()
    def __call__(self, images: Batch) -> NDArray[np.float32]:
        batch = images.on_device(self._mean, self._std, self._device)
        with torch.autocast(self._device.type, enabled=self._autocast):
            result = self._network(batch)
        logits: NDArray[np.float32] = result.float().cpu().numpy()
        return logits
