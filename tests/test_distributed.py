"""Several processes of one job give what one process gives, and end together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow

ESTIMATES = """
import json, sys
import torch
from recal.calibration.consistent import consistent
from recal.calibration.estimators import one_pass
from recal.distributed import joined
from tests.test_calibration_estimators import make_images, make_network

with joined() as world:
    # seven ragged batches: the shares are uneven
    batches = list(make_images(45).double().split(7))[world.rank :: world.size]
    network = make_network().double()
    found = {name: one_pass(network, batches, estimator=name, world=world)
             for name in ("pooled", "mean-of-batches", "ema")}
    for memory in (None, 0):
        found[f"consistent {memory}"] = consistent(
            network, batches, world=world, memory=memory).layers
    result = {
        f"{name} {layer}": [*estimate.mean.tolist(), *estimate.variance.tolist(),
                            *map(float, torch.cat(estimate.moments.standard_errors()))]
        for name, layers in found.items() for layer, estimate in layers.items()
    }
    if len({json.dumps(each) for each in world.gather(result)}) != 1:
        sys.exit("the processes disagree")
    if world.leads:
        print(json.dumps(result))
"""
DIES = """
import os
from recal.distributed import joined

with joined() as world:
    world.wait()
    if world.rank == 1:
        os._exit(9)
    world.wait()
"""
LEAVES = """
import weakref
import torch.distributed as dist
from recal.distributed import joined

with joined() as world:
    group = weakref.ref(dist.group.WORLD)
    import torch.distributed.nn.functional  # as torch's own modules do when they are first used
    world.gather(world.rank)
assert group() is None, "its threads go on"
"""
ROOT = Path(__file__).parent.parent


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def torchrun(*arguments, cwd):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=cwd, env=environment(), capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip


def test_two_processes_with_uneven_shares_estimate_what_one_does(tmp_path):
    script = tmp_path / "estimates.py"
    script.write_text(ESTIMATES, encoding="utf-8")
    alone = subprocess.run(
        [sys.executable, script], env=environment(), capture_output=True, text=True, check=True
    )
    expected, both = json.loads(alone.stdout), torchrun(script, cwd=tmp_path)
    assert both.returncode == 0, both.stderr
    found = json.loads(both.stdout)
    assert found.keys() == expected.keys()
    assert len(expected) == 15
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12, atol=1e-12, err_msg=name)


def test_nothing_of_the_group_is_left_when_it_ends(tmp_path):
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES, encoding="utf-8")
    done = torchrun(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "options", [["--mode", "strong"], ["--estimator", "consistent"], ["--tolerance", "0.9"]]
)
def test_recal_calibrate_under_torchrun_writes_what_one_process_writes(
    split_checkpoint, class_folders, tmp_path, options
):
    arguments = [
        "-m", "recal", "calibrate", split_checkpoint, "--data", class_folders, "--batch-size", 13,
        "--workers", 0, *options, "-o",
    ]  # fmt: skip
    both = torchrun(*arguments, "both.safetensors", cwd=tmp_path)
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("Wrote both.safetensors") == 1
    command = [sys.executable, *map(str, arguments), "alone.safetensors"]
    subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, check=True)
    alone = load_file(tmp_path / "alone.safetensors")
    for name, values in load_file(tmp_path / "both.safetensors").items():
        np.testing.assert_allclose(values, alone[name], rtol=1e-6, atol=1e-7, err_msg=name)


def test_a_process_that_dies_ends_the_job_with_an_error(tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(DIES, encoding="utf-8")
    # without torchrun, which would end the other process itself
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, script], env=environment(RANK=str(rank), **place),
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    message = processes[0].communicate(timeout=60)[1]
    processes[1].communicate(timeout=60)
    assert [process.returncode for process in processes] == [1, 9]
    assert "several processes: expected an answer from every one" in message


def test_one_process_with_a_broken_image_ends_the_job_and_leaves_nothing(
    split_checkpoint, class_folders, tmp_path
):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, path in enumerate(sorted(class_folders.glob("train/*/*.png"))[:20]):
        (folder / f"{i:02d}.png").write_bytes(path.read_bytes() if i != 11 else b"\x89PNG no more")
    done = torchrun(
        "-m", "recal", "calibrate", split_checkpoint, "--data", folder, "--batch-size", 5,
        "--workers", 0, "-o", "v.safetensors", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode != 0
    assert "1 out of 20 that cannot be decoded" in done.stderr
    assert "11.png" in done.stderr
    assert not (tmp_path / "v.safetensors").exists()


def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
