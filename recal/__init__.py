"""recal: pick, mix and recalibrate the BatchNorm branches of a trained network.

The public functions are imported when they are first used, so that `import recal` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recal.version import __version__

__all__ = [
    "__version__",
    "build",
    "calibrate",
    "compare",
    "evaluate",
    "export_onnx",
    "load_checkpoint",
    "load_variant",
    "save_variant",
    "select",
]

if TYPE_CHECKING:
    from recal.calibration.calibrate import calibrate
    from recal.checkpoint.checkpoint import load_checkpoint
    from recal.evaluation.evaluate import evaluate
    from recal.export.export import export_onnx
    from recal.networks.build import build
    from recal.runs.compare import compare
    from recal.runs.select import select
    from recal.variant.variant import load_variant, save_variant

_HOMES = {
    "build": "recal.networks.build",
    "calibrate": "recal.calibration.calibrate",
    "compare": "recal.runs.compare",
    "evaluate": "recal.evaluation.evaluate",
    "export_onnx": "recal.export.export",
    "load_checkpoint": "recal.checkpoint.checkpoint",
    "load_variant": "recal.variant.variant",
    "save_variant": "recal.variant.variant",
    "select": "recal.runs.select",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recal' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
