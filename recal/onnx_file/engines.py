"""Checking ONNX files against their own record, in any engine at hand, without torch."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from recal.errors import InputError, VerificationError, pick, reason
from recal.onnx_file.probe import Deviation
from recal.onnx_file.reading import check_model, read_model
from recal.onnx_file.record import OnnxRecord, check_digest, read_record
from recal.onnx_file.session import Run, make_probe, noise_side

CPU = "CPUExecutionProvider"
OPENVINO = "openvino"
TOLERANCE = 1e-3
COARSE_TOLERANCE = 5e-2
NOISE = ("Exception from ", "Check '", "FrontEnd API failed")


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """The result of checking a file without its checkpoint.

    Attributes:
        record: What the file says of itself.
        engine: Name and version of the engine that ran the file.
        probe_difference: Distance of outputs on noise from those recorded, relative to the largest.
    """

    record: OnnxRecord
    engine: str
    probe_difference: float


def engines_at_hand() -> list[str]:
    """Return ONNX Runtime's execution providers, and `openvino` if that package is installed."""
    own = [OPENVINO] if find_spec(OPENVINO) else []
    return [*onnxruntime.get_available_providers(), *own]


def verify_alone(path: Path, provider: str = CPU) -> SelfCheck:
    """Check that a file is whole, valid and unchanged, and that it computes as it did when written.

    The digest in the file protects against damage and careless edits. A forged file with a new
    digest is found by `recal.export.verify.verify_against` alone.

    Args:
        path: The file.
        provider: An execution provider of ONNX Runtime by name, or `openvino`.

    Raises:
        InputError: It is no whole ONNX file, not one that recal wrote, or the engine cannot run it.
        UsageError: There is no such engine here.
        VerificationError: Its contents were changed, or the engine computes otherwise.
    """
    pick(provider, engines_at_hand(), "--provider")
    model, where = read_model(path), str(path)
    record = read_record(model, where)
    check_digest(model, record, where)
    check_model(model, where)
    content = model.SerializeToString()
    if provider == CPU:
        title, run = f"ONNX Runtime {onnxruntime.__version__}", None
    elif provider == OPENVINO:
        title, run = _openvino(model, where)
    else:
        title, run = _provider(model, provider, where)
    side = noise_side(record.options, record.model)
    again = make_probe(content, len(record.variants), run, side=side)
    found = record.probe.deviation(again)
    allowed = COARSE_TOLERANCE if record.form in ("float16", "int8") else TOLERANCE
    if not found.relative <= allowed:
        raise VerificationError(
            f"{path}: {title}: expected the outputs that were recorded, within {allowed:.0e} of "
            f"the largest ({record.probe.largest:.4g}), got a difference of {found.relative:.1e}"
            f"{_place(found, record)}. This engine computes otherwise."
        )
    return SelfCheck(record=record, engine=title, probe_difference=found.relative)


def _place(found: Deviation, record: OnnxRecord) -> str:
    """Return where the largest difference is, in words."""
    if found.place is None:
        return " in their number"
    variant, image, output = found.place
    class_name = "".join(f" ('{name}')" for name in (record.classes or ())[output : output + 1])
    held = f" of variant '{record.variants[variant].name}'" if len(record.variants) > 1 else ""
    return (
        f": {found.found:.5g} instead of {found.recorded:.5g} at output {output + 1}{class_name} "
        f"of image {image + 1}{held}"
    )


def _unloadable(title: str, model: onnx.ModelProto, where: str, error: Exception) -> InputError:
    """Return the error of an engine that cannot load or run a file."""
    # OpenVINO's messages begin with places in its own code
    said = " ".join(line for line in str(error).splitlines() if not line.startswith(NOISE))
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    return InputError(
        f"{where}: {title}: expected a file that it runs, got operator set {opset} and an error: "
        f"{reason(RuntimeError(said))}. `recal export --opset` writes another operator set; "
        "docs/engines.md lists the forms that engines take."
    )


def _openvino(model: onnx.ModelProto, where: str) -> tuple[str, Run]:
    """Compile a model with OpenVINO on the CPU, in the precision of the file."""
    title = "OpenVINO"
    try:
        import openvino

        title = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        core = openvino.Core()
        # its default mode computes in bfloat16 on processors that have it
        compiled = core.compile_model(
            core.read_model(model.SerializeToString()), "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"}
        )
    except Exception as error:
        raise _unloadable(title, model, where, error) from error

    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        try:
            return np.array(compiled(dict(inputs))[0])
        except Exception as error:
            raise _unloadable(title, model, where, error) from error

    return title, run


def _provider(model: onnx.ModelProto, provider: str, where: str) -> tuple[str, Run]:
    """Load a model in ONNX Runtime with an execution provider, and the CPU for what it lacks."""
    title = f"ONNX Runtime {onnxruntime.__version__}, {provider}"

    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised, and need not be printed too
        options.enable_profiling = True
        with tempfile.TemporaryDirectory() as folder:
            options.profile_file_prefix = str(Path(folder) / "profile")
            try:
                session = onnxruntime.InferenceSession(
                    model.SerializeToString(),
                    options,
                    providers=list(dict.fromkeys((provider, CPU))),
                )
                (output,) = session.run(None, dict(inputs))
                profile = Path(session.end_profiling()).read_text(encoding="utf-8")
            except Exception as error:
                raise _unloadable(title, model, where, error) from error
        if not _nodes(profile)[provider]:
            raise InputError(
                f"{where}: {title}: expected it to run a part of the file, got every node on "
                f"{', '.join(_nodes(profile))}. The provider takes none of them, or its libraries "
                "are missing."
            )
        return np.array(output)

    return title, run


def _nodes(profile: str) -> Counter[str]:
    """Return how many nodes each execution provider ran, from the text of a profile."""
    nodes = {
        event["name"]: event["args"]["provider"]
        for event in json.loads(profile)
        if event.get("cat") == "Node" and "provider" in event.get("args", {})
    }
    return Counter(nodes.values())
