"""Several processes of one job, as torchrun or SLURM start them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from recal.errors import RecalError, reason

Item = TypeVar("Item")

# longest wait for other processes; a process that dies is noticed at once
PATIENCE = timedelta(minutes=30)
REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """The processes of a job, and the rank of this one.

    Attributes:
        rank: Rank of this process, 0 to size - 1.
        size: Number of processes; 1 if recal was started alone.
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
        """Call a function in the leading process only, and return its result in every process.

        Raises:
            RecalError: Another process has died or does not answer.
        """
        return self.gather(ask() if self.leads else None)[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait until every process has called this.

        Raises:
            RecalError: Another process has died or does not answer.
        """
        self.gather(None)


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes of the job that the environment describes, if any.

    Messages are sent with gloo between CPUs, because they are moments and counts of a few kB. A
    process that leaves the block by an error closes its connections, which ends the others with an
    error too.

    Raises:
        RecalError: The environment is incomplete, or the other processes do not join.
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
    """Return the device of this process: `cuda` becomes a GPU of its own."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name


def _talk(call: Callable[[], None]) -> None:
    try:
        call()
    except RuntimeError as error:
        raise RecalError(
            f"several processes: expected an answer from every one, got {reason(error)}. "
            "Look for the first error among their messages; what had been written is kept."
        ) from error
