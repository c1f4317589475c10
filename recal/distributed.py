"""Several processes of one job, as torchrun or SLURM start them; parts for jobs of their own."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from recal.errors import RecalError, UsageError, reason, shown

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


@dataclass(frozen=True)
class Part:
    """One of several parts of some work, which any number of jobs do in any order.

    Attributes:
        number: Number of this part, 1 to count.
        count: Number of parts; 1 for all of the work.

    Raises:
        UsageError: There is no such part.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UsageError(
                f"--part: expected 1/{self.count} to {self.count}/{self.count}, got {self}."
            )

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read a part from text such as `3/16`."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 0 < int(count) <= MOST_PARTS):
            raise UsageError(
                "--part: expected a number and the number of parts such as 3/16, got "
                f"{shown(text)}."
            )
        return cls(int(number), int(count))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """The part in names of files."""
        return f"{self.number}-of-{self.count}"

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return the items of this part: every count-th one."""
        return [*items[self.number - 1 :: self.count]]


MOST_PARTS = 100_000
WHOLE = Part()


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
