"""Test-time adaptation: BatchNorm statistics of the test images, by protocols of the literature.

An adapted network has seen test data. Its label says so in every table, and its cells are kept
apart from those of networks that have not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from recal.calibration.consistent import consistent
from recal.calibration.estimators import MOMENTUM
from recal.calibration.hooks import ForwardPass, autocasting, set_statistics
from recal.errors import InputError, UsageError, pick
from recal.progress import Progress, silent
from recal.variant.plain import batch_norms, first_tensor

KINDS = ("batch", "cumulative", "ema", "cell")
ORDERS = ("shuffled", "as-is", "by-class")
STATISTICS = ("means", "variances")
# kinds whose statistics go on from one batch to the next
MOVING = ("cumulative", "ema")
SAW_TEST_DATA = "saw test data"
# the value of `Adaptation.continual` that stands for all cells in the suite's order
ALL_CELLS = ("all",)


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How statistics are taken from the test images; every cell starts anew unless `continual`.

    `batch`: each batch is normalised by its own mean and biased variance, as in training
    (prediction-time BatchNorm, Nado et al.). With `prior`, `alpha` or `only` they are blended with
    the network's: (1 - alpha) * source + alpha * batch, with alpha = images of the batch / (prior +
    images of the batch) for a prior (Schneider et al.). The variance of the batch is then unbiased,
    as the network's own is.

    `cumulative`: the average of the means and unbiased variances of the batches so far, the present
    one included; nothing is left of the network's own (`adapt_ema` in Schneider et al.'s code).

    `ema`: statistics start as the network's. Before a batch is predicted, they move by `momentum`
    towards the means and unbiased variances of a training-mode pass of the batch, from which they
    differ for all but the first layer (`norm_ema` in the benchmark of Marsden et al.).

    `cell`: the statistics that the network itself sees on all images of the cell (Schneider et
    al.'s full adaptation), or on the first `samples` of them (Benz et al.: 32). They are estimated
    before the first image is predicted, and are those of one training-mode pass of these images as
    a single batch: biased.

    Sizes of batches differ by at most one, so that there is no small last batch.

    Attributes:
        batch: Largest number of images in a batch.
        prior: Number of images that the network's own statistics count for; only for `batch`.
        alpha: Weight of the batch's statistics in place of a prior; only for `batch`.
        only: `means` or `variances`: take only these from the batch; only for `batch`.
        momentum: Weight of a new batch, 0.1 by default; only for `ema`.
        samples: Number of images that statistics are estimated on; only for `cell`. None for all.
        order: Order of the images of a cell: `shuffled` by the seed, because data sets are sorted
            by class, and a batch of one class has other statistics than one of all classes; `as-is`
            as the data set has them; or `by-class`.
        continual: Names of cells that follow each other without a reset, in this order; only for
            `cumulative` and `ema`. `ALL_CELLS` stands for the suite's.
        seed: Seed of the order.

    Raises:
        UsageError: A value is out of its range, or belongs to another kind.

    Source: Schneider et al., arXiv 2006.16971, section 3; Nado et al., arXiv 2006.10963, section 2;
        Benz et al., arXiv 2010.03630; Marsden et al., arXiv 2306.00650.
    """

    kind: str
    batch: int = 200
    prior: float = 0.0
    alpha: float | None = None
    only: str | None = None
    momentum: float | None = None
    samples: int | None = None
    order: str = "shuffled"
    continual: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        pick(self.kind, KINDS, "--adapt")
        pick(self.order, ORDERS, "--order")
        if self.only is not None:
            pick(self.only, STATISTICS, "--only")
        if self.batch < 1:
            raise UsageError(f"--batch-size: expected 1 image or more, got {self.batch}.")
        if not 0 <= self.prior < float("inf"):
            raise UsageError(f"--prior: expected a number of at least 0, got {self.prior}.")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise UsageError(f"--alpha: expected a number from 0 to 1, got {self.alpha}.")
        if self.momentum is not None and not 0 < self.momentum <= 1:
            raise UsageError(f"--momentum: expected more than 0, at most 1, got {self.momentum}.")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"--samples: expected 1 image or more, got {self.samples}.")
        if self.alpha is not None and self.prior:
            raise UsageError("--alpha: expected no --prior with it, which is another weight.")
        for option, given, kinds in (
            ("--prior", bool(self.prior), ("batch",)),
            ("--alpha", self.alpha is not None, ("batch",)),
            ("--only", self.only is not None, ("batch",)),
            ("--momentum", self.momentum is not None, ("ema",)),
            ("--samples", self.samples is not None, ("cell",)),
            ("--continual", bool(self.continual), MOVING),
        ):
            if given and self.kind not in kinds:
                raise UsageError(
                    f"{option}: expected --adapt {' or '.join(kinds)}, got {self.kind}."
                )

    @property
    def alone(self) -> bool:
        """Whether nothing of the network's own statistics is left in those of a batch."""
        return self.kind == "batch" and not self.prior and self.alpha is None and self.only is None

    @property
    def protocol(self) -> str:
        """The statistics and the paper that uses them."""
        if self.kind == "ema":
            return f"moving average, momentum {self.momentum or MOMENTUM:g} (Marsden et al. 2024)"
        if self.kind == "cumulative":
            return "average of the batches so far (Schneider et al. 2020, adapt_ema)"
        if self.kind == "cell":
            if self.samples is None:
                return "statistics of the whole cell (Schneider et al. 2020, full adaptation)"
            return f"statistics of {self.samples} images of the cell (Benz et al. 2021)"
        if self.alone:
            return "statistics of each batch (Nado et al. 2020)"
        how = f"prior {self.prior:g}" if self.alpha is None else f"alpha {self.alpha:g}"
        return f"{self.only or 'statistics'} of each batch, {how} (Schneider et al. 2020)"

    @property
    def text(self) -> str:
        """A description for people."""
        order = f"shuffled, seed {self.seed}" if self.order == "shuffled" else self.order
        without = f", {len(self.continual)} cells without a reset" * bool(self.continual)
        return f"{self.protocol}, batches of {self.batch}, {order}{without}"

    @property
    def identity(self) -> str:
        """What numbers depend on: equal for adaptations that give equal ones."""
        return " ".join([self.text, *self.continual])

    def estimated_on(self, images: int) -> int:
        """Return on how many images of a cell statistics are estimated before it is predicted."""
        return min(images, self.samples or images) if self.kind == "cell" else 0

    def batches(
        self, indices: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> list[NDArray[np.int64]]:
        """Return the indices of a cell's images, in order and cut into batches.

        `labels` are those of all images of the data set, by index.
        """
        ordered = indices
        if self.order == "shuffled":
            ordered = np.random.default_rng(self.seed).permutation(indices)
        elif self.order == "by-class":
            ordered = indices[np.argsort(labels[indices], kind="stable")]
        return np.array_split(ordered, -(-len(indices) // self.batch))

    def continues(self, cell: str) -> bool:
        """Return whether a cell starts with the statistics of the one before it."""
        return cell in self.continual[1:]


class AdaptedNetwork:
    """A network in eval mode whose BatchNorm layers adapt to the images that it is given.

    Args:
        network: The network, which is changed.
        adaptation: How it adapts.
        autocast: Reduced precision of the forward passes, or None.
    """

    def __init__(
        self, network: nn.Module, adaptation: Adaptation, autocast: torch.dtype | None = None
    ) -> None:
        self._network, self._adaptation, self._autocast = network, adaptation, autocast
        self._layers = {
            name: _AdaptedLayer(layer, adaptation) for name, layer in batch_norms(network).items()
        }

    def reset(self) -> None:
        """Set the statistics back to the network's own."""
        for layer in self._layers.values():
            layer.reset()

    def estimate(self, batches: Iterable[torch.Tensor], progress: Progress = silent) -> None:
        """Set the statistics to those that the network sees on all batches, which are re-read.

        `progress` is called with the numbers of layers done and in total.

        Raises:
            InputError: The network uses a layer several times, or changes others of its buffers.
        """
        try:
            found = consistent(
                self._network,
                batches,
                forward=ForwardPass(autocast=self._autocast),
                progress=progress,
            ).layers
        except InputError as error:
            raise InputError(
                "--adapt cell: expected a network that uses every BatchNorm layer once and changes "
                f"nothing else in eval mode, got another ({error}). Use --adapt batch."
            ) from error
        for name, layer in found.items():
            set_statistics(self._layers[name].layer, layer.mean, layer.variance)

    def __call__(self, batch: torch.Tensor) -> Any:
        """Return what the network returns for a normalised batch, and keep what it has learned."""
        with autocasting(batch.device, self._autocast):
            if self._adaptation.kind == "ema":
                for layer in self._layers.values():
                    layer.learning = True
                self._network(batch)
                for layer in self._layers.values():
                    layer.learn()
            return self._network(batch)


class _AdaptedLayer:
    """The statistics of a BatchNorm layer, which a hook sets from its input before it normalises.

    Attributes:
        learning: Whether this pass is the one of `ema` that statistics are taken from.
    """

    def __init__(self, layer: nn.Module, adaptation: Adaptation) -> None:
        self.layer = layer
        self.learning = False
        self._adaptation = adaptation
        self._own = [layer.get_buffer(name) for name in ("running_mean", "running_var")]
        self._source = [own.clone() for own in self._own]
        self._average, self._seen = self._source, 0
        if adaptation.kind != "cell":
            layer.register_forward_pre_hook(self._set, with_kwargs=True)

    def reset(self) -> None:
        self.learning = False
        self._average, self._seen = self._source, 0
        self._put(self._source)

    def learn(self) -> None:
        self.learning = False
        self._put(self._average)

    def _put(self, statistics: Iterable[torch.Tensor]) -> None:
        for own, new in zip(self._own, statistics, strict=True):
            own.copy_(new)

    def _set(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, adaptation = first_tensor(args, kwargs).float(), self._adaptation
        if adaptation.kind == "ema" and not self.learning:
            return
        places = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x, places, correction=0)
        values = x.numel() // x.shape[1]
        if values < 2 and not adaptation.alone:
            raise InputError(
                "--batch-size: expected more than one value per channel in every batch, whose "
                "variance is unknown otherwise, got 1."
            )
        if adaptation.alone:
            self._put((mean, variance))
            return
        found = mean, variance * (values / (values - 1))
        if adaptation.kind == "batch":
            share = len(x) / (adaptation.prior + len(x))
            share = share if adaptation.alpha is None else adaptation.alpha
            shares = [share * (adaptation.only in (None, name)) for name in STATISTICS]
            self._put(_moved(self._source, found, shares))
            return
        self._seen += 1
        share = 1 / self._seen
        if adaptation.kind == "ema":
            share = adaptation.momentum or MOMENTUM
        self._average = _moved(self._average, found, [share, share])
        self._put((mean, variance) if self.learning else self._average)


def _moved(
    old: Iterable[torch.Tensor], new: Iterable[torch.Tensor], shares: Iterable[float]
) -> list[torch.Tensor]:
    """Return mean and variance moved towards new ones, each by its share of the way."""
    return [
        (1 - share) * before + share * now
        for before, now, share in zip(old, new, shares, strict=True)
    ]
