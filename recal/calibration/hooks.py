"""Running batches through networks whose BatchNorm layers report what reaches them."""

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from recal.calibration.moments import ImageSums, Moments
from recal.errors import InputError, reason
from recal.variant.plain import batch_norms, first_tensor

Key = TypeVar("Key")
Found = dict[str, Moments]
Listening = Callable[[Any], Found]

# batches that are computed side by side on a CPU; each needs the memory of a forward pass
MAX_LANES = 4
# how a batch is run, for errors, with the arguments of the module to fill in
EXAMPLE = "calibrate(module, loader, forward=lambda module, batch: module({}))"
# what a module raises that is called with something else than it expects
MISUSED = (TypeError, KeyError, IndexError, AttributeError)


def on_images(network: nn.Module, images: torch.Tensor) -> Any:
    """Run a network on images (N, C, H, W) alone.

    Raises:
        InputError: Its code fails as if it expected something else.
    """
    try:
        return network(channels_last(images))
    except MISUSED as error:
        raise InputError(
            f"calibration: expected {type(network).__name__} to run on images "
            f"{tuple(images.shape)} alone, got {type(error).__name__}: {reason(error)}. Say how a "
            f"batch is run, such as {EXAMPLE.format('batch')}."
        ) from error


@dataclass(frozen=True)
class ForwardPass:
    """How networks are run on batches.

    Attributes:
        call: Function of the network and a batch that runs the network. It is called from several
            threads, with copies of the network.
        autocast: Reduced precision of the forward pass, or None.
    """

    call: Callable[[nn.Module, Any], Any] = on_images
    autocast: torch.dtype | None = None

    def __call__(self, network: nn.Module, batch: Any) -> Any:
        """Run a network on a batch, without gradients, and return what the function returns."""
        with torch.inference_mode(), autocasting(device_of([network]), self.autocast):
            return self.call(network, batch)


IMAGES_ALONE = ForwardPass()


class Listener:
    """A copy of a network, in eval mode, that reports the moments at each BatchNorm layer.

    The layers normalise by the running statistics that `on_input` sets just before they run, so
    that dropout and stochastic depth stay off, and subclasses do afterwards what they always do.
    Every batch finds the buffers as they are stored: some modules read running statistics before
    BatchNorm runs, and observers of quantisation-aware training collect ranges in eval mode, too.

    Args:
        network: Any module; it is not changed.
        by_batch: Whether every batch is normalised by its own statistics, as in training, instead
            of the stored ones.
        forward: How it is run.

    Attributes:
        network: The copy.
        output: What the network returned for the last batch.
    """

    def __init__(
        self, network: nn.Module, *, by_batch: bool, forward: ForwardPass = IMAGES_ALONE
    ) -> None:
        self.network = copy.deepcopy(network).eval()
        self._by_batch = by_batch
        self._forward = forward
        self._batch = threading.local()  # in each thread, the images and uses of its batch
        self.output: Any = None
        self._layers = batch_norms(self.network)
        self._buffers = {
            f"{path}.{name}": (module, buffer, buffer.clone())
            for path, module in self.network.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        }
        for name, layer in self._layers.items():
            layer.register_forward_pre_hook(partial(self._hook, name), with_kwargs=True)

    def __call__(self, batch: Any) -> Found:
        """Return the moments at every layer that the batch reaches."""
        self._batch.images = len(batch) if isinstance(batch, torch.Tensor) else 0
        self._batch.uses = {}
        try:
            self.output = self._forward(self.network, batch)
        finally:
            self.restore()
        return self.found()

    def found(self) -> Found:
        """Return the moments of this batch at the layers that it has reached."""
        return {name: Moments.of_uses(uses) for name, uses in self._batch.uses.items() if uses}

    @torch.no_grad()
    def restore(self) -> None:
        """Give all buffers the stored values."""
        for path, (module, buffer, stored) in self._buffers.items():
            if buffer.shape != stored.shape:
                buffer.resize_(stored.shape)
            buffer.copy_(stored)
            module._buffers[path.rpartition(".")[2]] = buffer

    def _hook(
        self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if layer.training:
            raise InputError(
                f"calibration: layer {name}: expected eval mode during the forward pass, got "
                "training mode. Let forward leave modes as they are."
            )
        self.on_input(name, layer, first_tensor(args, kwargs))

    def sums(self, values: torch.Tensor) -> ImageSums:
        """Return the sums of a layer's input for each image, or row if images are not known."""
        return ImageSums.of(values, self._batch.images)

    def on_input(self, name: str, layer: nn.Module, values: torch.Tensor) -> None:
        """Take the moments of a layer's input and choose what it normalises by."""
        sums = self.sums(values)
        self._batch.uses.setdefault(name, []).append(sums)
        if self._by_batch:
            if len(sums.a) * sums.k < 2:
                raise InputError(
                    "calibration: expected more than one value per channel in every batch, got a "
                    f"batch of {len(sums.a)}. Use more images, another batch size, or "
                    "--estimator consistent."
                )
            set_statistics(layer, *sums.mean_and_variance())


def observe(
    networks: Mapping[Key, nn.Module],
    batches: Iterable[Mapping[Key, Any]],
    *,
    listen: Callable[[nn.Module], Listening],
) -> Iterator[tuple[Key, Found]]:
    """Run batches through networks and yield their moments, in the order of the batches.

    On a CPU several batches run side by side, each on its share of the threads, which uses the
    cores better than one batch on all of them.

    Args:
        networks: Networks by a key of the caller's, which are not changed.
        batches: For each key, what `listen`'s function takes, such as images on the network's
            device.
        listen: Function that returns a copy of a network that listens, such as a `Listener`.
    """
    local = threading.local()

    def run(network: nn.Module, batch: Any) -> Found:
        copies: dict[int, Listening] = local.__dict__.setdefault("copies", {})
        if id(network) not in copies:
            copies[id(network)] = listen(network)
        return copies[id(network)](batch)

    jobs = ((key, networks[key], batch) for keyed in batches for key, batch in keyed.items())
    if device_of(networks.values()).type != "cpu":
        yield from ((key, run(network, batch)) for key, network, batch in jobs)
        return
    with (
        cpu_lanes(MAX_LANES) as (count, share),
        ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(share,)) as pool,
    ):
        waiting: deque[tuple[Key, Future[Found]]] = deque()
        try:
            for key, network, batch in jobs:
                waiting.append((key, pool.submit(run, network, batch)))
                if len(waiting) > count:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def cpu_lanes(most: int) -> Iterator[tuple[int, int]]:
    """Divide torch's threads among batches that run side by side, and restore them afterwards.

    Yields:
        The number of batches at a time, and the number of threads for each.
    """
    threads = torch.get_num_threads()
    count = min(threads, most)
    try:
        yield count, threads // count
    finally:
        torch.set_num_threads(threads)


def set_statistics(layer: nn.Module, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Write a layer's running mean and variance."""
    layer.get_buffer("running_mean").copy_(mean)
    layer.get_buffer("running_var").copy_(variance)


def device_of(networks: Iterable[nn.Module]) -> torch.device:
    """Return the device of the first network's parameters or buffers."""
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            return tensor.device
    return torch.device("cpu")


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """Return images (N, C, H, W) with channels innermost in memory, which CPU kernels prefer."""
    # BatchNorm's kernel is less exact in this layout, but moments do not come from it
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


def autocasting(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return the context of a forward pass: autocast to a type, or no change for None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
