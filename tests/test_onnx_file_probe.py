"""The noise of probes can be repeated in any language, by the code in docs/engines.md."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from msgspec.structs import replace

from recal import export_onnx, load_checkpoint
from recal.export.forms import Switchable
from recal.onnx_file.engines import verify_alone
from recal.onnx_file.probe import Probe, repeatable_noise
from recal.onnx_file.reading import read_model
from recal.onnx_file.record import read_record
from recal.onnx_file.session import make_probe
from recal.variant.variant import branch_variant

TEXT = (Path(__file__).parents[1] / "docs" / "engines.md").read_text(encoding="utf-8")
SECTION = TEXT.partition("## The probe\n")[2].partition("\n## ")[0]
CODE = dict(re.findall(r"```(\w+)\n(.*?)```", SECTION, re.S))
COUNT = 3 * 40 * 40
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


def lowbias32(x):
    """Return the hash as its author defines it, in Python's integers of any size."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


BYTES = np.array([lowbias32(i) >> 24 for i in range(COUNT)], np.uint8)


@pytest.mark.parametrize("shape", [(2, 3, 20, 40), (1, 40, 40, 3), (1, 1, 80, 60), (4, 12, 10, 10)])
def test_noise_is_the_hash_of_the_place_in_memory(shape):
    pixels, numbers = (repeatable_noise(shape, pixels=kind) for kind in (True, False))
    assert (pixels.dtype, numbers.dtype) == (np.uint8, np.float32)
    np.testing.assert_array_equal(pixels, BYTES.reshape(shape))
    np.testing.assert_array_equal(numbers, (BYTES.reshape(shape).astype(np.float64) - 127.5) / 64)
    np.testing.assert_array_equal(numbers.astype(np.float16), numbers)


def test_noise_looks_random():
    """Bytes are even, neighbours in a row, a column and the next image are uncorrelated."""
    noise = repeatable_noise((2, 3, 224, 224), pixels=False).astype(np.float64)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 256 / 64 / 12**0.5) < 0.01
    for offset in (1, 224, 224 * 224, 3 * 224 * 224):
        flat = noise.ravel()
        assert abs(np.corrcoef(flat[:-offset], flat[offset:])[0, 1]) < 0.01


def run_python(_folder):
    scope = {"count": COUNT}
    exec(CODE["python"], scope)
    return scope["noise_bytes"](COUNT)


def run_javascript(folder):
    script = folder / "noise.mjs"
    call = f"console.log(noiseBytes({COUNT}).join(' '))"
    script.write_text(CODE["javascript"] + call, encoding="utf-8")
    return np.array(output_of(["node", script]).split(), int)


def run_cpp(folder):
    source = folder / "noise.cpp"
    main = f"int main() {{ for (int b : noise_bytes({COUNT})) std::cout << b << ' '; }}"
    source.write_text(f"#include <iostream>\n{CODE['cpp']}{main}", encoding="utf-8")
    output_of(["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", source, "-o", folder / "noise"])
    return np.array(output_of([folder / "noise"]).split(), int)


def output_of(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("run", "needs"), [(run_python, "python3"), (run_javascript, "node"), (run_cpp, "g++")]
)
def test_the_documented_code_repeats_the_noise(run, needs, tmp_path):
    if shutil.which(needs) is None:
        pytest.skip(f"{needs} is not installed")
    np.testing.assert_array_equal(run(tmp_path), BYTES)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (2, 3, 32, 32)),
        ({"uint8": True}, (2, 32, 32, 3)),
        ({"any_size": True}, (2, 3, 64, 64)),
        ({"batch": 1}, (1, 3, 32, 32)),
        ({"batch": 3, "uint8": True}, (3, 32, 32, 3)),
    ],
)
def test_record_and_hash_are_enough_to_check_a_file(split_checkpoint, tmp_path, options, shape):
    """Another program needs the recorded shape and outputs, and the hash."""
    path = tmp_path / "m.onnx"
    export_onnx(load_checkpoint(split_checkpoint), "aux0", path, PIXELS, **options)
    probe = read_record(read_model(path), "m.onnx").probe
    assert probe.shape == shape
    inputs = np.array([lowbias32(i) >> 24 for i in range(np.prod(shape))], np.uint8).reshape(shape)
    if "uint8" not in options:
        inputs = (inputs.astype(np.float32) - 127.5) / np.float32(64)
    (logits,) = onnxruntime.InferenceSession(path).run(None, {"input": inputs})
    (rows,) = probe.outputs
    assert np.shape(rows) == (min(shape[0], 2), 8)
    np.testing.assert_allclose(rows, logits[:2, :8], rtol=1e-5, atol=1e-5)
    assert verify_alone(path).probe_difference < 1e-5


def test_the_probe_of_a_switchable_file_holds_every_variant(split_checkpoint, tmp_path):
    path = tmp_path / "m.onnx"
    checkpoint = load_checkpoint(split_checkpoint)
    variants = {name: branch_variant(checkpoint, name) for name in ("main", "aux0")}
    export_onnx(checkpoint, variants, path, PIXELS, form=Switchable())
    probe = read_record(read_model(path), "m.onnx").probe
    assert np.shape(probe.outputs) == (2, 2, 8)
    for number, branch in enumerate(variants):
        single = tmp_path / f"{branch}.onnx"
        export_onnx(checkpoint, branch, single, PIXELS)
        (rows,) = make_probe(single.read_bytes()).outputs
        np.testing.assert_allclose(probe.outputs[number], rows, rtol=1e-5, atol=1e-5)


def test_distance_is_relative_to_the_largest_output():
    probe = Probe(shape=(1, 3, 8, 8), largest=4.0, outputs=(((1.0, -4.0),), ((0.5, 2.0),)))
    other = replace(probe, outputs=(((1.0, -4.0),), ((0.5, 2.5),)))
    found = probe.deviation(other)
    assert (found.relative, found.place, found.recorded, found.found) == (0.125, (1, 0, 1), 2, 2.5)
    assert replace(probe, largest=0.1).deviation(other).relative == 0.5
    for unlike in (
        replace(probe, outputs=probe.outputs[:1]),
        replace(probe, shape=(1, 3, 4, 16)),
        replace(probe, outputs=(((1.0,),), ((2.0, 3.0),))),
    ):
        assert probe.deviation(unlike).relative == float("inf")
        assert unlike.deviation(probe).place is None
    broken = probe.deviation(replace(probe, outputs=(((1.0, float("nan")),), ((0.5, 2.0),))))
    assert np.isnan(broken.relative)
    assert broken.place == (0, 0, 1)


def test_the_documented_cpp_program_gives_the_recorded_outputs(exported, tmp_path):
    """The program is compiled where the headers are (CPATH), with the library that Python uses."""
    libraries = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    headers = ["g++", "-E", "-x", "c++", "-include", "onnxruntime_cxx_api.h", "/dev/null"]
    if shutil.which("g++") is None or not libraries:
        pytest.skip("g++ or the shared library of ONNX Runtime is not installed")
    if subprocess.run(headers, capture_output=True, check=False).returncode:
        pytest.skip("the C++ headers of ONNX Runtime are not installed")
    (tmp_path / "libonnxruntime.so.1").symlink_to(libraries[-1])
    (tmp_path / "m.onnx").write_bytes(exported())
    (program,) = re.findall(r"```c\+\+\n(.*?)```", TEXT, re.S)
    (tmp_path / "main.cpp").write_text(CODE["cpp"] + program, encoding="utf-8")
    found = ["-L.", "-l:libonnxruntime.so.1", f"-Wl,-rpath,{tmp_path}", "-o", "main"]
    subprocess.run(["g++", "-std=c++17", "main.cpp", *found], cwd=tmp_path, check=True)
    outputs, recorded = output_of([tmp_path / "main", tmp_path / "m.onnx"]).splitlines()
    rows = json.loads(recorded)["outputs"][0]
    np.testing.assert_allclose(np.array(outputs.split(), float), rows[0], rtol=1e-4, atol=1e-5)
