"""Test-time adaptation: BatchNorm statistics of the test images, as a protocol of its own.

Whatever is evaluated so has seen test data. Its labels say so in every table, and its cells are
kept apart from those of networks that have not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recal.calibration.hooks import autocasting
from recal.errors import UsageError
from recal.networks.build import build
from recal.networks.plain import batch_norms
from recal.wording import pick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

    from recal.evaluation.execution import Batch, Execution
    from recal.evaluation.targets import Target


KINDS = ("batch", "ema")
SAW_TEST_DATA = "saw test data"


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How statistics are taken from the test images of a cell; each cell begins anew.

    `batch`: each batch is normalised by mean and biased variance of its own, each blended with the
    network's: lambda * source + (1 - lambda) * batch, with lambda = prior / (prior + images of the
    batch). A prior of 0 is prediction-time BatchNorm.

    `ema`: statistics begin as the network's and move towards each batch's by `momentum`, before it
    is predicted.

    Images come in an order drawn from `seed`: data sets lie sorted by class, and a batch of one
    class has other statistics than one of all. Batches are as even as can be, so that none of a few
    images is left over.

    Attributes:
        kind: `batch` or `ema`.
        batch: Images a batch, at most.
        prior: Images that the network's own statistics count for; of `batch` alone.
        momentum: Weight of a new batch; of `ema` alone.
        seed: Of the order.

    Raises:
        UsageError: A value is out of its range, or is of the other kind.

    Source: Schneider et al., arXiv 2006.16971, section 3; Nado et al., arXiv 2006.10963, section 2.
    """

    kind: str
    batch: int = 200
    prior: float = 0.0
    momentum: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        pick(self.kind, KINDS, "--adapt")
        if self.batch < 1:
            raise UsageError(f"--adapt-batch: expected 1 image or more, got {self.batch}.")
        if not 0 <= self.prior < float("inf"):
            raise UsageError(f"--prior: expected a number from 0 on, got {self.prior}.")
        if not 0 < self.momentum <= 1:
            raise UsageError(f"--momentum: expected more than 0, at most 1, got {self.momentum}.")
        if self.kind == "ema" and self.prior:
            raise UsageError("--prior: it is of --adapt batch; an average begins at the network's.")

    @property
    def text(self) -> str:
        """What is done, for people; equal for equal numbers."""
        how = f"prior {self.prior:g}" if self.kind == "batch" else f"momentum {self.momentum:g}"
        return f"{self.kind} statistics, batches of {self.batch}, {how}, seed {self.seed}"

    def batches(self, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return a cell's images in the order drawn, cut into batches."""
        shuffled = np.random.default_rng(self.seed).permutation(indices)
        return np.array_split(shuffled, -(-len(indices) // self.batch))


def adapted(targets: Sequence[Target], adaptation: Adaptation) -> list[Target]:
    """Return targets that are to be adapted: of another identity, and labelled so.

    Raises:
        UsageError: One is an ONNX file, whose statistics are folded away.
    """
    for target in targets:
        if target.onnx is not None:
            raise UsageError(
                f"{target.name}: expected a checkpoint or variant to adapt, got an ONNX file."
            )
    return [
        replace(
            target,
            label=f"{target.label} ({SAW_TEST_DATA})",
            sha256=hashlib.sha256(f"{target.sha256} {adaptation.text}".encode()).hexdigest(),
        )
        for target in targets
    ]


class AdaptedPredictor:
    """Maps a batch to logits, with statistics that come from the batches seen since `reset`.

    The network is built for this predictor alone.
    """

    def __init__(self, target: Target, execution: Execution) -> None:
        assert target.checkpoint is not None
        assert target.variant is not None
        assert execution.adaptation is not None
        self._spec, self._device = target.spec, torch.device(execution.device)
        self._autocast = execution.autocast
        network = build(target.checkpoint, target.variant).to(self._device)
        self._network = network.to(memory_format=torch.channels_last)
        self._layers = adapt_layers(self._network, execution.adaptation)

    def reset(self) -> None:
        """Go back to the network's own statistics, as each cell does."""
        for layer in self._layers:
            layer.reset()

    @torch.inference_mode()
    def __call__(self, images: Batch) -> NDArray[np.float32]:
        """Map a batch to logits (N, K)."""
        batch = images.on_device(self._spec.mean, self._spec.std, self._device)
        with autocasting(self._device, self._autocast):
            result = self._network(batch)
        logits: NDArray[np.float32] = result.float().cpu().numpy()
        return logits


def adapt_layers(network: nn.Module, adaptation: Adaptation) -> list[_AdaptedLayer]:
    """Make every BatchNorm layer of a network in eval mode adapt to its input, in place."""
    return [_AdaptedLayer(layer, adaptation) for layer in batch_norms(network).values()]


class _AdaptedLayer:
    """A BatchNorm layer whose statistics are set before it normalises."""

    def __init__(self, layer: nn.Module, adaptation: Adaptation) -> None:
        self._adaptation = adaptation
        self._mean, self._variance = (
            layer.get_buffer(name) for name in ("running_mean", "running_var")
        )
        self._source = self._mean.clone(), self._variance.clone()
        layer.register_forward_pre_hook(self._set)

    def reset(self) -> None:
        self._mean.copy_(self._source[0])
        self._variance.copy_(self._source[1])

    def _set(self, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].float()
        over = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x, over, correction=0)
        if self._adaptation.kind == "ema":
            kept, share = (self._mean, self._variance), self._adaptation.momentum
        else:
            kept, share = self._source, len(x) / (self._adaptation.prior + len(x))
        self._mean.copy_((1 - share) * kept[0] + share * mean)
        self._variance.copy_((1 - share) * kept[1] + share * variance)
