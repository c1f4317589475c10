"""Cores and memory of a process: of the machine and its control groups, as the kernel says them."""

import pytest

from recal import machine
from recal.machine import available_memory, cores_of_this_process, may_keep

GIB = 1 << 30


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(
        f"MemTotal: {64 << 20} kB\nMemFree: {1 << 20} kB\nMemAvailable: {40 << 20} kB\n",
        encoding="utf-8",
    )
    return tmp_path


def group(folder, names, limit, used, cached):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names[:2], (limit, used), strict=True):
        (folder / name).write_text(f"{content}\n", encoding="utf-8")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n", encoding="utf-8")


def test_cached_files_count_as_available(root):
    assert available_memory(root) == 40 * GIB


def test_the_tightest_group_of_version_2_decides(root):
    (root / "proc/self/cgroup").write_text("0::/slurm/job_7/step_0\n", encoding="utf-8")
    names = machine.FILES["cgroup"]
    base = root / "sys/fs/cgroup"
    group(base / "slurm/job_7/step_0", names, "max", 3 * GIB, GIB)
    assert available_memory(root) == 40 * GIB
    group(base / "slurm/job_7", names, 8 * GIB, 3 * GIB, GIB)
    assert available_memory(root) == 6 * GIB
    group(base / "slurm", names, 100 * GIB, 95 * GIB, 0)
    assert available_memory(root) == 5 * GIB


@pytest.mark.parametrize("path", ["/docker/abc", "/"])
def test_a_container_of_version_1_is_found_by_either_path(root, path):
    (root / "proc/self/cgroup").write_text(
        f"5:cpu,cpuacct:/x\n4:memory:{path}\n0::/\n", encoding="utf-8"
    )
    names = machine.FILES["cgroup/memory"]
    group(root / "sys/fs/cgroup/memory", names, 2 * GIB, 2 * GIB, GIB)
    assert available_memory(root) == GIB


def test_processes_of_a_machine_share_it(root, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert available_memory(root) == 5 * GIB


def test_without_any_word_a_guess_is_made(tmp_path, monkeypatch):
    monkeypatch.delattr(machine.os, "sysconf", raising=False)
    assert available_memory(tmp_path) == machine.UNKNOWN


def test_what_is_kept_is_a_quarter_at_most_and_bounded(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: GIB)
    assert may_keep(GIB // 4)
    assert not may_keep(GIB // 4 + 1)
    monkeypatch.setattr(machine, "available_memory", lambda: 100 * GIB)
    assert may_keep(2 * GIB)
    assert not may_keep(2 * GIB + 1)


def test_cores_are_shared_by_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: 12)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert cores_of_this_process() == 12
    for processes, share in (("4", 3), ("5", 2), ("64", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert cores_of_this_process() == share
