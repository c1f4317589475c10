"""The statistics that the deployed network itself sees, estimated layer after layer.

The moments of a layer are taken when those of all earlier layers are final. The result is that of
one training-mode forward pass of all images as a single batch, however they are split into batches.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from recal.calibration.estimators import Estimate, merge_found
from recal.calibration.hooks import (
    IMAGES_ALONE,
    ForwardPass,
    Found,
    Listener,
    cpu_lanes,
    device_of,
    observe,
    on_images,
    set_statistics,
)
from recal.calibration.moments import Moments
from recal.distributed import ALONE, World
from recal.errors import InputError, listed
from recal.machine import available_memory
from recal.progress import Progress, silent
from recal.variant.plain import batch_norms


class _StoppedError(Exception):
    """The forward pass is stopped before its end, on purpose."""


class _UsedOnce(Listener):
    """A listener for networks that use each layer once: then its statistics can be final."""

    def _hook(
        self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if name in self._batch.uses:
            raise InputError(
                f"--estimator consistent: layer {name}: expected one use in a forward pass, got "
                "several, each of which would need the statistics of the next ones. Use "
                "--estimator pooled."
            )
        self._batch.uses[name] = []
        super()._hook(name, layer, args, kwargs)

    def restore(self) -> None:
        """Give all buffers the stored values, if the network has changed none by itself."""
        self.check_unchanged()
        super().restore()

    def check_unchanged(self) -> None:
        """Refuse a network that changes buffers in eval mode, other than those of BatchNorm.

        Its result would depend on the order of the batches.
        """
        own = {id(layer) for layer in self._layers.values()}
        changed = [
            path
            for path, (module, _, stored) in self._buffers.items()
            if id(module) not in own
            and not _equal(module._buffers[path.rpartition(".")[2]], stored)
        ]
        if changed:
            raise InputError(
                "--estimator consistent: expected a network that changes nothing in eval mode, got "
                f"one that changes {listed(changed)}. Switch observers off "
                "(torch.ao.quantization.disable_observer), or use --estimator pooled."
            )


def _equal(found: torch.Tensor | None, stored: torch.Tensor) -> bool:
    if found is None or found.shape != stored.shape:
        return False
    return bool(((found == stored) | (found.isnan() & stored.isnan())).all())


class Meeting(_UsedOnce):
    """Forward passes of all batches, one thread each, that wait for each other at every layer.

    Args:
        network: Any module; it is not changed.
        forward: How it is run.
        side_by_side: Number of passes that run at a time.
        share: Number of CPU threads for each pass.
    """

    def __init__(
        self, network: nn.Module, forward: ForwardPass, side_by_side: int, share: int
    ) -> None:
        super().__init__(network, by_batch=False, forward=forward)
        self._on_cpu = device_of([network]).type == "cpu"
        self._turns = threading.Semaphore(side_by_side)
        self._share = share
        self._lock = threading.Lock()
        self._settled: set[str] = set()
        self._reached: dict[str, dict[int, Moments]] = {}
        self._moving = 0
        self._all_wait = threading.Event()
        self._gate = threading.Event()
        self._error: BaseException | None = None
        self._stopped = False

    def run(self, batches: list[Any], agree: Callable[[Found], Found]) -> Found:
        """Run the batches; return the moments of every layer, which `agree` merges."""
        final: Found = {}
        threads = [
            threading.Thread(target=self._run_one, args=item, daemon=True)
            for item in enumerate(batches)
        ]
        self._moving = len(threads)
        if not threads:
            self._all_wait.set()
        try:
            for thread in threads:
                thread.start()
            while True:
                self._all_wait.wait()
                if self._error is not None:
                    raise self._error
                waiting = {
                    name: merge_found({name: by_batch[n]} for n in sorted(by_batch))[name]
                    for name, by_batch in self._reached.items()
                }
                reached = agree(waiting)
                if not reached:
                    return final
                final |= reached
                for name, moments in reached.items():
                    set_statistics(self._layers[name], moments.mean, moments.variance)
                self._open(set(final))
        finally:
            self._stopped = True
            self._gate.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def _open(self, settled: set[str]) -> None:
        """Let all waiting passes continue to the next layer."""
        with self._lock:
            self._settled = settled
            self._moving = sum(map(len, self._reached.values()))
            self._reached = {}
            if self._moving:
                self._all_wait.clear()
            gate, self._gate = self._gate, threading.Event()
        gate.set()

    def _run_one(self, number: int, batch: Any) -> None:
        self._batch.number = number
        if self._on_cpu:
            torch.set_num_threads(self._share)
        with self._turns:
            try:
                if not self._stopped:
                    self(batch)
            except _StoppedError:
                pass
            except BaseException as error:  # noqa: BLE001  (raised again where it can be seen)
                self._error = self._error or error
            finally:
                self._leave()

    def on_input(self, name: str, layer: nn.Module, values: torch.Tensor) -> None:
        """Report the moments of a batch at a layer, and wait until all are final."""
        if name in self._settled:
            return
        moments = self.sums(values).moments()
        with self._lock:
            self._reached.setdefault(name, {})[self._batch.number] = moments
            gate = self._gate
        self._leave()
        self._turns.release()
        try:
            gate.wait()
        finally:
            self._turns.acquire()
        if self._stopped:
            raise _StoppedError

    def restore(self) -> None:
        """Leave all buffers as they are: threads share the network, and what is final stays."""
        self.check_unchanged()

    def _leave(self) -> None:
        with self._lock:
            self._moving -= 1
            if self._moving == 0:
                self._all_wait.set()


# number of tensors as large as the largest input of a BatchNorm layer that a waiting forward pass
# keeps: that input, the shortcut, and one more for networks that split
KEPT_TENSORS = 3


@dataclass(frozen=True)
class Consistent:
    """The result of `consistent`.

    Attributes:
        layers: The statistics of each layer that saw any data, by path.
        passes: Number of passes of the images through the network; 1 if activations were kept.
    """

    layers: dict[str, Estimate]
    passes: int


def consistent(
    network: nn.Module,
    batches: Iterable[Any],
    *,
    world: World = ALONE,
    forward: ForwardPass = IMAGES_ALONE,
    memory: int | None = None,
    progress: Progress = silent,
) -> Consistent:
    """Estimate the statistics that each layer of the network in eval mode sees.

    If the activations of all images at one layer fit in memory, the forward passes of all batches
    wait for each other at every layer, and the images are read once. Otherwise every pass stops at
    the first layer whose statistics are not final yet, which costs half as many whole passes as
    there are layers.

    Args:
        network: Any module with BatchNorm layers; it is not changed.
        batches: Batches as for `one_pass`, which are the same each time that they are read.
        world: The processes that share the batches.
        forward: How it is run.
        memory: Bytes that activations may take on the device; by default half of the free memory.
        progress: Called with the numbers of layers done and in total.

    Raises:
        InputError: Batches reach the layers in different orders, or have to be read again but are
            an iterator.
    """
    device = device_of([network])
    if memory is None:
        cuda = device.type == "cuda"
        memory = (torch.cuda.mem_get_info(device)[0] if cuda else available_memory()) // 2
    held = _hold(network, batches, forward, memory)
    if held is None and iter(batches) is batches:
        raise InputError(
            "--estimator consistent: expected batches that can be read again, as a list or loader "
            "can, because their activations do not fit in memory; got an iterator."
        )
    # all processes have to decide alike
    if any(other is None for other in world.gather(None if held is None else len(held))):
        again = batches if held is None else held
        return _repeated_passes(network, again, world, forward, progress)
    assert held is not None
    layers, done = len(batch_norms(network)), 0

    def agree(reached: Found) -> Found:
        nonlocal done
        merged = _agreed(reached, world)
        done += len(merged)
        progress(done, layers)
        return merged

    # all batches fit in memory, so every thread of a CPU can have a batch of its own
    with cpu_lanes(torch.get_num_threads() if device.type == "cpu" else 1) as (count, share):
        found = Meeting(network, forward, count, share).run(held, agree)
    return Consistent({name: Estimate.of(moments) for name, moments in found.items()}, 1)


def _hold(
    network: nn.Module, batches: Iterable[Any], forward: ForwardPass, room: int
) -> list[Any] | None:
    """Return all batches, or None if their activations at one layer do not fit in memory.

    One image shows what each needs, or one batch if only `forward` knows what a batch is.
    """
    held: list[Any] = []
    images = forward.call is on_images
    needed = largest = 0

    class Measure(_UsedOnce):
        def on_input(self, name: str, layer: nn.Module, values: torch.Tensor) -> None:
            nonlocal largest
            largest = max(largest, values.numel() * values.element_size())

    for batch in batches:
        if not largest:
            example = batch[:1] if images else batch
            Measure(network, by_batch=False, forward=forward)(example)
        needed += (len(batch) if images else 1) * largest * KEPT_TENSORS
        if needed > room:
            return None
        held.append(batch)
    return held


def _repeated_passes(
    network: nn.Module,
    batches: Iterable[Any],
    world: World,
    forward: ForwardPass,
    progress: Progress,
) -> Consistent:
    settled: dict[str, Estimate] = {}
    listen = partial(_Frontier, settled=settled, forward=forward)
    while True:
        keyed = ({None: batch} for batch in batches)
        parts = (part for _, part in observe({None: network}, keyed, listen=listen))
        # a batch for which every layer is final ends the pass
        reached = _agreed(merge_found(takewhile(bool, parts)), world)
        if not reached:
            return Consistent(settled, len(settled))
        settled |= {name: Estimate.of(moments) for name, moments in reached.items()}
        progress(len(settled), len(batch_norms(network)))


class _Frontier(_UsedOnce):
    """Listens at the first layer whose statistics are not final, and stops there."""

    def __init__(
        self, network: nn.Module, settled: dict[str, Estimate], forward: ForwardPass
    ) -> None:
        super().__init__(network, by_batch=False, forward=forward)
        self._settled = settled

    def __call__(self, batch: Any) -> Found:
        try:
            super().__call__(batch)
        except _StoppedError:
            return self.found()
        return {}  # every layer on the way to the output is settled

    def on_input(self, name: str, layer: nn.Module, values: torch.Tensor) -> None:
        if name in self._settled:
            set_statistics(layer, self._settled[name].mean, self._settled[name].variance)
            return
        self._batch.uses[name].append(self.sums(values))
        raise _StoppedError


def _agreed(reached: Found, world: World) -> Found:
    """Merge the moments that all processes have at the layer that they have reached."""
    merged = merge_found(world.gather({name: m.on_cpu() for name, m in reached.items()}))
    if len(merged) > 1:
        raise InputError(
            "--estimator consistent: expected every batch to reach the BatchNorm layers in the "
            f"same order, got some at {' and some at '.join(merged)}. Use --estimator pooled."
        )
    return merged
