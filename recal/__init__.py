"""recal: pick, mix and recalibrate the BatchNorm branches of a trained network.

The public functions are imported when they are first used, so that `import recal` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
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
    from recal.bn.build import build
    from recal.bn.variant import load_variant, save_variant
    from recal.calibration import calibrate
    from recal.checkpoint.checkpoint import load_checkpoint
    from recal.deploy.export import export_onnx
    from recal.evaluation.evaluate import evaluate
    from recal.results.comparison import compare
    from recal.results.selection import select

_HOMES = {
    "build": "recal.bn.build",
    "calibrate": "recal.calibration",
    "compare": "recal.results.comparison",
    "evaluate": "recal.evaluation.evaluate",
    "export_onnx": "recal.deploy.export",
    "load_checkpoint": "recal.checkpoint.checkpoint",
    "load_variant": "recal.bn.variant",
    "save_variant": "recal.bn.variant",
    "select": "recal.results.selection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recal' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
