"""Parts of a run, in jobs of their own: together they end as one process does, to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recal import evaluate
from recal.cli.submit import Submission, submit_parts
from recal.distributed import Part
from recal.errors import InputError, LockedError, UsageError
from recal.files import locked
from recal.runs.parts import cells_left, read_parts, write_part
from recal.runs.store import open_run
from recal.runs.summary import read_summary

OPTIONS = {
    "suite": "cifar10c", "corruptions": ["contrast", "brightness"], "severities": [1, 5],
    "batch_size": 7, "limit": 20,
}  # fmt: skip
WORDS = [
    "--suite", "cifar10c", "--corruptions", "contrast,brightness", "--severities", "1,5",
    "--batch-size", "7", "--limit", "20", "--device", "cpu",
]  # fmt: skip
# a process that holds a lock as recal does, and dies without releasing it
DIES_LOCKED = """
import os, sys
from pathlib import Path
from recal.files import locked
with locked(Path(sys.argv[1]), sys.argv[2]):
    os._exit(9)
"""


@pytest.fixture(scope="module")
def targets(split_checkpoint):
    return [str(split_checkpoint), f"{split_checkpoint}:aux0"]


@pytest.fixture(scope="module")
def whole(targets, class_folders, tmp_path_factory):
    """The run of one process: five cells of two targets."""
    output = tmp_path_factory.mktemp("whole") / "run"
    return evaluate(targets, data=class_folders, output=output, **OPTIONS)


def environment():
    root = Path(__file__).parents[1]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def die_locked(folder, name):
    command = [sys.executable, "-c", DIES_LOCKED, str(folder), name]
    assert subprocess.run(command, env=environment(), check=False).returncode == 9
    assert (folder / name).is_file()


def assert_equal_runs(folder, whole):
    expected = {path.relative_to(whole.folder) for path in whole.folder.rglob("*.parquet")}
    assert {path.relative_to(folder) for path in folder.rglob("*.parquet")} == expected
    for path in expected:
        a, b = pq.read_table(folder / path), pq.read_table(whole.folder / path)
        assert a.equals(b, check_metadata=True), path
    for name in ("run.json", "summary.json", "summary.csv", "classes.csv"):
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


@pytest.mark.parametrize("order", [(2, 3, 1), (7, 2, 3, 1, 4, 6, 5)])
def test_parts_in_any_order_end_as_one_process_does(whole, targets, class_folders, tmp_path, order):
    """With seven parts, two have none of the five cells."""
    folder = tmp_path / "run"
    for number in order:
        assert not (folder / "summary.json").exists()
        run = evaluate(
            targets, data=class_folders, output=folder, part=f"{number}/{len(order)}", **OPTIONS
        )
    assert run.left == ()
    assert run.summary == whole.summary == read_summary(folder)
    assert_equal_runs(folder, whole)
    assert not list(folder.rglob("*.lock"))


def test_another_number_of_parts_later_goes_on_with_the_cells_that_are_there(
    whole, targets, class_folders, tmp_path
):
    options = {**OPTIONS, "data": class_folders, "output": tmp_path / "run"}
    first = evaluate(targets, part="1/2", **options)
    assert first.left == ("brightness-1", "contrast-1")
    times = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.parquet")}
    evaluate(targets, part="1/3", **options)
    evaluate(targets, part="2/3", **options)
    assert_equal_runs(first.folder, whole)
    assert all(path.stat().st_mtime_ns == when for path, when in times.items())


def test_a_part_takes_over_what_a_dead_one_has_left(whole, targets, class_folders, tmp_path):
    """The dead part has written one of its three cells; its lock is still there."""
    options = {**OPTIONS, "data": class_folders, "output": tmp_path / "run"}
    folder = evaluate(targets, part="1/2", **options).folder
    record = read_parts(folder, open_run(folder).record.request)[0]
    held = {name: cells[:1] for name, cells in record.held.items()}
    write_part(folder, type(record)(request=record.request, number=1, count=2, held=held))
    for path in folder.rglob("brightness-5.parquet"):
        path.unlink()
    die_locked(folder / "parts", ".1-of-2.lock")
    run = evaluate(targets, part="2/2", **options)
    assert run.left == ()
    assert_equal_runs(folder, whole)


def test_a_part_that_is_queued_or_alive_is_left_alone(targets, class_folders, tmp_path):
    options = {**OPTIONS, "data": class_folders, "output": tmp_path / "run"}
    folder = evaluate(targets, part="1/3", **options).folder
    record = read_parts(folder, open_run(folder).record.request)[0]
    write_part(folder, type(record)(request=record.request, number=3, count=3))
    with locked(folder / "parts", ".3-of-3.lock"):
        assert evaluate(targets, part="2/3", **options).left == ("brightness-5",)


def test_two_jobs_of_one_part_are_one_error(targets, class_folders, tmp_path):
    options = {**OPTIONS, "data": class_folders, "output": tmp_path / "run"}
    expected = rf"another recal process writes to part 1/2 \(process {os.getpid()} on "
    with (
        locked(tmp_path / "run" / "parts", ".1-of-2.lock"),
        pytest.raises(LockedError, match=expected),
    ):
        evaluate(targets, part="1/2", **options)
    with (
        locked(tmp_path / "run" / "parts", ".1-of-2.lock"),
        pytest.raises(LockedError, match="part 1/2"),
    ):
        evaluate(targets, **options)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"limit": 10}, "another one: images"),
        ({"seed": 1}, r"seed \(1 instead of 0\)"),
        ({"corruptions": ["contrast"]}, "cells"),
        ({"backend": "torch"}, r"execution \('torch cpu 7' instead of 'onnxruntime'\)"),
    ],
)
def test_parts_of_different_requests_in_one_folder_are_one_error(
    targets, class_folders, tmp_path, change, named
):
    options = {**OPTIONS, "data": class_folders, "output": tmp_path / "run"}
    evaluate(targets, part="1/2", **options)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(InputError, match=named):
        evaluate(targets, part="2/2", **{**options, **change})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/2/3", "1/999999999"])
def test_parts_that_do_not_exist_are_refused(text):
    with pytest.raises(UsageError, match="--part: expected"):
        Part.parse(text)


def test_a_damaged_record_of_a_part_is_named(targets, class_folders, tmp_path):
    options = {**OPTIONS, "data": class_folders, "output": tmp_path / "run"}
    folder = evaluate(targets, part="1/2", **options).folder
    (folder / "parts" / "1-of-2.json").write_text('{"request": ', encoding="utf-8")
    with pytest.raises(InputError, match=r"1-of-2\.json: expected JSON.*run this part again"):
        open_run(folder)


def test_report_is_of_what_is_there(recal, targets, class_folders, tmp_path):
    words = [*targets, *WORDS, "--data", class_folders, "-o", "run"]
    status, out, err = recal("eval", *words, "--part", "1/2")
    assert status == 0, err
    assert "Part 1/2 is done; other parts have 2 cells left: brightness-1, contrast-1." in out
    status, _, err = recal("report", "run")
    assert status == 0
    assert "warning: 2 of 5 cells are left: brightness-1, contrast-1." in err
    assert len(read_summary(tmp_path / "run").cells) == 2 * 3
    status, out, _ = recal("eval", *words, "--part", "2/2", "--json")
    assert status == 0
    assert len(json.loads(out)["cells"]) == 2 * 5
    assert recal("report", "run")[2] == ""


def test_a_lock_of_a_dead_process_on_another_machine_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr("recal.files.DEAD", 0.4)
    monkeypatch.setattr("recal.files.RENEWED", 0.1)
    monkeypatch.setattr("recal.files.POLLED", 0.05)
    with locked(tmp_path):
        text = (tmp_path / ".lock").read_text(encoding="utf-8")
    host = os.uname().nodename
    assert host in text
    (tmp_path / ".lock").write_text(text.replace(host, f"not-{host}"), encoding="utf-8")
    with locked(tmp_path):
        assert host in (tmp_path / ".lock").read_text(encoding="utf-8")
    assert not (tmp_path / ".lock").exists()


def test_a_lock_of_a_living_process_on_another_machine_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("recal.files.RENEWED", 0.1)
    monkeypatch.setattr("recal.files.POLLED", 0.05)
    with locked(tmp_path):
        monkeypatch.setattr("socket.gethostname", lambda: "another")
        with pytest.raises(LockedError, match="another recal process"), locked(tmp_path):
            pass


@pytest.mark.slow
def test_three_jobs_of_submitit_one_of_them_killed_end_as_one_process_does(
    whole, targets, class_folders, tmp_path, monkeypatch
):
    pytest.importorskip("submitit", reason="an extra")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    folder = tmp_path / "run"
    words = [*WORDS, "--data", str(class_folders), "-o", str(folder), "--", *targets]
    submission = Submission(submit="local", array=3, gpus=0, cpus=None, time=5)
    jobs = submit_parts(folder, words, submission)
    killed = folder / "parts" / "1-of-3.json"
    while not killed.exists():
        assert jobs[0].state == "RUNNING", jobs[0].stderr()
        time.sleep(0.01)
    controller = int(jobs[0].job_id)
    children = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    for pid in (controller, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    jobs[0].wait()
    for job in jobs[1:]:
        job.wait()
        assert job.exception() is None, job.stderr()
    run = open_run(folder)
    if run.parts and cells_left(run.record.cells, run.parts):  # the others were done before
        evaluate(targets, data=class_folders, output=folder, part="1/3", **OPTIONS)
    assert_equal_runs(folder, whole)
