"""What several tests build on: a small checkpoint with branches, folders of images, the command."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import convert_splitbn_model

from recal.cli.main import main
from recal.networks.names import create_network


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


@pytest.fixture(scope="session")
def benchmark_statistics():
    """The module benchmarks/intervals.py, which is outside of the package."""
    path = Path(__file__).parents[1] / "benchmarks" / "intervals.py"
    spec = importlib.util.spec_from_file_location("benchmark_statistics", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
