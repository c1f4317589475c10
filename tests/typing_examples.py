"""Typed uses of the whole public surface; mypy checks them, and nothing runs them.

A line with `type: ignore` is a mistake that mypy has to find: `warn_unused_ignores` fails if not.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

import recal

if TYPE_CHECKING:
    from collections.abc import Iterable

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def calibrate_a_checkpoint(data: Path) -> recal.Variant:
    checkpoint: recal.Checkpoint = recal.load_checkpoint("c.pth", roles="main=1")
    checkpoint = checkpoint.overridden(arch="wrn16_1", mean=(0.5, 0.5, 0.5))
    weak: recal.Variant = recal.calibrate(checkpoint, mode="weak", data=data, samples=500)
    policy: recal.Policy = recal.Policy.from_text("mine", "summary = 'Nothing.'")
    strong: recal.Variant = recal.calibrate(checkpoint, mode=policy, affine="aux0", seed=1)
    recal.save_variant(weak, "weak.safetensors")
    recal.calibrate(checkpoint, samplse=500)  # type: ignore[call-overload]
    recal.load_checkpoint("c.pth", rolse="main=1")  # type: ignore[call-arg]
    return strong


def calibrate_a_module(module: nn.Module, batches: Iterable[torch.Tensor]) -> nn.Module:
    recalibrated: nn.Module = recal.calibrate(module, batches, estimator="consistent")
    recal.calibrate(module, batches, estimater="consistent")  # type: ignore[call-overload]
    return recalibrated


def evaluate_targets(checkpoint: recal.Checkpoint, weak: recal.Variant) -> Path:
    run: recal.Run = recal.evaluate(
        [checkpoint, weak], suite="cifar10c", severities=[3], limit=1000, batch_size=64,
        adaptation=recal.Adaptation(kind="batch", batch=64),
    )  # fmt: skip
    summary: recal.Summary = run.summary
    accuracy: float | None = summary.targets[0].clean_accuracy
    comparison: recal.Comparison = recal.compare(run, every_pair=True)
    selection: recal.Selection = recal.select(run, "clean", subject_to="mean_corruption_error<=0.3")
    recal.evaluate("c.pth", suit="cifar10c")  # type: ignore[call-overload]
    recal.compare(run, evry_pair=True)  # type: ignore[call-arg]
    recal.select(run, "clean", paretto=True)  # type: ignore[call-arg]
    print(accuracy, comparison.pairs[0].second, selection.chosen)
    return run.folder


def evaluate_a_module(module: nn.Module, batches: Batches) -> float:
    metrics: recal.Metrics = recal.evaluate(module, batches)
    return metrics.accuracy


def build_and_export(checkpoint: recal.Checkpoint) -> recal.Evidence:
    variant: recal.Variant = recal.load_variant(Path("weak.safetensors"))
    network: nn.Module = recal.build(checkpoint, variant)
    evidence: recal.Evidence = recal.export_onnx(checkpoint, variant, "m.onnx", uint8=True)
    recal.build(checkpoint, varient=variant)  # type: ignore[call-arg]
    recal.export_onnx(checkpoint, variant, "m.onnx", unit8=True)  # type: ignore[call-arg]
    recal.save_variant(variant, pth="weak.safetensors")  # type: ignore[call-arg]
    print(network, evidence.proof.difference)
    return evidence


def handle_errors() -> None:
    try:
        recal.load_checkpoint("c.pth")
    except recal.UsageError as error:
        print(error.exit_code)
    except (recal.InputError, recal.BrokenImageError, recal.VerificationError) as error:
        problem: recal.RecalError = error
        print(problem)
