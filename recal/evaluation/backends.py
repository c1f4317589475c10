"""Predictors, which compute logits of images: by ONNX Runtime or by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from recal.attacks.attack import AutoAttack
from recal.attacks.autoattack import autoattack_images
from recal.attacks.gradient import attack_images, normalised, random_starts
from recal.calibration.hooks import autocasting
from recal.errors import RecalError, reason
from recal.evaluation.adaptation import AdaptedNetwork
from recal.evaluation.attacked import Attacked
from recal.evaluation.execution import Batch, Execution
from recal.evaluation.targets import OnnxTarget, Target, VariantTarget
from recal.export.trace import to_onnx
from recal.networks.spec import ModelSpec
from recal.onnx_file.editing import arrays_of_graph, with_arrays
from recal.onnx_file.session import OnnxNetwork, check_any_batch
from recal.progress import Progress, silent
from recal.variant.build import build_classifier
from recal.variant.independence import check_independence

# values that one thread of ONNX Runtime works on at a time: those of 8 images of 32 pixels
PIECE_VALUES, SMALLEST_PIECE = 3 * 32**2 * 8, 4


class Predictors:
    """The predictors of several networks, of different identities, each made when first used.

    For ONNX Runtime each checkpoint is traced once; its variants are the same graph with other
    BatchNorm tensors.
    """

    def __init__(self, targets: Sequence[Target], execution: Execution) -> None:
        self._targets = {target.sha256: target for target in targets}
        self._execution = execution
        self._traced: dict[tuple[str, str], onnx.ModelProto] = {}
        self._made: dict[str, _OnnxPredictor | _TorchPredictor | RecalError] = {}
        if execution.backend == "torch":
            torch.set_num_threads(execution.threads)

    def begin(self, sha256: str, images: Batch) -> Callable[[], NDArray[np.float32]]:
        """Start to compute the logits of a batch; return a function that waits for them.

        ONNX Runtime works on several batches and networks one after the other without a pause.
        PyTorch starts when the function is called. It raises a RecalError for a network that cannot
        be built, which is tried once; the other ones can be used.
        """
        made = self._get(sha256)
        return partial(_raise, made) if isinstance(made, RecalError) else made.begin(images)

    def begin_cell(self, sha256: str, images: Iterable[Batch], progress: Progress = silent) -> None:
        """Set an adapted network back to its own statistics, or to those of a cell's images.

        Other networks are left as they are. `images` are all batches of the cell, in order, and
        can be read again. `progress` is called with the numbers of layers done and in total.

        Raises:
            RecalError: The network cannot be adapted; its other cells may be possible.
        """
        made = self._get(sha256)
        if isinstance(made, _TorchPredictor):
            made.begin_cell(images, progress)

    def attack(
        self,
        attacked: Attacked,
        labels: NDArray[np.int64],
        indices: NDArray[np.int64],
        images: torch.Tensor,
    ) -> torch.Tensor:
        """Return images (N, 3, H, W) in [0, 1] under an attack, on their device.

        Raises:
            RecalError: The network cannot be built.
        """
        made = self._get(attacked.target.sha256)
        if isinstance(made, RecalError):
            raise made
        assert isinstance(made, _TorchPredictor)
        attack, targets = attacked.attack, torch.from_numpy(labels).to(images.device)
        if isinstance(attack, AutoAttack):
            return autoattack_images(made.logits, images, targets, attack, attacked.seed)
        starts = random_starts(attack, attacked.seed, indices, tuple(images.shape[1:]))
        starts = None if starts is None else starts.to(images.device)
        return attack_images(made.logits, images, targets, attack, starts)

    def _get(self, sha256: str) -> _OnnxPredictor | _TorchPredictor | RecalError:
        if sha256 not in self._made:
            try:
                self._made[sha256] = self._make(self._targets[sha256])
            except RecalError as error:
                self._made[sha256] = error
            except (RuntimeError, ValueError, TypeError) as error:
                text = f"the network cannot be built ({reason(error)})."
                self._made[sha256] = RecalError(text)
        return self._made[sha256]

    def _make(self, target: Target) -> _OnnxPredictor | _TorchPredictor:
        if isinstance(target, OnnxTarget):
            network = OnnxNetwork(target.path, 1)
        elif self._execution.backend == "torch":
            return _TorchPredictor(target, self._execution)
        else:
            network = OnnxNetwork(self._model(target).SerializeToString(), 1)
            check_any_batch(network, target.spec.size, target.spec.arch, "Give --backend torch.")
        return _OnnxPredictor(network, target, self._pool)

    def _model(self, target: VariantTarget) -> onnx.ModelProto:
        key = (target.checkpoint.weights_sha256, target.spec.arch)
        if key not in self._traced:
            network = build_classifier(target.checkpoint, target.variant).network
            spec = target.spec
            self._traced[key] = to_onnx(network, spec.size, fold=False, channels=spec.channels)
        model = self._traced[key]
        tensors = target.variant.tensors
        return with_arrays(model, arrays_of_graph(model.graph, tensors, "network", target.name))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._execution.threads, "networks")


def _raise(error: RecalError) -> NDArray[np.float32]:
    raise error


class _OnnxPredictor:
    """A session of one thread, which several threads run on pieces of a batch.

    The threads of one session would wait for each other in every layer, which is slow when others
    use the machine too. Numbers are the same to the last bit (docs/evidence.md has figures).
    """

    def __init__(self, network: OnnxNetwork, target: Target, pool: ThreadPoolExecutor) -> None:
        self._network = network
        self._normalisation = target.spec.normalisation
        self._pool = pool
        values = target.spec.channels * target.spec.size**2
        self._piece = max(SMALLEST_PIECE, PIECE_VALUES // values)

    def begin(self, images: Batch) -> Callable[[], NDArray[np.float32]]:
        """Pass the pieces of a batch to the threads; return a function that waits for logits."""
        if self._network.takes_pixels:
            inputs: NDArray[Any] = images.pixels
        else:
            inputs = images.normalised(self._normalisation)
        pieces = [inputs[i : i + self._piece] for i in range(0, len(inputs), self._piece)]
        started = self._pool.map(self._network.logits, pieces)
        return lambda: np.concatenate(list(started))


class _TorchPredictor:
    """A network of its own in PyTorch; with adaptation, its statistics follow the test images."""

    def __init__(self, target: VariantTarget, execution: Execution) -> None:
        self._spec, self._device = target.spec, torch.device(execution.device)
        self._autocast = execution.autocast
        network = build_classifier(target.checkpoint, target.variant).network
        check_independence(network, target.spec.input_shape, target.spec.arch)
        network = network.to(self._device)
        self._network = network.to(memory_format=torch.channels_last)
        self._adaptation, self._adapted = execution.adaptation, None
        if self._adaptation is not None:
            self._adapted = AdaptedNetwork(self._network, self._adaptation, self._autocast)

    def begin_cell(self, images: Iterable[Batch], progress: Progress) -> None:
        if self._adapted is None:
            return
        assert self._adaptation is not None
        self._adapted.reset()
        if self._adaptation.kind == "cell":
            self._adapted.estimate(_OnDevice(images, self._spec, self._device), progress)

    def begin(self, images: Batch) -> Callable[[], NDArray[np.float32]]:
        """Return a function that computes the logits of a batch."""
        return partial(self._logits, images)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images (N, 3, H, W) in [0, 1]; gradients flow through."""
        result: torch.Tensor = self._network(normalised(images, self._spec.normalisation))
        return result

    @torch.inference_mode()
    def _logits(self, images: Batch) -> NDArray[np.float32]:
        batch = images.on_device(self._spec.normalisation, self._device)
        if self._adapted is not None:
            result = self._adapted(batch)
        else:
            with autocasting(self._device, self._autocast):
                result = self._network(batch)
        logits: NDArray[np.float32] = result.float().cpu().numpy()
        return logits


@dataclass(frozen=True)
class _OnDevice:
    """The normalised batches of a cell, which can be iterated several times."""

    images: Iterable[Batch]
    spec: ModelSpec
    device: torch.device

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in self.images:
            yield batch.on_device(self.spec.normalisation, self.device)
