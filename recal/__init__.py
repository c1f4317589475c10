"""recal: pick, mix and recalibrate the BatchNorm branches of a trained network.

The public functions are `load_checkpoint`, `load_variant`, `save_variant`, `calibrate`,
`calibrate_matrix`, `mix`, `build`, `evaluate`, `compare`, `select` and `export_onnx`; the other
public names are the classes that they take and return, and the errors that they raise. Each is
imported when it is first used, so that `import recal` stays fast and needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recal.version import __version__

__all__ = [
    "Adaptation",
    "BrokenImageError",
    "Checkpoint",
    "Comparison",
    "Evidence",
    "Float16",
    "Float32",
    "InputError",
    "Int8",
    "Metrics",
    "ModelOverrides",
    "ModelSpec",
    "Patchable",
    "Policy",
    "ReadingOptions",
    "RecalError",
    "RecalWarning",
    "Run",
    "Selection",
    "Settings",
    "Suite",
    "Summary",
    "Switchable",
    "UsageError",
    "Variant",
    "VerificationError",
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
    from recal.checkpoint.layouts import ReadingOptions
    from recal.errors import (
        BrokenImageError,
        InputError,
        RecalError,
        RecalWarning,
        UsageError,
        VerificationError,
    )
    from recal.evaluation.adaptation import Adaptation
    from recal.evaluation.evaluate import Run, evaluate
    from recal.export.export import export_onnx
    from recal.export.forms import Evidence, Float16, Float32, Int8, Patchable, Switchable
    from recal.networks.spec import ModelOverrides, ModelSpec
    from recal.policies.policy import Policy
    from recal.runs.compare import Comparison, compare
    from recal.runs.metrics import Metrics
    from recal.runs.select import Selection, select
    from recal.runs.summary import Summary
    from recal.suites.suite import Suite
    from recal.variant.build import build
    from recal.variant.mixing import mix
    from recal.variant.variant import Variant, load_variant, save_variant

_NAMES = {
    "recal.calibration.calibrate": ("calibrate", "calibrate_matrix"),
    "recal.calibration.rounds": ("Settings",),
    "recal.checkpoint.checkpoint": ("Checkpoint", "load_checkpoint"),
    "recal.checkpoint.layouts": ("ReadingOptions",),
    "recal.errors": (
        "BrokenImageError", "InputError", "RecalError", "RecalWarning", "UsageError",
        "VerificationError",
    ),
    "recal.evaluation.adaptation": ("Adaptation",),
    "recal.evaluation.evaluate": ("Run", "evaluate"),
    "recal.export.export": ("export_onnx",),
    "recal.export.forms": (
        "Evidence", "Float16", "Float32", "Int8", "Patchable", "Switchable",
    ),
    "recal.networks.spec": ("ModelOverrides", "ModelSpec"),
    "recal.policies.policy": ("Policy",),
    "recal.runs.compare": ("Comparison", "compare"),
    "recal.runs.metrics": ("Metrics",),
    "recal.runs.select": ("Selection", "select"),
    "recal.runs.summary": ("Summary",),
    "recal.suites.suite": ("Suite",),
    "recal.variant.build": ("build",),
    "recal.variant.mixing": ("mix",),
    "recal.variant.variant": ("Variant", "load_variant", "save_variant"),
}  # fmt: skip
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recal' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
