"""How a network must be fed: which normalisation its stored statistics fit, judged on images.

The first BatchNorm layer that runs is near the input, so its stored statistics show what the
network was trained on. Images are normalised in every usual way, and the moments that they have at
this layer are compared with the stored ones. docs/evidence.md has the figures behind the bounds.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from recal.calibration.estimators import merge_found
from recal.calibration.hooks import Listener
from recal.calibration.moments import Moments
from recal.checkpoint.checkpoint import Checkpoint
from recal.data.images import ImageSource
from recal.data.normalise import Normalisation, normalise
from recal.errors import BrokenImageError, InputError, RecalWarning, UsageError, reason
from recal.networks.detect import RGB
from recal.networks.feeding import AS_ASSUMED, describe_input, format_channels
from recal.networks.spec import ModelSpec
from recal.policies.families import family_names, load_family
from recal.policies.prepared import PreparedImages
from recal.variant.build import build

# number of images: more of them where they are small
MANY, FEW, SMALL = 256, 64, 64
BATCH = 32
EPS = 1e-5
# Squared Hellinger distances, in [0, 1]. Right normalisations have at most 0.03 for training images
# that were noisy or strongly augmented; wrong ones are 0.045 further away, and five times as far.
FITS, FURTHER, TIMES = 0.03, 0.04, 4.0
# the other order of channels moves the means alone: both orders are compared under the same mean
# and std, whose distances augmentation and corruptions change by less than half
ORDER_FURTHER, ORDER_TIMES = 0.003, 3.0
# two normalisations that cannot be told apart; the one that is likelier by itself is named
ALIKE = 0.01


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How far stored statistics are from those of images under one normalisation.

    Attributes:
        what: The normalisation in words.
        normalisation: Mean, std and order of the channels.
        distances: Squared Hellinger distance of each branch, in [0, 1], mean over the channels of
            the first BatchNorm layer.
    """

    what: str
    normalisation: Normalisation
    distances: Mapping[str, float]

    @property
    def distance(self) -> float:
        """The distance of the branch that fits best, because all branches are fed alike."""
        return min(self.distances.values())


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """What images say about how a network must be fed.

    Attributes:
        layer: The first BatchNorm layer that runs; empty if nothing could be compared.
        images: Number of images.
        fits: The normalisations that were compared; first the one that is assumed.
        better: The one that fits clearly better than the assumed one, or None.
        unfit: Whether another one is clearly nearer than the assumed one, but none fits.
        verdict: A sentence for people.
    """

    layer: str
    images: int
    fits: tuple[Fit, ...]
    better: Fit | None
    unfit: bool
    verdict: str


def look(checkpoint: Checkpoint, spec: ModelSpec, pixels: NDArray[np.uint8]) -> Feeding:
    """Compare the stored statistics of every branch with those of images, as they may be fed.

    Args:
        checkpoint: The network, as stored.
        spec: How it is assumed to be fed.
        pixels: Prepared images, uint8 (N, H, W, 3).
    """
    try:
        first = _FirstLayer(build(checkpoint), pixels, spec.normalisation)
    except Exception as error:  # noqa: BLE001 - code of the user's, which the command reports
        return _untold(f"the network does not run alone ({reason(error)})")
    if first.layer is None:
        return _untold("it uses no BatchNorm layer")
    stored = _stored(checkpoint, first.layer)
    if not stored:
        return _untold(f"no branch has usable statistics at {first.layer}")

    def fit(what: str, normalisation: Normalisation) -> Fit:
        moments = first.moments(normalisation)
        distances = {
            name: _hellinger(mean, variance, moments) for name, (mean, variance) in stored.items()
        }
        return Fit(what=what, normalisation=normalisation, distances=distances)

    assumed = fit("as assumed", spec.normalisation)
    others = [
        fit(what, replace(normalisation, channel_order=spec.channel_order))
        for what, normalisation in _usual(spec).items()
    ]
    fits = [assumed, *others]
    closest = min(item.distance for item in fits)
    best = next(item for item in fits if item.distance <= closest + ALIKE)
    unfit = closest > FITS and _further(assumed, best, FURTHER, TIMES)
    if not (best.distance <= FITS and _further(assumed, best, FURTHER, TIMES)):
        best = assumed
    if spec.channels == RGB:
        swapped = replace(
            best.normalisation, channel_order="rgb" if spec.channel_order == "bgr" else "bgr"
        )
        other_order = fit(f"{best.what}, channels reversed", swapped)
        fits.insert(fits.index(best) + 1, other_order)
        if other_order.distance <= FITS and _further(best, other_order, ORDER_FURTHER, ORDER_TIMES):
            best = other_order
    return Feeding(
        layer=first.layer,
        images=len(pixels),
        fits=tuple(fits),
        better=None if best is assumed else best,
        unfit=unfit,
        verdict=_unfit(assumed, closest) if unfit else _verdict(assumed, best, others),
    )


def check_feeding(
    checkpoint: Checkpoint, spec: ModelSpec, pixels: NDArray[np.uint8] | None
) -> None:
    """Raise an error if a network would be fed wrongly, judged on images by `look`.

    Where the user or the file gives mean and std, it is a `RecalWarning` instead. Nothing is
    checked without images, or if the user wants what is assumed.

    Raises:
        UsageError: Another normalisation than the assumed one fits clearly better.
    """
    if pixels is None or spec.input_from == AS_ASSUMED:
        return
    fault = misfit(checkpoint, spec, look(checkpoint, spec, pixels))
    if fault is not None:
        raise fault


def misfit(checkpoint: Checkpoint, spec: ModelSpec, feeding: Feeding) -> UsageError | None:
    """Return the error that `check_feeding` raises, or None; where it only warns, warn."""
    if spec.input_from == AS_ASSUMED or (feeding.better is None and not feeding.unfit):
        return None
    told = f"{checkpoint.path}: fed with {spec.feeding}: {feeding.verdict}"
    if feeding.better is None:
        advice = "Give the --mean and --std of the training code if it used others."
    elif spec.input_from in ("given", "file"):
        advice = f"Give {options_for(feeding.better, spec)} if that is how it was trained."
    else:
        return UsageError(
            f"{checkpoint.path}: expected images as the network was trained on, got "
            f"{spec.feeding}: {feeding.verdict} Give {options_for(feeding.better, spec)}, or "
            "--mean as-assumed to go on regardless."
        )
    warnings.warn(f"{told} {advice}", RecalWarning, stacklevel=2)
    return None


def options_for(fit: Fit, spec: ModelSpec) -> str:
    """Return the options that feed a network so, such as `--mean 0 --std 1`."""
    wanted = fit.normalisation
    words = []
    if (wanted.mean, wanted.std) != (spec.mean, spec.std):
        words = [f"--mean {format_channels(wanted.mean)} --std {format_channels(wanted.std)}"]
    if wanted.channel_order != spec.channel_order:
        words.append(f"--channel-order {wanted.channel_order}")
    return " ".join(words)


def sample_pixels(source: ImageSource, spec: ModelSpec) -> NDArray[np.uint8] | None:
    """Return some images of a source as the network takes them, uint8 (N, size, size, 3).

    It is None if they cannot be prepared for the network. Broken images are left out.
    """
    images = PreparedImages(source, spec.clean_policy, 0, spec.preparation)
    read = []
    for index in chosen(len(source), spec.size):
        try:
            read.append(images.read(int(index)))
        except BrokenImageError:
            continue
        except InputError:
            return None
    return np.stack(read) if read else None


def chosen(available: int, size: int) -> NDArray[np.int64]:
    """Return the rising indices of the images to look at, out of those of a network's size."""
    wanted = MANY if size <= SMALL else FEW
    return np.sort(np.random.default_rng(0).permutation(available)[:wanted])


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass at the first BatchNorm layer."""


class _FirstLayer(Listener):
    """The network up to the first BatchNorm layer that runs, and images for it."""

    def __init__(
        self, network: torch.nn.Module, pixels: NDArray[np.uint8], normalisation: Normalisation
    ) -> None:
        super().__init__(network, by_batch=False)
        self._parts = torch.split(torch.from_numpy(pixels), BATCH)
        self.layer = next(iter(self._moments(self._parts[:1], normalisation)), None)

    def on_input(self, name: str, layer: torch.nn.Module, values: torch.Tensor) -> None:
        """Take the moments of the layer's input, and end the pass."""
        super().on_input(name, layer, values)
        raise _Reached

    def moments(self, normalisation: Normalisation) -> Moments:
        """Return the moments of the layer's input for all images."""
        (found,) = self._moments(self._parts, normalisation).values()
        return found

    def _moments(
        self, parts: Sequence[torch.Tensor], normalisation: Normalisation
    ) -> dict[str, Moments]:
        found = []
        for part in parts:
            with suppress(_Reached):
                self(normalise(part, normalisation, torch.device("cpu")))
            found.append(self.found())
        return merge_found(found)


def _usual(spec: ModelSpec) -> dict[str, Normalisation]:
    """Return the usual normalisations, the likelier ones first, without the assumed one."""
    usual = {
        "[0, 1], not normalised": _uniform(0.0, 1.0, spec),
        "[-1, 1]": _uniform(0.5, 0.5, spec),
        "[0, 255], not normalised": _uniform(0.0, 1 / 255, spec),
    }
    if spec.channels == RGB:
        names = [spec.family, *(name for name in family_names() if name != spec.family)]
        usual |= {f"{n}'s": load_family(n).normalisation for n in names if n != "sample"}
        less_mean = Normalisation(load_family("imagenet").mean, (1 / 255,) * RGB)
        usual["[0, 255], less imagenet's mean"] = less_mean
    assumed = spec.normalisation.numbers
    return {
        what: n
        for what, n in usual.items()
        if np.abs(np.sort(n.numbers) - np.sort(assumed)).max() > 1e-6
    }


def _uniform(mean: float, std: float, spec: ModelSpec) -> Normalisation:
    return Normalisation((mean,) * spec.channels, (std,) * spec.channels)


def _stored(
    checkpoint: Checkpoint, layer: str
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the mean and variance of the branches that were trained and are finite."""
    result = {}
    for name, tensors in checkpoint.branches.items():
        if f"{layer}.running_mean" not in tensors:
            continue
        mean, variance = (
            tensors[f"{layer}.{leaf}"].double().numpy() for leaf in ("running_mean", "running_var")
        )
        trained = mean.any() or (variance != 1).any()
        if trained and np.isfinite(mean).all() and np.isfinite(variance).all():
            result[name] = mean, np.maximum(variance, 0)
    return result


def _hellinger(mean: NDArray[np.float64], variance: NDArray[np.float64], moments: Moments) -> float:
    """Return the squared Hellinger distance of two Gaussians, mean over channels."""
    found, spread = moments.mean.double().numpy(), moments.variance.double().numpy() + EPS
    variance = variance + EPS
    total = variance + spread
    overlap = np.sqrt(2 * np.sqrt(variance * spread) / total)
    return float(np.mean(1 - overlap * np.exp(-np.square(mean - found) / (4 * total))))


def _further(assumed: Fit, best: Fit, further: float, times: float) -> bool:
    """Tell whether a fit is clearly better than the assumed one."""
    return assumed.distance >= max(best.distance + further, best.distance * times)


def _untold(why: str) -> Feeding:
    return Feeding(
        layer="",
        images=0,
        fits=(),
        better=None,
        unfit=False,
        verdict=f"Images cannot tell, because {why}.",
    )


def _unfit(assumed: Fit, closest: float) -> str:
    return (
        "the statistics of the first BatchNorm layer fit these images under no usual normalisation "
        f"(distance {assumed.distance:.4f}, and {closest:.4f} under the nearest)."
    )


def _verdict(assumed: Fit, best: Fit, others: Sequence[Fit]) -> str:
    if best is not assumed:
        return (
            f"the statistics of the first BatchNorm layer fit {describe_input(best.normalisation)} "
            f"clearly better (distance {best.distance:.4f} instead of {assumed.distance:.4f})."
        )
    if assumed.distance > FITS:
        return "No usual normalisation fits these images clearly better."
    if max(other.distance for other in others) - assumed.distance < FURTHER:
        return "Images cannot tell, because every normalisation fits alike."
    return "The images confirm what is assumed."
