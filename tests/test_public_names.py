"""The public surface of `recal`: its names, and how it takes misspelt arguments."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import recal
from recal.checkpoint.checkpoint import Checkpoint
from recal.networks.spec import ModelOverrides


def test_public_names_are_what_they_say():
    assert len(set(recal.__all__)) == len(recal.__all__)
    assert {*recal.__all__} == {"__version__", *recal._HOMES}
    for name in recal.__all__:
        assert getattr(recal, name) is not None, name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = recal.nonsense
    assert dir(recal) == sorted(recal.__all__)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("load_checkpoint", ["c.pth"]),
        ("load_variant", ["v.safetensors"]),
        ("save_variant", [None, "v.safetensors"]),
        ("build", [None]),
        ("calibrate_matrix", [None, ["main"], ["weak"]]),
        ("mix", [[]]),
        ("evaluate", ["c.pth"]),
        ("compare", ["run"]),
        ("select", ["run", "clean"]),
        ("export_onnx", [None, "main", "m.onnx"]),
    ],
)
def test_a_misspelt_argument_is_a_type_error_that_names_it(name, arguments):
    with pytest.raises(TypeError, match="sampels"):
        getattr(recal, name)(*arguments, sampels=3)


@pytest.mark.parametrize("of", ["checkpoint", "module"])
def test_a_misspelt_argument_of_calibrate_is_a_type_error_that_names_it(of, split_checkpoint):
    checkpoint = recal.load_checkpoint(split_checkpoint)
    arguments = [checkpoint] if of == "checkpoint" else [recal.build(checkpoint), []]
    with pytest.raises(TypeError, match="sampels"):
        recal.calibrate(*arguments, sampels=3)


@pytest.mark.slow
def test_mypy_accepts_the_typed_examples_and_finds_their_mistakes():
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "tests/typing_examples.py"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("function", [Checkpoint.overridden, recal.evaluate])
def test_every_field_that_overrides_a_file_is_a_keyword(function):
    fields = ModelOverrides.__struct_fields__
    assert set(fields) <= inspect.signature(function).parameters.keys()
