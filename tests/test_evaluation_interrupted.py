"""Runs that are killed, fill the disk, or are shared by processes: cells are whole or absent."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recal import evaluate
from recal.errors import RecalError

PART = ("--corruptions", "contrast,pixelate,brightness", "--severities", "1,3,5")
OPTIONS = {"corruptions": ["contrast", "pixelate", "brightness"], "severities": [1, 3, 5]}


@pytest.fixture(scope="module")
def whole(split_checkpoint, class_folders, tmp_path_factory):
    """What the interrupted runs have to end with: 10 cells of two targets, by one process."""
    folder = tmp_path_factory.mktemp("whole")
    targets = [str(split_checkpoint), f"{split_checkpoint}:aux0"]
    return evaluate(
        targets, suite="cifar10c", data=class_folders, output=folder / "run", batch_size=7,
        **OPTIONS,
    )  # fmt: skip


def command(split_checkpoint, class_folders, output):
    return [
        sys.executable, "-m", "recal", "eval", str(split_checkpoint), f"{split_checkpoint}:aux0",
        "--suite", "cifar10c", "--data", str(class_folders), "-o", str(output), *PART,
        "--batch-size", "7", "--device", "cpu",
    ]  # fmt: skip


def environment(**more):
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


def assert_equal_cells(folder, whole):
    expected = {path.relative_to(whole.folder) for path in whole.folder.rglob("*.parquet")}
    assert {path.relative_to(folder) for path in folder.rglob("*.parquet")} == expected
    for path in expected:
        a, b = pq.read_table(folder / path), pq.read_table(whole.folder / path)
        assert a.equals(b, check_metadata=True), path


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_same_cells(
    whole, split_checkpoint, class_folders, tmp_path
):
    """Killed with SIGKILL a random while after each new cell; what is there is always whole."""
    arguments = command(split_checkpoint, class_folders, tmp_path / "run")
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(2):
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.parquet")}
        process = subprocess.Popen(
            arguments, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL
        )
        while process.poll() is None:
            if len(list((tmp_path / "run").rglob("*.parquet"))) > len(before):
                time.sleep(rng.uniform(0, 0.05))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        kills += process.wait() == -signal.SIGKILL
        for path, when in before.items():
            assert path.stat().st_mtime_ns == when, "a whole cell was computed again"
        for path in (tmp_path / "run").rglob("*.parquet"):
            assert pq.read_table(path).num_rows == 40
    assert kills
    # what a process leaves that is killed while it writes
    left = tmp_path / "run" / "cells" / ".clean.parquet.abc.partial"
    left.write_bytes(b"PAR1 half a cell")
    evaluate(
        [str(split_checkpoint), f"{split_checkpoint}:aux0"], suite="cifar10c", data=class_folders,
        output=tmp_path / "run", batch_size=7, **OPTIONS,
    )  # fmt: skip
    assert_equal_cells(tmp_path / "run", whole)
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_a_full_disk_loses_the_cell_in_work_alone(
    whole, split_checkpoint, class_folders, tmp_path, monkeypatch
):
    written = []

    def fills_up(table, path, **options):
        if len(written) == 5:
            Path(path).write_bytes(b"PAR1 half a cell")
            raise OSError(28, "No space left on device")
        written.append(path)
        real(table, path, **options)

    real = pq.write_table
    monkeypatch.setattr(pq, "write_table", fills_up)
    targets = [str(split_checkpoint), f"{split_checkpoint}:aux0"]
    options = {
        "suite": "cifar10c", "data": class_folders, "output": tmp_path / "run", "batch_size": 7,
        **OPTIONS,
    }  # fmt: skip
    with pytest.raises(RecalError, match="No space left on device"):
        evaluate(targets, **options)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.parquet")}
    assert len(kept) == 5
    monkeypatch.setattr(pq, "write_table", real)
    evaluate(targets, **options)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert_equal_cells(tmp_path / "run", whole)


@pytest.mark.slow
def test_two_processes_give_the_cells_of_one(whole, split_checkpoint, class_folders, tmp_path):
    arguments = command(split_checkpoint, class_folders, tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--master-port", str(free_port()), *arguments[1:]],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Report: ") == 1, "the leader alone prints"
    assert_equal_cells(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_an_error(
    split_checkpoint, class_folders, tmp_path
):
    arguments = command(split_checkpoint, class_folders, tmp_path / "run")
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", DIES if rank else PASSES, *arguments[3:]], cwd=tmp_path,
            env=environment(RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                            MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL if rank else subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        _, messages = ranks[0].communicate(timeout=120)
        assert ranks[1].wait(timeout=10) == -signal.SIGKILL
    finally:
        for process in ranks:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    assert ranks[0].returncode == 1
    assert "several processes: expected an answer from every one" in messages
    # what was whole stays
    assert len(list((tmp_path / "run").rglob("*.parquet"))) == 2 * 2


PASSES = "import sys; sys.argv[0] = 'recal'; from recal.cli.main import main; main()"
# the other process is killed while it works on the third cell
DIES = (
    "import os, signal, sys; sys.argv[0] = 'recal'\n"
    "from recal.evaluation.scoring import Scorer\n"
    "real, calls = Scorer.score, []\n"
    "def score(*arguments):\n"
    "    calls.append(1)\n"
    "    if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
    "    return real(*arguments)\n"
    "Scorer.score = score\n"
    "from recal.cli.main import main; main()"
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
