"""recal: pick, mix and recalibrate the BatchNorm branches of a trained network.

The public functions are imported when they are first used, so that `import recal` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recal.version import __version__

__all__ = [
    "Checkpoint",
    "ModelOverrides",
    "ModelSpec",
    "ReadingOptions",
    "RecalError",
    "Settings",
    "Variant",
    "__version__",
    "build",
    "calibrate",
    "calibrate_matrix",
    "compare",
    "evaluate",
    "export_onnx",
    "load_checkpoint",
    "load_variant",
    "mix",
    "save_variant",
    "select",
]

if TYPE_CHECKING:
    from recal.calibration.calibrate import calibrate, calibrate_matrix
    from recal.calibration.rounds import Settings
    from recal.checkpoint.checkpoint import Checkpoint, load_checkpoint
    from recal.checkpoint.options import ReadingOptions
    from recal.errors import RecalError
    from recal.evaluation.evaluate import evaluate
    from recal.export.export import export_onnx
    from recal.networks.spec import ModelOverrides, ModelSpec
    from recal.runs.compare import compare
    from recal.runs.select import select
    from recal.variant.build import build
    from recal.variant.file import load_variant, save_variant
    from recal.variant.mixing import mix
    from recal.variant.variant import Variant

_HOMES = {
    "Checkpoint": "recal.checkpoint.checkpoint",
    "ModelOverrides": "recal.networks.spec",
    "ModelSpec": "recal.networks.spec",
    "ReadingOptions": "recal.checkpoint.options",
    "RecalError": "recal.errors",
    "Settings": "recal.calibration.rounds",
    "Variant": "recal.variant.variant",
    "build": "recal.variant.build",
    "calibrate": "recal.calibration.calibrate",
    "calibrate_matrix": "recal.calibration.calibrate",
    "compare": "recal.runs.compare",
    "evaluate": "recal.evaluation.evaluate",
    "export_onnx": "recal.export.export",
    "load_checkpoint": "recal.checkpoint.checkpoint",
    "load_variant": "recal.variant.file",
    "mix": "recal.variant.mixing",
    "save_variant": "recal.variant.file",
    "select": "recal.runs.select",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recal' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
