"""Forward passes that wait for each other at every BatchNorm layer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from recal.bn.estimators import merge_found
from recal.bn.layers import batch_norms
from recal.bn.moments import Moments
from recal.bn.observing import Found, Listener, channels_last, set_statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm


class _StoppedError(Exception):
    """Another forward pass has failed."""


class Meeting(Listener):
    """Where the forward passes of all batches, a thread each, wait for each other at every layer.

    Args:
        network: Any module; not changed.
        autocast: Reduced precision for the forward pass.
        side_by_side: How many run at a time.
        share: Threads of the CPU for each.
    """

    def __init__(
        self, network: nn.Module, autocast: torch.dtype | None, side_by_side: int, share: int
    ) -> None:
        super().__init__(network, by_batch=False, autocast=autocast)
        self._turns = threading.Semaphore(side_by_side)
        self._share = share
        self._own = threading.local()
        self._lock = threading.Lock()
        self._settled: set[str] = set()
        self._reached: dict[str, dict[int, Moments]] = {}
        self._moving = 0
        self._all_wait = threading.Event()
        self._gate = threading.Event()
        self._error: BaseException | None = None
        self._stopped = False

    def run(self, batches: list[torch.Tensor], agree: Callable[[Found], Found]) -> Found:
        """Send the batches through and return every layer's moments; `agree` merges processes."""
        layers = batch_norms(self.network)
        final: Found = {}
        threads = [
            threading.Thread(target=self._forward, args=(number, batches), daemon=True)
            for number in range(len(batches))
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
                    set_statistics(layers[name], moments.mean, moments.variance)
                self._open(set(final))
        finally:
            self._stopped = True
            self._gate.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def _open(self, settled: set[str]) -> None:
        """Let all that wait go on to the next layer."""
        with self._lock:
            self._settled = settled
            self._moving = sum(map(len, self._reached.values()))
            self._reached = {}
            if self._moving:
                self._all_wait.clear()
            gate, self._gate = self._gate, threading.Event()
        gate.set()

    def _forward(self, number: int, batches: list[torch.Tensor]) -> None:
        self._own.number = number
        batch = channels_last(batches[number])
        if batch.device.type == "cpu":
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

    def on_input(self, name: str, layer: _BatchNorm, values: torch.Tensor) -> None:
        """Report a batch's moments at a layer, and wait there until those of all are final."""
        if name in self._settled:
            return
        moments = Moments.of(values)
        with self._lock:
            self._reached.setdefault(name, {})[self._own.number] = moments
            gate = self._gate
        self._leave()
        self._turns.release()
        try:
            gate.wait()
        finally:
            self._turns.acquire()
        if self._stopped:
            raise _StoppedError

    def _leave(self) -> None:
        with self._lock:
            self._moving -= 1
            if self._moving == 0:
                self._all_wait.set()
