"""What several tests build on: a small checkpoint with branches, folders of images, the command."""
# ruff: noqa: E402  (the environment is set first)

import functools
import os
import sys

# the processes that run the tests share the cores; this also holds for what they start
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import hypothesis
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from timm.layers import convert_splitbn_model

from recal.cli.main import main
from recal.cli.main import recal as group
from recal.machine import available_cores
from recal.networks.names import create_network

# the same examples on every run, and none that fails because the machine is busy
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")

MOST_PROCESSES = 8  # each holds torch and what else is imported


def pytest_xdist_auto_num_workers(config):
    """Return one process a core for all the tests, and none beside pytest for named files."""
    if any(".py" in argument for argument in config.args):
        return 0
    return min(available_cores(), MOST_PROCESSES)


@pytest.fixture(scope="session")
def split_checkpoint(tmp_path_factory):
    """A WRN-10-1 with timm's split BN, all of whose BN tensors are random."""
    torch.manual_seed(0)
    network = convert_splitbn_model(create_network("wrn10_1", 10), 2)
    for name, tensor in network.state_dict().items():
        if "bn" in name and tensor.is_floating_point():
            if name.endswith("running_var") or name.endswith(".weight"):
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.normal_(0, 0.3)
    path = tmp_path_factory.mktemp("checkpoint") / "split.pth"
    torch.save({"arch": "wrn10_1", "state_dict": network.state_dict()}, path)
    return path


@pytest.fixture(scope="session")
def exported(split_checkpoint, tmp_path_factory):
    """A function that returns the bytes of an export of the checkpoint, made once for its options.

    It is for tests of what is done with a file: tests of the export itself make their own.
    """
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def export(*options):
        path = folder / "exported.onnx"
        arguments = ["export", str(split_checkpoint), "-o", str(path), *options]
        result = CliRunner().invoke(group, arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return path.read_bytes()

    return export


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory):
    """Ten classes of 32x32 pictures: 6 a class in train/, 4 in test/."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 6), ("test", 4)):
        for label in range(10):
            base = folder / split / f"class{label}"
            base.mkdir(parents=True)
            for i in range(count):
                # smooth pictures, so that blurs and JPEG change them as they do photographs
                small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC).save(
                    base / f"{i}.png"
                )
    return folder


@pytest.fixture
def recal(capsys, monkeypatch, tmp_path):
    """Run the command in an empty folder; give its exit status, output and messages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECAL_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-cache"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["recal", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run
