"""Several processes of one job, as torchrun or SLURM start them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from recal.errors import RecalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


Item = TypeVar("Item")

# what a process waits for the others at most; a process that dies is noticed at once
PATIENCE = timedelta(minutes=30)
REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """The processes of a job, and which of them this one is.

    Attributes:
        rank: Of this process, 0 to size - 1.
        size: Number of processes; 1 where recal was started alone.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def gather(self, item: Item) -> list[Item]:
        """Return every process's item, in order of rank, in every process.

        Raises:
            RecalError: Another process has died or does not answer.
        """
        if self.size == 1:
            return [item]
        import torch.distributed as dist

        items: list[Item | None] = [None] * self.size
        _talk(lambda: dist.all_gather_object(items, item))
        return items  # type: ignore[return-value]

    def ask_leader(self, ask: Callable[[], Item]) -> Item:
        """Return the leader's answer to a question in every process; the others do not ask.

        Raises:
            RecalError: Another process has died or does not answer.
        """
        return self.gather(ask() if self.leads else None)[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Return when every process has come here.

        Raises:
            RecalError: Another process has died or does not answer.
        """
        self.gather(None)


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that the environment describes; alone where it describes none.

    Messages go over gloo, between CPUs: they are moments and counts, a few kB, and the same path
    serves every device. A process that leaves the block by an error breaks its connections, which
    ends the others with an error too.

    Raises:
        RecalError: The environment is incomplete, or the others do not come.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    missing = [name for name in REQUIRED if name not in os.environ]
    if missing:
        raise RecalError(
            f"several processes: expected the environment that torchrun sets, got none of "
            f"{', '.join(missing)}. Start with `torchrun --nproc-per-node N -m recal ...`."
        )
    import torch.distributed as dist

    # imported later, its functions would keep the group, which they have as a default, for good:
    # gloo's threads would outlive the interpreter, and processes end by an abort now and then
    import torch.distributed.nn.functional  # noqa: F401

    _talk(lambda: dist.init_process_group("gloo", timeout=PATIENCE))
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def local_device(name: str) -> str:
    """Return the device of this process: one GPU each where there are several on a machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name


def _talk(call: Callable[[], None]) -> None:
    try:
        call()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RecalError(
            f"several processes: expected an answer from every one, got {reason}. Look for the "
            "first error among their messages; what had been written is kept."
        ) from error
