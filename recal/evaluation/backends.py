"""What turns images into logits: ONNX Runtime, or PyTorch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from recal.calibration.hooks import autocasting
from recal.errors import RecalError, UsageError, reason
from recal.evaluation.adaptation import AdaptedPredictor
from recal.export.trace import to_onnx, with_tensors
from recal.networks.build import build
from recal.onnx_file.session import OnnxNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx
    from numpy.typing import NDArray

    from recal.evaluation.execution import Batch, Execution
    from recal.evaluation.targets import Target
    from recal.variant.variant import Variant


# values that one thread of ONNX Runtime works on at a time: 8 images of 32 pixels
PIECE_VALUES, SMALLEST_PIECE = 3 * 32**2 * 8, 4


class Predictor(Protocol):
    """Maps normalised images to logits."""

    def __call__(self, images: Batch) -> NDArray[np.float32]:
        """Map a batch to logits (N, K)."""
        ...


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
                self._faults[name] = f"the network cannot be built ({reason(error)})."
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
        with autocasting(self._device, self._autocast):
            result = self._network(batch)
        logits: NDArray[np.float32] = result.float().cpu().numpy()
        return logits
