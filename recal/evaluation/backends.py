"""What turns uint8 images into logits: ONNX Runtime, or PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from recal.bn.build import build
from recal.data.loading import normalise
from recal.declared import pick
from recal.deploy.graph import to_onnx, with_tensors
from recal.deploy.runtime import OnnxNetwork
from recal.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from recal.evaluation.targets import Target

BACKENDS = ("auto", "onnxruntime", "torch")


class Predictor(Protocol):
    """Maps images to logits."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, H, W, 3) to logits (N, K)."""
        ...


def choose_backend(name: str, device: str) -> str:
    """Return the backend for `auto`: ONNX Runtime on a CPU, where it is faster, else PyTorch."""
    name = pick(name, BACKENDS, "--backend")
    if name == "auto":
        return "onnxruntime" if device == "cpu" else "torch"
    return name


def make_predictors(targets: Sequence[Target], backend: str, device: str) -> list[Predictor]:
    """Make one predictor a target.

    For ONNX Runtime each checkpoint is traced once; its other variants are the same graph with
    other BatchNorm tensors.

    Raises:
        UsageError: An ONNX file is to run on another device than the CPU.
    """
    traced: dict[tuple[str, str], onnx.ModelProto] = {}
    predictors: list[Predictor] = []
    for target in targets:
        if target.checkpoint is None or target.variant is None:
            if backend == "torch":
                raise UsageError(f"{target.name}: an ONNX file runs by --backend onnxruntime only.")
            assert target.onnx is not None
            predictors.append(_OnnxPredictor(OnnxNetwork(target.onnx), target))
        elif backend == "torch":
            predictors.append(_TorchPredictor(target, device))
        else:
            key = (target.checkpoint.weights_sha256, target.spec.arch)
            if key not in traced:
                network = build(target.checkpoint, target.variant)
                traced[key] = to_onnx(network, target.spec.size, fold=False)
            model = with_tensors(traced[key], dict(target.variant.tensors))
            session = OnnxNetwork(model.SerializeToString())
            predictors.append(_OnnxPredictor(session, target))
    return predictors


class _OnnxPredictor:
    def __init__(self, network: OnnxNetwork, target: Target) -> None:
        self._network = network
        self._mean, self._std = target.spec.mean, target.spec.std

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._network.classify(images, self._mean, self._std)


class _TorchPredictor:
    def __init__(self, target: Target, device: str) -> None:
        assert target.checkpoint is not None
        assert target.variant is not None
        self._device = torch.device(device)
        network = build(target.checkpoint, target.variant)
        self._network = network.to(self._device).to(memory_format=torch.channels_last)
        self._mean, self._std = target.spec.mean, target.spec.std

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        batch = normalise(torch.from_numpy(images), self._mean, self._std, self._device)
        batch = batch.contiguous(memory_format=torch.channels_last)
        logits: NDArray[np.float32] = self._network(batch).float().cpu().numpy()
        return logits
