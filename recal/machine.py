"""Cores and memory that a process may use, by the machine and its control groups."""

import os
from collections.abc import Iterator
from pathlib import Path

# a cautious guess if the system does not report it
UNKNOWN = 4 << 30
# images that are read several times are kept in memory up to this size, and up to a quarter of the
# available memory, because the machine may be a small device
KEPT_BYTES = 2 << 30
# names of the limit, the usage and the reclaimable part of it, by version of control groups
FILES = {
    "cgroup": ("memory.max", "memory.current", "inactive_file"),
    "cgroup/memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def may_keep(size: int) -> bool:
    """Whether decoded images of this size in bytes may be kept in memory."""
    return size <= min(KEPT_BYTES, available_memory() // 4)


def available_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_of_this_process() -> int:
    """Return this process's share of the cores, which torchrun's processes divide evenly."""
    return max(1, available_cores() // _processes())


def available_memory(root: Path = Path("/")) -> int:
    """Return the number of bytes that this process may allocate before anything is killed.

    Cached files count as available, because the system releases them. The processes that torchrun
    starts on a machine get equal shares.

    Args:
        root: The folder of `proc` and `sys`.

    Source: proc(5), MemAvailable; the kernel's documentation of cgroup-v2 and of v1's memory.
    """
    return min((_of_machine(root), *_of_groups(root))) // _processes()


def _processes() -> int:
    """Return the number of processes that torchrun has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _of_machine(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN


def _of_groups(root: Path) -> Iterator[int]:
    """Yield the bytes left under every limit of a control group of this process."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        kind = "cgroup/memory" if controllers else "cgroup"
        base = root / "sys/fs" / kind
        group = base / path.lstrip("/")
        # inside a container the path may be the host's; then the base is the container's own
        for place in (group, *group.parents):
            if place.is_relative_to(base):
                yield from _left(place, *FILES[kind])


def _left(group: Path, limit: str, used: str, cached: str) -> Iterator[int]:
    most, taken = _read(group / limit).strip(), _read(group / used).strip()
    if not (most.isdecimal() and taken.isdecimal()):  # `max`, or no such group
        return
    given_back = 0
    for line in _read(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == cached:
            given_back = int(value)
    yield max(0, int(most) - int(taken) + given_back)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
